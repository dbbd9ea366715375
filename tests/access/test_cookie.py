"""The session's cookie: how it is found in a request, and how it is set."""

from __future__ import annotations

import pytest

from app.access.cookie import COOKIE, cookie_in, set_cookie
from app.core.errors import BadRequestError

NAME = COOKIE.encode()


@pytest.mark.parametrize(
    ("cookies", "found"),
    [
        ([], None),
        ([b""], None),
        ([NAME + b"=a.b"], b"a.b"),
        ([b"x=1; " + NAME + b"=a.b;y=2"], b"a.b"),
        ([b"x=1", NAME + b"= a.b "], b"a.b"),
        ([NAME + b"=a=b"], b"a=b"),
        ([NAME], b""),
        ([b"x" + NAME + b"=a"], None),
        ([NAME + b"x=a"], None),
        ([NAME.lower() + b"=a"], None),
        ([NAME.removeprefix(b"__Host-") + b"=a"], None),
        ([b'x="' + NAME + b'=a"'], None),
        ([b"\xff; " + NAME + b"=\xff"], b"\xff"),
    ],
)
def test_the_cookie_is_found(cookies: list[bytes], found: bytes | None) -> None:
    """Only the exact name counts, wherever it stands. Browsers do not let another host set that name."""
    headers = [(b"host", b"x"), *((b"cookie", cookie) for cookie in cookies)]

    assert cookie_in(headers) == found


@pytest.mark.parametrize("cookies", [[NAME + b"=a; " + NAME + b"=b"], [NAME + b"=a", NAME + b"=a"]])
def test_two_cookies(cookies: list[bytes]) -> None:
    """Two are refused, as two Authorization headers are."""
    with pytest.raises(BadRequestError, match="two session cookies") as caught:
        cookie_in([(b"cookie", cookie) for cookie in cookies])
    assert caught.value.code == "conflicting-credentials"


def test_the_attributes() -> None:
    """What ``__Host-`` demands, no script can read it, and no other site can send it."""
    assert set_cookie("a.b", 900) == f"{COOKIE}=a.b; Max-Age=900; Path=/; Secure; HttpOnly; SameSite=Strict"
    assert COOKIE.startswith("__Host-")
