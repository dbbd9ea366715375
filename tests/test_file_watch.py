"""A file that is read again: changes are seen, half-written files are not, and a bad file changes nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from pathlib import Path

import pytest

from app.file_watch import AGAIN, FileError, WatchedFile, poll_together
from app.settings import SettingsError
from tests.support.waiting import HANG


def parse(data: bytes) -> str:
    """The content as text; some contents are bad."""
    if data.startswith(b"bad"):
        raise FileError("has a fault\nhas another fault")
    if data.startswith(b"defect"):
        raise RecursionError(data.decode())
    return data.decode()


def watched(path: Path) -> WatchedFile[str]:
    """The file, watched as the policy's."""
    return WatchedFile(path, "policy_file", parse, 64, "a file of the access control")


def write(path: Path, content: bytes | str | None) -> None:
    """Write the file; None removes it."""
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text("one")
    return path


async def test_a_change_counts_when_it_was_seen_twice(path: Path) -> None:
    """An editor may write in pieces: a content counts when two looks have seen it, and is reported once."""
    file, changes = watched(path), []
    file.on_change(lambda: changes.append(file.value))
    write(path, "tw")

    assert await file.poll() == "unchanged"
    write(path, "two")
    assert await file.poll() == "unchanged"
    assert file.value == "one"
    assert await file.poll() == "changed"
    assert await file.poll() == "unchanged"
    assert changes == ["two"]


async def test_dates_do_not_matter(path: Path) -> None:
    """A change with the same size, date and inode is seen: only the content counts."""
    os.utime(path, ns=(10**18, 10**18))
    file = watched(path)
    write(path, "two")
    os.utime(path, ns=(10**18, 10**18))
    await file.poll()

    assert await file.poll() == "changed"


async def test_a_link_that_is_swapped(tmp_path: Path) -> None:
    """Kubernetes replaces a ConfigMap by renaming a link to a folder over the previous link."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy").write_text(name)
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "policy").symlink_to("..data/policy")
    file = watched(tmp_path / "policy")
    (tmp_path / "..new").symlink_to("two")
    (tmp_path / "..new").rename(tmp_path / "..data")
    await file.poll()
    await file.poll()

    assert file.value == "two"


async def test_sighup_reads_at_once(path: Path) -> None:
    """``look`` does not wait for a second look."""
    file = watched(path)
    write(path, "two")

    assert await file.look() == "changed"
    assert file.value == "two"
    assert await file.look() == "unchanged"


BAD = [b"bad", b"defect", b"\xff", b"x" * 65, None]


@pytest.mark.parametrize("content", BAD)
async def test_what_cannot_be_used_changes_nothing(
    path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A bad file, even one that makes the parser fail, keeps the previous value, says so once, and calls nobody."""
    file, changes = watched(path), []
    file.on_change(lambda: changes.append(file.value))
    write(path, content)
    with caplog.at_level(logging.INFO, "gateway"):
        for _ in range(4):
            await file.poll()
        assert await file.look() == "unusable"
        assert (file.value, changes) == ("one", [])
        assert "GATEWAY_POLICY_FILE (--policy-file): " in file.trouble
        write(path, b"one")
        await file.poll()
        assert file.trouble == ""

    assert [record.getMessage() for record in caplog.records] == [
        "a file of the access control cannot be used: what was read before stays valid",
        "a file of the access control can be used again",
    ]


async def test_a_bad_file_is_parsed_once(path: Path) -> None:
    """A bad file that stays is not parsed at each look: a large one would cost a second of each second."""
    parsed = []

    def count(data: bytes) -> str:
        parsed.append(data)
        return parse(data)

    file = WatchedFile(path, "policy_file", count, 64)
    write(path, "bad")
    outcomes = [await file.poll() for _ in range(5)]

    assert outcomes == ["unchanged", *["unusable"] * 4]
    assert parsed == [b"one", b"bad"]
    trouble = file.trouble
    write(path, "one")
    assert [await file.poll(), file.trouble] == ["unchanged", ""]
    write(path, "bad")
    assert [await file.poll(), await file.poll(), file.trouble] == ["unchanged", "unusable", trouble]
    write(path, None)
    await file.poll()
    assert file.trouble != trouble
    write(path, "bad")
    await file.poll()
    assert [await file.poll(), file.trouble] == ["unusable", trouble]


async def test_a_refused_content_is_tried_again(path: Path) -> None:
    """A certificate that was not valid yet is used when it is, without a signal. It used to be refused for ever."""
    valid = False

    def parse_when_valid(data: bytes) -> str:
        if data == b"later" and not valid:
            raise FileError("is not valid yet")
        return data.decode()

    file = WatchedFile(path, "tls_cert", parse_when_valid, 64)
    write(path, "later")
    assert [await file.poll() for _ in range(2)] == ["unchanged", "unusable"]
    valid = True
    assert {await file.poll() for _ in range(AGAIN - 1)} == {"unusable"}
    assert await file.poll() == "changed"

    assert (file.value, file.trouble) == ("later", "")


async def test_a_newer_content_wins(path: Path) -> None:
    """While a content is parsed the event loop goes on, and a newer content that was used meanwhile stays."""
    file, begun, may_end = watched(path), threading.Event(), threading.Event()

    def parse_late(data: bytes) -> str:
        if data == b"two":
            begun.set()
            assert may_end.wait(HANG)
        return parse(data)

    file._parse = parse_late
    write(path, "two")
    late = asyncio.create_task(file.look())
    assert await asyncio.to_thread(begun.wait, HANG)
    write(path, "three")
    assert await file.look() == "changed"
    may_end.set()

    assert await late == "unchanged"
    assert file.value == "three"


async def test_two_looks_at_one_change(path: Path) -> None:
    """A signal comes while the change is parsed: nobody is told twice, because all streams are checked each time."""
    file, changes = watched(path), []
    file.on_change(lambda: changes.append(file.value))
    write(path, "two")

    assert sorted(await asyncio.gather(file.look(), file.look())) == ["changed", "unchanged"]
    assert changes == ["two"]


async def test_a_signal_tries_again(path: Path) -> None:
    """What could not be used may be usable later with the same content: a certificate becomes valid."""
    file = watched(path)
    write(path, "bad")
    assert [await file.poll() for _ in range(3)] == ["unchanged", "unusable", "unusable"]
    file._parse = lambda data: data.decode()

    assert await file.poll() == "unusable"
    assert await file.look() == "changed"


@pytest.mark.parametrize("content", BAD)
def test_what_cannot_be_used_at_the_start(path: Path, content: bytes | None) -> None:
    """At the start, a bad file is an error of its setting, with a line for each fault."""
    write(path, content)
    with pytest.raises(SettingsError) as caught:
        watched(path)

    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"GATEWAY_POLICY_FILE (--policy-file): {path}: ") for line in lines)
    assert len(lines) == (2 if content == b"bad" else 1)


async def test_files_that_are_replaced_together(tmp_path: Path) -> None:
    """All are in use before anybody is told, also if a look saw only one of them replaced."""
    paths = [tmp_path / name for name in ("tokens", "policy")]
    for path in paths:
        write(path, "one")
    files = [watched(path) for path in paths]
    told: list[list[str]] = []
    for file in files:
        file.on_change(lambda: told.append([file.value for file in files]))
    write(paths[0], "two")
    assert await poll_together(files) == ["unchanged"] * 2
    write(paths[1], "two")
    assert await poll_together(files) == ["unchanged"] * 2
    assert await poll_together(files) == ["changed"] * 2

    assert told == [["two", "two"]] * 2


async def test_a_bad_file_keeps_no_other_from_its_change(tmp_path: Path) -> None:
    """A policy that does not parse, or that is away, does not keep a token from being removed."""
    paths = [tmp_path / name for name in ("tokens", "policy")]
    for path in paths:
        write(path, "one")
    files = [watched(path) for path in paths]
    for bad, number in (("bad", "two"), (None, "three")):
        write(paths[0], number)
        write(paths[1], bad)
        await poll_together(files)
        assert await poll_together(files) == ["changed", "unusable"]

    assert [file.value for file in files] == ["three", "one"]
