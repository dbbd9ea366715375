"""The process's signals, from the first line of the program to the end of the interpreter.

An event loop's signal handlers end with the loop, long before the process: a second SIGTERM ended a gateway that had
logged "stopped" with status -15. So the process installs the handlers itself, before any slow import. The handlers pass
each signal to the current listener. At the end ``SIG_IGN`` replaces the handlers, and the kernel ignores the signals
until the process has ended: Python's shutdown resets handlers, but not ``SIG_IGN``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

STOP = (signal.SIGINT, signal.SIGTERM)


class Loop(Protocol):
    """The part of an event loop that this module uses. asyncio itself takes too long to import here."""

    def call_soon_threadsafe(self, callback: Callable[[int], object], number: int) -> object:
        """Call *callback* in the loop, and wake the loop."""


class Signals:
    """The process's signal handlers, and the current listener."""

    def __init__(self) -> None:
        self._installed = self._had_terminal = False
        self._discarding = False  # signals
        self._listener: tuple[Loop, Callable[[int], None]] | None = None

    def install(self) -> None:
        """Install the handlers: from now on the listener decides what a signal does."""
        if self._installed:
            return
        self._installed = True
        self._had_terminal = has_terminal()
        for number in STOP:
            signal.signal(number, self._receive)
        # nohup starts the process with SIGHUP ignored: keep it ignored.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._receive)

    def ignore(self) -> None:
        """Ignore all signals from now on, so that none changes the exit status."""
        self._discarding = True
        # Python may handle a signal after its handler is replaced, and then reports that the handler is gone.
        complain, sys.unraisablehook = sys.unraisablehook, lambda _: None
        for _ in range(2):  # the second pass is for signals that came during the first
            for number in (*STOP, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
        sys.unraisablehook = complain

    @property
    def terminal_gone(self) -> bool:
        """Whether the terminal on which the process was started has hung up."""
        return self._had_terminal and not has_terminal()

    @contextlib.contextmanager
    def deliver_to(self, loop: Loop, callback: Callable[[int], None]) -> Iterator[None]:
        """Call *callback* in *loop* with the number of each signal, until another listener takes over.

        After this context ends, signals are discarded: they must not disturb the cleanup that follows.
        """
        self.install()
        self._discarding, self._listener = False, (loop, callback)
        try:
            yield
        finally:
            self._discarding, self._listener = True, None

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal. Python calls this between two instructions of the main thread."""
        if self._discarding:
            return
        if self._listener is not None:
            loop, callback = self._listener
            loop.call_soon_threadsafe(callback, number)
            return
        # There is no listener yet, so there is nothing to clean up. Do not raise: the exception could interrupt any
        # import. SIGHUP needs no action: the files that it reloads have not been read yet.
        if number in STOP or self.terminal_gone:
            os._exit(0)


SIGNALS = Signals()


def has_terminal() -> bool:
    """Whether the process has a controlling terminal. It has none in a container, under systemd, or after a hangup.

    Without a free descriptor nobody knows. Then the terminal counts as there: a reload loses less than a stop.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return True
