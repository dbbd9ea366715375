"""The process's signals, from the first line of the program to the last moment of the interpreter.

A handler that a loop installs ends with that loop, long before the process does: a second SIGTERM ended a gateway that
had logged "stopped" with status -15. So the handlers are the process's. They are installed before anything slow is
imported, tell whoever listens, and are replaced by ``SIG_IGN`` at the end, which the kernel obeys until the process is
gone (``SIG_IGN`` is the one thing that Python's own end leaves as it is).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

STOP = (signal.SIGINT, signal.SIGTERM)


class Loop(Protocol):
    """Of an event loop, what is needed here: asyncio takes a while to import."""

    def call_soon_threadsafe(self, callback: Callable[[int], object], number: int) -> object:
        """Have *callback* called in the loop, and wake it."""


class Signals:
    """See the module."""

    def __init__(self) -> None:
        self._installed = self._deaf = self._had_terminal = False
        self._listener: tuple[Loop, Callable[[int], None]] | None = None

    def install(self) -> None:
        """From now on a signal does not end the process, but is heard."""
        if self._installed:
            return
        self._installed = True
        self._had_terminal = has_terminal()
        for number in STOP:
            signal.signal(number, self._receive)
        # Inherited as ignored it stays so: that is what nohup is for.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._receive)

    def ignore(self) -> None:
        """The program is over: no signal that comes from now on changes its exit status."""
        self._deaf = True
        # A signal that came just before is looked at just after, and Python complains that its handler has gone.
        complain, sys.unraisablehook = sys.unraisablehook, lambda _: None
        for _ in range(2):  # the second time for what came during the first
            for number in (*STOP, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
        sys.unraisablehook = complain

    @property
    def terminal_gone(self) -> bool:
        """Whether the terminal that the process was started on has hung up."""
        return self._had_terminal and not has_terminal()

    @contextlib.contextmanager
    def heard_by(self, loop: Loop, callback: Callable[[int], None]) -> Iterator[None]:
        """Have *callback* called in *loop* with the number of each signal, until somebody else listens.

        When this ends nobody listens: whatever is then left to be done is the way out, and not to be disturbed.
        """
        self.install()
        self._deaf, self._listener = False, (loop, callback)
        try:
            yield
        finally:
            self._deaf, self._listener = True, None

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        """Python's own handler: it runs between two instructions of the main thread."""
        if self._deaf:
            return
        if self._listener is not None:
            loop, callback = self._listener
            loop.call_soon_threadsafe(callback, number)
            return
        # Nobody listens yet: there is nothing to clean up, and an exception could come anywhere in an import. What
        # SIGHUP has read again is still to be read.
        if number in STOP or self.terminal_gone:
            os._exit(0)


SIGNALS = Signals()


def has_terminal() -> bool:
    """Whether there is a controlling terminal: none in a container, under systemd, or once it has hung up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
