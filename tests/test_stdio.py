"""The standard streams: a stream that nobody reads, or that is full, is abandoned, and the program continues."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from app import stdio
from app.stdio import print_error, write_now
from tests.support.waiting import HANG


def test_what_is_said_is_written_at_once() -> None:
    """A line is written at once, not when the buffer is full."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        assert write_now(stream, "a line\n")
        assert os.read(reading, 100) == b"a line\n"
    os.close(reading)


def test_a_stream_that_is_not_a_file() -> None:
    """A stream without a descriptor, such as a test's, works, too."""
    stream = io.StringIO()

    assert write_now(stream, "a line\n")
    assert stream.getvalue() == "a line\n"


def test_nobody_reads() -> None:
    """The first failure is reported; then the stream is the null device, so that Python's end flushes nothing."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        assert not write_now(stream, "a line\n")
        assert os.fstat(stream.fileno()).st_rdev == Path(os.devnull).stat().st_rdev
        assert write_now(stream, "another\n")


def test_a_reader_that_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream whose reader stalls is abandoned after WRITE_TIMEOUT."""
    monkeypatch.setattr(stdio, "WRITE_TIMEOUT", 0.01)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing, b"x" * 65536):
            pass  # until the pipe is full
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        assert not write_now(stream, "a line\n")
    os.close(reading)


def test_complaints_name_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    """A complaint goes to standard error, with the name of the program."""
    print_error("this is wrong")

    assert capsys.readouterr() == ("", "etcd-watch-gateway: this is wrong\n")


@pytest.mark.parametrize("closed", [">&-", ">/dev/full"])
@pytest.mark.parametrize("command", ["version", "--help", "config check"])
def test_a_result_that_nobody_gets(command: str, closed: str) -> None:
    """A command whose result cannot be written has failed, and says so."""
    script = f"{shlex.quote(sys.executable)} -m app {command} {closed}"

    done = subprocess.run(["sh", "-c", script], stderr=subprocess.PIPE, text=True, timeout=HANG, check=False)

    assert done.returncode == 2
    assert done.stderr.startswith("etcd-watch-gateway: cannot write to standard output: ")
