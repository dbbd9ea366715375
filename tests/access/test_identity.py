"""Identities: names with a namespace, so that no mode can name an identity of another mode."""

from __future__ import annotations

import pytest

from app.access.identity import ANONYMOUS, MAX_NAME, STATIC_TOKEN, is_name, make_identity, subject_of


def test_each_mode_has_its_namespace() -> None:
    """The same name in three modes is three identities, and none is one of the two that have no namespace."""
    names = {
        make_identity("token", "ops").name,
        make_identity("proxy", "ops").name,
        make_identity("jwt", "ops", issuer="https://id.example").name,
        make_identity("token", "anonymous").name,
        ANONYMOUS.name,
        STATIC_TOKEN.name,
    }

    assert names == {
        *("token:ops", "proxy:ops", "jwt:https://id.example#ops"),
        *("token:anonymous", "anonymous", "static-token"),
    }


def test_a_subject_cannot_name_another_issuer() -> None:
    """The issuer ends at the first '#', which no issuer may have: a '#' in the subject changes nothing."""
    assert make_identity("jwt", "x#y", issuer="https://id.example").name == "jwt:https://id.example#x#y"
    assert subject_of("jwt:https://id.example#x#y") == "x#y"
    assert subject_of("token:a:b") == "a:b"


def test_the_name_is_the_claim_sub() -> None:
    """``sub`` is the name that the mode found out, whatever the claims say."""
    identity = make_identity("jwt", "alice", issuer="i", claims={"sub": "root", "tenant": "a"})

    assert (identity.claim("sub"), identity.claim("tenant"), identity.claim("other")) == ("alice", "a", None)


def test_the_hash_of_a_token_is_not_shown() -> None:
    """The repr of an identity, which a log might show, has no hash of a token."""
    assert "credential" not in repr(make_identity("token", "a", credential=b"\x01" * 32))


@pytest.mark.parametrize("name", ["", "a\nb", "a\x00", "a\x7f", "\u202eevil", "x" * (MAX_NAME + 1), "\ud800"])
def test_what_is_not_a_name(name: str) -> None:
    """An empty, unprintable or overlong name is not a name."""
    assert not is_name(name)


@pytest.mark.parametrize("name", ["a", "alice@example.org", "Zoë", "a b", "x" * MAX_NAME])
def test_names(name: str) -> None:
    """Names may have spaces and letters of any language."""
    assert is_name(name)
