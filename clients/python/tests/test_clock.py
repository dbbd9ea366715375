"""The clock of mirrors."""

from __future__ import annotations

import time

import pytest
from etcd_watch_client import clock


def test_it_goes_on_while_the_machine_sleeps() -> None:
    """Linux has a clock for it, macOS another one; elsewhere it is Python's own."""
    expected = next((name for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC") if hasattr(time, name)), None)

    assert (getattr(time, expected) if expected else None) == clock._ASLEEP
    first = clock.now()
    assert clock.now() >= first


def test_without_such_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, whose monotonic clock goes on by itself."""
    monkeypatch.setattr(clock, "_ASLEEP", None)
    before = time.monotonic()

    assert before <= clock.now() <= time.monotonic()
