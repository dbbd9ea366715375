"""The trusted proxy: only the listed addresses may name users, and their headers must be unambiguous."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.access.proxy import TrustedProxy
from app.core.errors import BadRequestError, UnauthorizedError

PROXY = TrustedProxy("X-Forwarded-User", "X-Forwarded-Groups", ["10.0.0.0/24", "192.0.2.7", "2001:db8::/64"])
USER = (b"x-forwarded-user", b"alice")


@pytest.mark.parametrize("peer", ["10.0.0.1", "192.0.2.7", "2001:db8::1", "::ffff:10.0.0.1"])
def test_a_listed_proxy_names_users(peer: str) -> None:
    """A user from a listed address, in whatever form the system writes it, is an identity with the listed roles."""
    identity = PROXY.identity_of([USER, (b"x-forwarded-groups", b"reader, ops ,,")], peer)

    assert identity is not None
    assert (identity.name, sorted(identity.roles), identity.claim("sub")) == ("proxy:alice", ["ops", "reader"], "alice")
    assert identity.expires is None


@pytest.mark.parametrize(
    "peer", ["10.0.1.1", "192.0.2.8", "2001:db8:1::1", "127.0.0.1", "::1", None, "", "10.0.0.1:80"]
)
def test_headers_from_others_are_dropped(peer: str | None) -> None:
    """From anybody else the headers mean nothing, and are not even read: two of them are not an error."""
    assert PROXY.identity_of([USER, USER, (b"x-forwarded-groups", b"operator")], peer) is None


def test_no_user() -> None:
    """Without the header there is no user, whatever the roles say."""
    assert PROXY.identity_of([(b"x-forwarded-groups", b"operator")], "10.0.0.1") is None


def test_without_a_roles_header() -> None:
    """Without the setting, no header gives roles, and an empty header name matches nothing."""
    identity = TrustedProxy("X-User", "", ["10.0.0.1"]).identity_of([(b"x-user", b"a"), (b"", b"operator")], "10.0.0.1")

    assert identity is not None
    assert identity.roles == frozenset()


@pytest.mark.parametrize("more", [(b"x-forwarded-user", b"root"), USER, (b"x-forwarded-user", b"")])
def test_a_user_that_stands_twice(more: tuple[bytes, bytes]) -> None:
    """A proxy that appends its header to the client's is refused: nobody knows which is whose."""
    for headers in ([USER, more], [more, USER]):
        with pytest.raises(BadRequestError) as caught:
            PROXY.identity_of(headers, "10.0.0.1")
        assert caught.value.code == "conflicting-credentials"


def test_roles_that_stand_twice() -> None:
    """The same for the roles."""
    roles = (b"x-forwarded-groups", b"operator")
    with pytest.raises(BadRequestError):
        PROXY.identity_of([USER, roles, roles], "10.0.0.1")


@pytest.mark.parametrize("name", [b"", b"a\x00", b"a\tb", b"\xff", b"x" * 2000, "\u202ea".encode()])
def test_what_is_not_a_user(name: bytes) -> None:
    """A name that cannot be one is a bad credential, and never anonymous."""
    with pytest.raises(UnauthorizedError):
        PROXY.identity_of([(b"x-forwarded-user", name)], "10.0.0.1")


def test_bad_roles_are_left_out() -> None:
    """A role with a star or a space is not a role."""
    identity = PROXY.identity_of([USER, (b"x-forwarded-groups", b"*, a b, reader\xc3\xa9, good")], "10.0.0.1")

    assert identity is not None
    assert identity.roles == {"good"}


names = st.sampled_from([b"x-forwarded-user", b"x-forwarded-groups", b"authorization", b""])
peers = st.one_of(st.none(), st.sampled_from(["10.0.0.1", "10.0.1.1", "::ffff:10.0.0.1", "1"]), st.text(max_size=10))


@given(st.lists(st.tuples(names, st.binary(max_size=30)), max_size=4), peers)
def test_no_header_raises_anything_else(headers: list[tuple[bytes, bytes]], peer: str | None) -> None:
    """Any headers are a user with a namespace, none, or are refused; from others than the proxies they are nothing."""
    try:
        identity = PROXY.identity_of(headers, peer)
    except (BadRequestError, UnauthorizedError):
        assert PROXY.trusts(peer)
        return
    if identity is not None:
        assert PROXY.trusts(peer)
        assert identity.name.startswith("proxy:")
        assert len([name for name, _ in headers if name == b"x-forwarded-user"]) == 1
