"""``app.event_loop``: the event loop of a process."""

from __future__ import annotations

import asyncio
import sys

import pytest

from app.event_loop import run


async def module_of_the_loop() -> str:
    """Where the running loop is from."""
    return type(asyncio.get_running_loop()).__module__


def test_it_is_uvloop() -> None:
    """uvloop is a dependency on every platform that has it."""
    assert run(module_of_the_loop).startswith("uvloop")


def test_without_uvloop_it_is_asyncios(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some platforms and new interpreters have no wheel of uvloop."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert run(module_of_the_loop).startswith("asyncio")
