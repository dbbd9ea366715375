"""The standard streams: missing, full, or with nobody at the other end, they must not become the program's trouble."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TextIO

# Seconds until a stream whose reader stalls is given up.
PATIENCE = 2


def mend() -> None:
    """Open those that are closed on the null device.

    Otherwise the next socket gets the number, and what a library writes to "standard error" goes to a client.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_null(descriptor)
    for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  # as Python's
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            # What the locale has no letter for is written as an escape.
            stream.reconfigure(errors="backslashreplace")


def say(stream: TextIO, text: str) -> bool:
    """Write *text* at once; whether that could be done.

    What can't be written stays in Python's buffer, is tried again at the end of the interpreter, and makes the exit
    status 120: so the stream is then given to the null device.
    """
    try:
        descriptor = stream.fileno()
    except OSError:  # not a file: a test's
        stream.write(text)
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if not poll.poll(PATIENCE * 1000):
            raise BlockingIOError
        stream.write(text)
        stream.flush()
    except OSError:
        _open_null(descriptor)
        return False
    return True


def complain(text: str) -> None:
    """A line for whoever started the program."""
    say(sys.stderr, f"etcd-watch-gateway: {text}\n")


def _open_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
