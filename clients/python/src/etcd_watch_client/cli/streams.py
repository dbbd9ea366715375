"""The standard streams of `etcd-watch`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO

from . import statuses
from .statuses import CommandError

PROGRAM = "etcd-watch"


def open_closed_streams() -> None:
    """Let a standard stream that is closed lead nowhere. The next file or connection would get its number otherwise.

    A write to a standard output that was closed still fails: a result that nobody gets is an error.
    """
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 - it stays open
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: PTH123, SIM115 - a descriptor
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - it stays open


def report(message: str) -> None:
    """Write a line to stderr."""
    complain(f"{PROGRAM}: {message}\n")


def complain(text: str) -> None:
    """Write to stderr. One that is full does not end the program. Raises BrokenPipeError if the reader has left."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except BrokenPipeError:
        raise
    except OSError:
        _abandon(sys.stderr)


def write(data: bytes) -> None:
    """Write to stdout at once: the reader of a pipe must not wait for the next change.

    Raises BrokenPipeError if the reader has left, and CommandError if stdout cannot be written.
    """
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        _abandon(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        msg = f"cannot write to standard output: {error.strerror}"
        raise CommandError(msg, statuses.LOCAL) from None


def _abandon(stream: TextIO) -> None:
    """Let a stream lead nowhere. Python would fail when it flushes the rest at its end, and exit with status 120."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
