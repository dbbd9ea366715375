"""The standard streams. A stream that is closed, full, or without a reader must not stop the program."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TextIO

# Seconds that a write waits for a stalled reader before the stream is discarded.
WRITE_TIMEOUT = 2


def make_usable() -> None:
    """Open closed standard streams on the null device, and make unencodable characters harmless.

    Otherwise the next socket gets the closed descriptor's number, and a client receives what a library writes to
    standard error. A write to a standard output that was closed still fails: a result that nobody gets is an error.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_null(descriptor, os.O_RDONLY if descriptor == 1 else os.O_RDWR)
    for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  # as Python's
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            # Write characters that the locale cannot encode as escapes.
            stream.reconfigure(errors="backslashreplace")


class OutputError(Exception):
    """Standard output cannot be written. The text says why; it is empty if the reader has left, which is no error."""


def write_now(stream: TextIO, text: str) -> bool:
    """Write *text* at once. Return whether the write succeeded."""
    try:
        _write(stream, text)
    except OSError:
        return False
    return True


def say(text: str) -> None:
    """Write the result of a command to standard output, at once.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        _write(sys.stdout, text)
    except BrokenPipeError:
        raise OutputError from None
    except OSError as error:
        msg = f"cannot write to standard output: {error.strerror}"
        raise OutputError(msg) from None


def _write(stream: TextIO, text: str) -> None:
    """Write *text* at once.

    Text that cannot be written stays in Python's buffer. The interpreter would try it again at its end, fail, and exit
    with status 120. So after a failure the stream goes to the null device.
    """
    try:
        descriptor = stream.fileno()
    except OSError:  # not a file: a test's stream
        stream.write(text)
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if not poll.poll(WRITE_TIMEOUT * 1000):
            raise BlockingIOError(errno.EAGAIN, "its reader has stalled")
        stream.write(text)
        stream.flush()
    except OSError:
        _open_null(descriptor)
        raise


def print_error(text: str) -> None:
    """Write a line to standard error, for the user who started the program."""
    write_now(sys.stderr, f"etcd-watch-gateway: {text}\n")


def _open_null(descriptor: int, mode: int = os.O_RDWR) -> None:
    null = os.open(os.devnull, mode)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
