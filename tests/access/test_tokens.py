"""The tokens file: tokens are found by their hash, and only good entries are accepted."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256

import pytest

from app.access.tokens import make_token, parse_tokens
from app.core.timestamps import rfc3339
from app.file_watch import FileError


def digest(token: bytes) -> str:
    """The hash of a token, as the file has it."""
    return sha256(token).hexdigest()


EXAMPLE = f"""
tokens:
  - {{name: dash, sha256: "{digest(b"test")}", roles: [reader]}}
  - {{name: ops, sha256: "{digest(b"admin").upper()}", roles: [operator],
     expires: "2027-01-01T00:00:00Z"}}
"""


def test_tokens_are_found_by_their_hash() -> None:
    """A token gives the entry's identity; the hash itself is not a token."""
    tokens = parse_tokens(EXAMPLE.encode())
    dash, ops = tokens.find(b"test"), tokens.find(b"admin")

    assert dash is not None
    assert ops is not None
    assert (dash.name, sorted(dash.roles), dash.expires, dash.claim("sub")) == ("token:dash", ["reader"], None, "dash")
    assert (ops.name, sorted(ops.roles)) == ("token:ops", ["operator"])
    assert ops.expires == datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    for wrong in (b"", b"Test", b"test ", b"test\n", digest(b"test").encode(), bytes.fromhex(digest(b"test"))):
        assert tokens.find(wrong) is None


def test_a_token_is_rotated() -> None:
    """Two entries may have one name: the old and the new token are both accepted meanwhile."""
    text = f"tokens: [{{name: a, sha256: {digest(b'old')}}}, {{name: a, sha256: {digest(b'new')}, roles: [r]}}]"
    tokens = parse_tokens(text.encode())
    old, new = tokens.find(b"old"), tokens.find(b"new")

    assert old is not None
    assert new is not None
    assert (old.name, new.name) == ("token:a", "token:a")
    assert old.credential != new.credential


def test_no_tokens() -> None:
    """A file without tokens is a file: nobody has a token."""
    assert parse_tokens(b"tokens: []").identities == {}
    assert parse_tokens(b"tokens:").identities == {}


GOOD = digest(b"x")


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (f"sha256: {GOOD}", r"tokens\[0\].name: Field required"),
        ("name: a", r"tokens\[0\].sha256: Field required"),
        ("name: a, sha256: test", r"tokens\[0\].sha256: must be 64 hex digits"),
        (f"name: a, sha256: {GOOD}0", r"tokens\[0\].sha256: must be 64 hex digits"),
        (f'name: a, sha256: "{GOOD}\\n"', r"tokens\[0\].sha256: must be 64 hex digits"),
        (f"name: a, sha256: {digest(b'')}", "hash of an empty text"),
        (f"name: '', sha256: {GOOD}", r"tokens\[0\].name"),
        (f"name: 'a b', sha256: {GOOD}", r"tokens\[0\].name"),
        (f"name: 'a*', sha256: {GOOD}", r"tokens\[0\].name"),
        (f"name: a, sha256: {GOOD}, roles: reader", r"tokens\[0\].roles"),
        (f"name: a, sha256: {GOOD}, roles: ['*']", r"tokens\[0\].roles\[0\]"),
        (f"name: a, sha256: {GOOD}, expires: tomorrow", "is not a time"),
        (f"name: a, sha256: {GOOD}, expires: 2027-01-01", "has no time zone"),
        (f"name: a, sha256: {GOOD}, token: secret", "is not a name that this file knows"),
        (f"name: a, sha256: {GOOD}}}, {{name: b, sha256: {GOOD.upper()}", "appears twice"),
    ],
)
def test_what_is_not_an_entry(entry: str, why: str) -> None:
    """An entry that would let in the wrong client, or nobody, is refused."""
    with pytest.raises(FileError, match=why):
        parse_tokens(f"tokens: [{{{entry}}}]".encode())


def test_an_expiry_needs_no_quotation_marks() -> None:
    """YAML would read a plain time as a date of its own."""
    text = f"tokens: [{{name: a, sha256: {GOOD}, expires: 2027-01-01T00:00:00+02:00}}]"
    (identity,) = parse_tokens(text.encode()).identities.values()

    assert identity.expires == datetime(2026, 12, 31, 22, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("expires", ["9999-12-31T23:59:59-05:00", "9999-12-31T23:59:59.999999Z"])
def test_an_expiry_that_cannot_be_written(expires: str) -> None:
    """``/v1/access`` shows the expiry, and was a 500 for the identity of such a token."""
    (identity,) = parse_tokens(
        f"tokens: [{{name: a, sha256: {GOOD}, expires: {expires}}}]".encode()
    ).identities.values()

    assert identity.expires is not None
    assert rfc3339(identity.expires) == "9999-12-31T23:59:59Z"


def test_a_new_token() -> None:
    """A new token has 256 random bits, no character that a shell or a header treats specially, and its own hash."""
    token, hashed = make_token()

    assert hashed == digest(token.encode())
    assert len(token) == 43
    assert token.replace("-", "").replace("_", "").isalnum()
    assert make_token()[0] != token
