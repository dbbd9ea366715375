"""``app.event_loop``: the event loop of a process."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from app.event_loop import BESIDE, SHORT, USUAL, run


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


async def test_a_thread_gives_the_lock_back_soon() -> None:
    """As long as any thread computes; also after one has failed, or nobody waits for it any more."""
    go_on = threading.Event()

    def compute() -> float:
        go_on.wait()
        return sys.getswitchinterval()

    async def fails() -> None:
        with pytest.raises(ZeroDivisionError):
            await BESIDE.call(divmod, 1, 0)

    assert sys.getswitchinterval() == pytest.approx(USUAL)
    first, second = (asyncio.create_task(BESIDE.call(compute)) for _ in range(2))
    await fails()
    second.cancel()
    await asyncio.wait([second])
    assert sys.getswitchinterval() == pytest.approx(SHORT)
    go_on.set()
    assert await first == pytest.approx(SHORT)
    assert sys.getswitchinterval() == pytest.approx(USUAL)
