"""The token file: what it may contain, and that the gateway reads it again when it changes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import httpx
import pytest

from app.access.token import LOOK, Token, read_token
from app.settings import SettingsError
from tests.support.gateway import gateway
from tests.support.metrics import gateway_metric
from tests.support.waiting import eventually

NOWHERE = "http://127.0.0.1:1"


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def token(file: Path, clock: Clock) -> Token:
    """The token of a file."""
    return Token(file, "GATEWAY_TOKEN_FILE", clock=clock)


def test_the_token_in_a_file(tmp_path: Path) -> None:
    """The token is the content without the editor's line end, and is never shown."""
    file = tmp_path / "token"
    file.write_text("  s3cret\n")
    found = read_token(file, "GATEWAY_TOKEN_FILE")

    assert found.get_secret_value() == "s3cret"
    assert "s3cret" not in f"{found!r} {found}"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe", b"one\ntwo\n"])
def test_no_token_in_a_file(tmp_path: Path, content: bytes | None) -> None:
    """A file that is absent, empty, not text, or not valid in a header is refused: no gateway is open by accident."""
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"^GATEWAY_TOKEN_FILE \(--token-file\): ") as caught:
        read_token(file, "GATEWAY_TOKEN_FILE (--token-file)")

    assert str(file) in str(caught.value)


def test_a_change_is_seen_after_a_second(tmp_path: Path) -> None:
    """A change is seen after a second, not before: the file is not read for each request."""
    file, clock = tmp_path / "token", Clock()
    file.write_bytes(b"one\n")
    found = token(file, clock)
    file.write_bytes(b"two\n")

    assert found.matches(b"one")
    clock.now += LOOK
    assert found.matches(b"two")
    assert not found.matches(b"one")


def test_dates_do_not_matter(tmp_path: Path) -> None:
    """A change with the same size, date and inode is seen: only the content counts."""
    file, clock = tmp_path / "token", Clock()
    file.write_bytes(b"one")
    found, before = token(file, clock), file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    clock.now += LOOK

    assert found.matches(b"two")


def test_a_link_that_is_swapped(tmp_path: Path) -> None:
    """A swapped link is seen: Kubernetes replaces a Secret by renaming a link to a folder over the previous link."""
    clock = Clock()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(name)
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "token").symlink_to("..data/token")
    found = token(tmp_path / "token", clock)
    assert found.matches(b"one")
    (tmp_path / "..new").symlink_to("two")
    (tmp_path / "..new").rename(tmp_path / "..data")
    clock.now += LOOK

    assert found.matches(b"two")


UNUSABLE = [b"", b" \n", b"a\nb", b"a\x00b", b"\xef\xbb\xbfabc", b"\xff\xfea", b"x" * 20_000]


@pytest.mark.parametrize("content", [*UNUSABLE, None])
def test_what_cannot_be_used_keeps_the_token(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """An unusable file neither opens nor shuts the gateway: the previous token stays valid, with one log line, until
    the file is usable again.
    """
    file, clock = tmp_path / "token", Clock()
    file.write_bytes(b"one")
    found = token(file, clock)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with caplog.at_level(logging.INFO, "gateway"):
        for _ in range(3):
            clock.now += LOOK
            assert found.matches(b"one")
            assert not found.matches(content or b"")
            assert not found.usable
        file.write_bytes(b"two")
        clock.now += LOOK
        assert found.matches(b"two")
        assert found.usable

    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "the token's file cannot be used: the previous token stays valid",
        "the token's file can be used again",
        "the token has changed",
    ]
    assert "two" not in caplog.text


@pytest.mark.parametrize("content", UNUSABLE)
def test_what_cannot_be_used_at_the_start(tmp_path: Path, content: bytes) -> None:
    """An unusable file at the start is refused, and the error names it."""
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"^GATEWAY_TOKEN_FILE: .*token "):
        token(file, Clock())


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe without a writer is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingsError, match="is empty"):
        token(tmp_path / "pipe", Clock())
    with pytest.raises(SettingsError, match="has more than"):
        token(Path("/dev/zero"), Clock())


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (b"abc\xa0\n", b"abc\xa0"),
        ("abc\u00e0\n".encode(), "abc\u00e0".encode()),  # ends with 0xA0 in UTF-8
        ("abc\u00a0".encode(), "abc\u00a0".encode()),
        (b"\xa0abc", b"\xa0abc"),
        (b"abc\x85\n", b"abc\x85"),
        (b"two words\r\n", b"two words"),
    ],
)
async def test_every_byte_of_a_token_counts(tmp_path: Path, content: bytes, sent: bytes) -> None:
    """Every byte of a token counts, except ASCII white space around it; in particular, 0xA0 is not a space in HTTP."""
    file = tmp_path / "token"
    file.write_bytes(content)
    async with (
        gateway(NOWHERE, settings={"GATEWAY_TOKEN_FILE": str(file)}) as server,
        httpx.AsyncClient(base_url=server.base) as http,
    ):

        async def status(value: bytes) -> int:
            return (await http.get("/v1/feeds", headers=[(b"Authorization", b"Bearer " + value)])).status_code

        assert await status(sent) == 200
        assert await status(b" " + sent) == 200
        assert await status(sent[:-1]) == 401
        assert await status(sent + b"\xa0") == 401
        assert await status(b"\xa0" + sent) == 401


async def test_a_token_is_rotated(tmp_path: Path) -> None:
    """A token is rotated end to end without a signal or a restart; a metric shows when the file is unusable."""
    file = tmp_path / "token"
    file.write_bytes(b"one")
    async with (
        gateway(NOWHERE, settings={"GATEWAY_TOKEN_FILE": str(file)}) as server,
        httpx.AsyncClient(base_url=server.base) as http,
    ):

        async def status(value: str) -> int:
            return (await http.get("/v1/feeds", headers={"Authorization": f"Bearer {value}"})).status_code

        async def rotated() -> bool:
            return await status("two") == 200

        assert (await status("one"), await status("two")) == (200, 401)
        file.write_bytes(b"two")
        await eventually(rotated)
        assert await status("one") == 401
        assert await gateway_metric(http, "token_unusable") == 0
        file.unlink()

        async def noticed() -> bool:
            return await gateway_metric(http, "token_unusable") == 1

        await eventually(noticed)
        assert await status("two") == 200
    assert not [line for line in server.lines if '"two"' in str(line)]
