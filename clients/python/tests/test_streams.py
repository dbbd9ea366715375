"""The standard streams."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from etcd_watch_client.cli.main import main
from etcd_watch_client.cli.statuses import LOCAL, CommandError
from etcd_watch_client.cli.streams import open_closed_streams, report, write

FULL = Path("/dev/full")
full = pytest.mark.skipif(not FULL.exists(), reason="NOT RUN: only Linux has /dev/full")


@full
def test_a_result_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends, and says so. Python's end has nothing left to flush."""
    with FULL.open("w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(CommandError, match="cannot write to standard output: No space left") as ended:
            write(b"value\n")
        assert ended.value.status == LOCAL
        stdout.flush()


@full
@pytest.mark.parametrize("words", [["completion", "bash"], ["__complete", "ge"]])
def test_a_script_that_cannot_be_written(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line, and no traceback."""
    with FULL.open("w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(words) == LOCAL
    assert capsys.readouterr().err == "etcd-watch: cannot write to standard output: No space left on device\n"


@full
def test_help_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """argparse would ignore it."""
    with FULL.open("w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["get", "--help"]) == LOCAL


@full
def test_a_full_stderr_does_not_end_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program does is on stdout, or in files."""
    with FULL.open("w", encoding="utf-8") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        report("stale: silent")
        with pytest.raises(SystemExit) as ended:
            main(["folow"])
        assert ended.value.code == 2
        stderr.flush()


def test_a_stdout_that_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that nobody gets is an error; and the number of the descriptor is taken."""
    monkeypatch.setattr(sys, "stdout", None)
    open_closed_streams()
    assert sys.stdout is not None
    with sys.stdout as stdout:
        assert Path(os.devnull).samefile(f"/dev/fd/{stdout.fileno()}")
        with pytest.raises(CommandError, match="cannot write to standard output: Bad file descriptor"):
            write(b"value\n")


def test_a_reader_that_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no error of ours, and not reported."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(BrokenPipeError):
            write(b"value\n")
        stdout.flush()
