"""Signals: which listener gets a signal, and that one without a listener has no effect. (Processes: tests/server.)"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from app.signals import STOP, Signals, has_terminal

NUMBERS = (*STOP, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Put the handlers of the tests' own process back at the end."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class NowLoop:
    """A loop that calls at once instead of soon."""

    def call_soon_threadsafe(self, callback: Callable[[int], object], number: int) -> object:
        """See ``app.signals.Loop``."""
        return callback(number)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_heard_by_whoever_listens(number: int) -> None:
    """A listener gets a signal while it listens; afterwards the same signal does nothing."""
    signals, heard = Signals(), list[int]()
    with signals.deliver_to(NowLoop(), heard.append):
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)

    assert heard == [number]


def test_the_last_listener_hears() -> None:
    """``serve`` takes over from the command line, whose listener gets nothing more, even after ``serve``."""
    signals, first, second = Signals(), list[int](), list[int]()
    with signals.deliver_to(NowLoop(), first.append):
        os.kill(os.getpid(), signal.SIGTERM)
        with signals.deliver_to(NowLoop(), second.append):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    assert (first, second) == ([signal.SIGTERM], [signal.SIGTERM])


def test_ignored_by_the_kernel_at_the_end() -> None:
    """When Python ends, it removes its own handlers, but leaves SIG_IGN."""
    signals = Signals()
    signals.install()
    signals.ignore()

    assert [signal.getsignal(number) for number in NUMBERS] == [signal.SIG_IGN] * 3


def test_sighup_that_is_ignored_stays_so() -> None:
    """An ignored SIGHUP stays ignored, as nohup requires."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    Signals().install()

    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_terminal_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a terminal that existed at the start counts as gone."""
    terminal = [False]
    monkeypatch.setattr("app.signals.has_terminal", lambda: terminal[0])
    never = Signals()
    never.install()
    assert not never.terminal_gone
    terminal[0] = True
    there = Signals()
    there.install()
    assert not there.terminal_gone
    terminal[0] = False

    assert (there.terminal_gone, never.terminal_gone) == (True, False)


def test_before_anybody_listens_a_stop_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there is a listener nothing needs a cleanup, so a stop ends the process; a SIGHUP does not, because its
    files are not read yet.
    """
    ended: list[int] = []
    monkeypatch.setattr("app.signals.os._exit", ended.append)
    monkeypatch.setattr("app.signals.has_terminal", lambda: False)
    Signals().install()
    os.kill(os.getpid(), signal.SIGHUP)
    assert ended == []
    os.kill(os.getpid(), signal.SIGTERM)

    assert ended == [0]


@pytest.mark.parametrize(("number", "there"), [(errno.EMFILE, True), (errno.ENFILE, True), (errno.ENXIO, False)])
def test_a_terminal_that_cannot_be_looked_for(number: int, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway without a free descriptor must not stop at a SIGHUP. ENXIO: the process has no terminal."""

    def open_(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", open_)
    assert has_terminal() is there
