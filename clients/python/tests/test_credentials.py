"""The token: fixed, in a file, or from a function."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from etcd_watch_client.connection import raw
from etcd_watch_client.credentials import Bearer


@pytest.mark.parametrize(("token", "headers"), [(None, {}), ("", {}), ("t\n", {"Authorization": "Bearer t"})])
async def test_a_fixed_token(token: str | None, headers: dict[str, str]) -> None:
    """Nothing can replace it."""
    bearer = Bearer(token)
    assert await bearer.headers() == headers
    assert (bearer.renewable, await bearer.is_replaced()) == (False, False)


@pytest.mark.parametrize("token", [b"caf\xc3\xa9", b"\xff\xfe", b"t\xc2\xa0"])
async def test_a_token_is_bytes(token: bytes, tmp_path: Path) -> None:
    """The gateway compares bytes, whether or not they are UTF-8. httpx raised for all that is not ASCII."""
    (tmp_path / "token").write_bytes(token + b"\n")
    for source in (tmp_path / "token", os.fsdecode(token)):
        assert raw(await Bearer(source).headers()) == {b"Authorization": b"Bearer " + token}


async def test_a_source_is_asked_each_time(tmp_path: Path) -> None:
    """A file, a function, a coroutine function: each has the present token."""
    file = tmp_path / "token"

    async def later() -> str:
        return file.read_text()

    for source in (file, file.read_text, later):
        file.write_text("one\n")
        bearer = Bearer(source)
        assert await bearer.headers() == {"Authorization": "Bearer one"}
        assert (bearer.renewable, await bearer.is_replaced()) == (True, False)
        file.write_text("two\n")
        assert await bearer.is_replaced()
        assert (await bearer.headers(), await bearer.is_replaced()) == ({"Authorization": "Bearer two"}, False)


async def test_a_source_that_is_empty_for_a_moment(tmp_path: Path) -> None:
    """Who writes a file may truncate it first. No token is no replacement: the stream would end for a refusal."""
    file = tmp_path / "token"
    for source in (file, file.read_text):
        file.write_text("one\n")
        bearer = Bearer(source)
        await bearer.headers()
        file.write_text("\n")
        assert not await bearer.is_replaced()
        file.write_text("two\n")
        assert await bearer.is_replaced()


async def test_a_source_that_fails(tmp_path: Path) -> None:
    """It raises when a token is needed, and is no replacement."""
    bearer = Bearer(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none"):
        await bearer.headers()
    assert not await bearer.is_replaced()
