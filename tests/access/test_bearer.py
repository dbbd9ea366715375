"""Bearer tokens: which mode accepts a token, and that a refusal does not show the token."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.access.bearer import Bearer, InvalidTokenError, token_in
from app.access.identity import STATIC_TOKEN, Identity
from app.access.token import Token
from app.access.tokens import Tokens, parse_tokens
from app.core.errors import UnauthorizedError
from app.file_watch import WatchedFile


class FakeJwt:
    """Accepts one token."""

    async def identity_of(self, token: bytes) -> Identity:
        """The identity of the token a.b.c."""
        if token != b"a.b.c":
            raise InvalidTokenError("it has expired")
        return Identity("jwt:i#a", signed_by="good")

    def trusts(self, thumbprint: str) -> bool:
        """Whether the key is the one that is not withdrawn."""
        return thumbprint == "good"


def entry(name: str, token: str, more: str = "") -> str:
    """An entry of the tokens file."""
    return f"{{name: {name}, sha256: {sha256(token.encode()).hexdigest()}{more}}}"


@pytest.fixture(name="tokens_path")
def _tokens_path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.yaml"
    old = entry("old", "old-token", ", expires: 1970-01-01T00:01:40Z")
    path.write_text(f"tokens: [{entry('dash', 'dash-token')}, {old}]")
    return path


@pytest.fixture(name="bearer")
def _bearer(tmp_path: Path, tokens_path: Path) -> Bearer:
    (tmp_path / "token").write_text("static")
    tokens: WatchedFile[Tokens] = WatchedFile(tokens_path, "tokens_file", parse_tokens, 4096)
    token = Token(tmp_path / "token", "GATEWAY_TOKEN_FILE", clock=lambda: 0.0)
    return Bearer(token, tokens, FakeJwt(), wall=lambda: 100.0)


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (b"Bearer a", b"a"),
        (b"bearer \t a\t", b"a"),
        (b"Bearer a\xa0", b"a\xa0"),
        (b"Bearer", b""),
        (b"Basic a", None),
        (b"", None),
        (b"a", None),
    ],
)
def test_the_token_in_a_header(header: bytes, token: bytes | None) -> None:
    """The scheme's case, and spaces and tabs around the token, do not matter."""
    assert token_in(header) == token


async def test_each_mode_accepts_its_tokens(bearer: Bearer) -> None:
    """All modes can be on at the same time."""
    assert await bearer.identity_of(b"Bearer static") == STATIC_TOKEN
    assert (await bearer.identity_of(b"Bearer dash-token")).name == "token:dash"
    assert (await bearer.identity_of(b"Bearer a.b.c")).name == "jwt:i#a"


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"", "has no bearer token"),
        (b"Bearer", "has no bearer token"),
        (b"Bearer  ", "has no bearer token"),
        (b"Basic dash-token", "has no bearer token"),
        (b"Bearer dash-tokem", "is wrong"),
        (b"Bearer Static", "is wrong"),
        (b"Bearer old-token", "has expired"),
        (b"Bearer s.e.cret", "is not accepted: it has expired"),
        (b"Bearer a.b.c.d", "is wrong"),
    ],
)
async def test_a_bad_token(bearer: Bearer, header: bytes, why: str) -> None:
    """A bad token is refused by what is wrong with it, without the token."""
    with pytest.raises(UnauthorizedError, match=why) as caught:
        await bearer.identity_of(header)

    assert not any(word in str(caught.value) for word in ("dash-tok", "old-tok", "s.e.cret", "a.b.c"))
    assert caught.value.__cause__ is None


async def test_without_modes() -> None:
    """A gateway with a policy alone accepts no token: a bad credential is never anonymous."""
    with pytest.raises(UnauthorizedError):
        await Bearer(wall=lambda: 0.0).identity_of(b"Bearer a.b.c")


async def test_an_identity_is_found_again(bearer: Bearer, tokens_path: Path) -> None:
    """After a change of the file, the same token has other roles, or none any more."""
    dash = await bearer.identity_of(b"Bearer dash-token")
    tokens = bearer.tokens
    assert tokens is not None

    async def rewrite(token: str) -> None:
        tokens_path.write_text(f"tokens: [{entry('dash', token, ', roles: [r]')}]")  # noqa: ASYNC240  # a small file
        await tokens.look()

    await rewrite("dash-token")
    changed = bearer.current(dash)
    await rewrite("another-token")

    assert changed is not None
    assert changed.roles == {"r"}
    assert bearer.current(dash) is None
    assert bearer.current(STATIC_TOKEN) == STATIC_TOKEN


async def test_an_identity_of_a_key(bearer: Bearer) -> None:
    """A JWT is accepted for as long as its key is one of the issuer's."""
    alice = await bearer.identity_of(b"Bearer a.b.c")

    assert bearer.current(alice) == alice
    assert bearer.current(replace(alice, signed_by="withdrawn")) is None


@given(st.one_of(st.binary(max_size=60), st.binary(max_size=40).map(b"Bearer ".__add__)))
@example(b"Bearer " + b"." * 10_000)
@example(b"Bearer \xff.\xff.\xff")
@example(b"bearer\t")
async def test_no_header_raises_anything_else(header: bytes) -> None:
    """Any header is one of the tokens, or is refused by a text that does not show the token."""
    bearer = Bearer(None, None, FakeJwt(), wall=lambda: 100.0)
    given_token, name, said = token_in(header), "", ""
    try:
        name = (await bearer.identity_of(header)).name
    except UnauthorizedError as error:
        said = error.detail

    assert name == ("jwt:i#a" if given_token == b"a.b.c" else "")
    assert bool(said) == (not name)
    assert not given_token or len(given_token) < 8 or given_token.decode("latin-1") not in said
