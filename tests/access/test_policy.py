"""The access policy without a server: the header with the token, and ranges inside and outside the allowed prefixes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app.access.policy import AccessPolicy
from app.access.token import Token
from app.core.errors import ForbiddenError, UnauthorizedError
from app.core.keys import KeyRange

Make = Callable[[bytes], AccessPolicy]


@pytest.fixture(name="with_token")
def _with_token(tmp_path: Path) -> Make:
    def make(content: bytes) -> AccessPolicy:
        (tmp_path / "token").write_bytes(content)
        return AccessPolicy([b""], Token(tmp_path / "token", "GATEWAY_TOKEN_FILE", clock=lambda: 0.0))

    return make


@pytest.mark.parametrize("header", [b"Bearer s3cret", b"bearer s3cret", b"BEARER   s3cret\t ", b"Bearer \ts3cret"])
def test_the_right_token(with_token: Make, header: bytes) -> None:
    """The case of the scheme, and spaces and tabs around the token, do not matter."""
    with_token(b"s3cret\n").authenticate(header)


@pytest.mark.parametrize(
    "header",
    [b"", b"Bearer", b"Bearer ", b"s3cret", b"Basic s3cret", b"Bearer s3cretx", b"Bearer S3CRET", b"Bearer s3cret\xa0"],
)
def test_a_wrong_token(with_token: Make, header: bytes) -> None:
    """A wrong token is refused with the scheme to use, and the refusal does not show the token."""
    with pytest.raises(UnauthorizedError, match="Authorization: Bearer <token>") as caught:
        with_token(b"s3cret\n").authenticate(header)

    assert "s3cret" not in str(caught.value)


def test_a_token_ends_with_its_own_bytes(with_token: Make) -> None:
    """0xA0 is white space in Latin-1, but it is a part of the token here."""
    policy = with_token(b"abc\xa0")

    policy.authenticate(b"Bearer abc\xa0")
    with pytest.raises(UnauthorizedError):
        policy.authenticate(b"Bearer abc")


def test_without_a_token_any_header_will_do() -> None:
    """Without a configured token any Authorization header is accepted: a proxy in front may send its own."""
    policy = AccessPolicy([b""], None)

    policy.authenticate(b"")
    policy.authenticate(b"Bearer whatever")


@pytest.mark.parametrize(
    "watched",
    [
        KeyRange("prefix", b"/svc/"),
        KeyRange("prefix", b"/svc/a"),
        KeyRange("key", b"/svc/"),
        KeyRange("prefix", b"\xff\x00"),
    ],
)
def test_a_range_inside(watched: KeyRange) -> None:
    """A range is inside if one of the prefixes contains all of it."""
    AccessPolicy([b"/svc/", b"\xff"], None).authorize((watched,))


@pytest.mark.parametrize(
    "watched",
    [
        KeyRange("prefix", b""),
        KeyRange("prefix", b"/svc"),
        KeyRange("prefix", b"/svc0"),
        KeyRange("key", b"/svc"),
        KeyRange("prefix", b"/other/"),
    ],
)
def test_a_range_outside(watched: KeyRange) -> None:
    """A range that is partly outside is refused, and the error names the parameter."""
    with pytest.raises(ForbiddenError) as caught:
        AccessPolicy([b"/svc/", b"\xff"], None).authorize((watched,))

    assert caught.value.parameter == watched.kind


def test_the_empty_prefix_is_every_key() -> None:
    """The empty prefix allows every key; no prefix at all allows none."""
    AccessPolicy([b""], None).authorize((KeyRange("prefix", b""),))
    with pytest.raises(ForbiddenError):
        AccessPolicy([], None).authorize((KeyRange("key", b"a"),))
