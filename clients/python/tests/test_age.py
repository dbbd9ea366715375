"""How old the state of a mirror may be."""

from __future__ import annotations

import asyncio

import pytest
from etcd_watch_client import Change, Mirror
from playing import HANG, Gateway, line, put, state

URL = "http://gateway.test"


async def test_the_age_of_what_waits_for_a_slow_handler() -> None:
    """It is as old as the bytes that brought it."""
    now, ages = 100.0, []

    async def handle(_: Change[str, str]) -> None:
        nonlocal now
        ages.append((mirror.state, mirror.age))
        now += 40

    mirror = Mirror(URL, "/c/", on_change=handle, transport=(gateway := Gateway()))
    mirror._clock = lambda: now
    async with mirror:
        body = await gateway.stream()
        body.send(state(10, a="1") + put("/c/a", "2", 11) + put("/c/a", "3", 12))
        await mirror.until(lambda found: found.revision == 12, HANG)
    assert ages == [("live", 0), ("live", 40), ("stale", 80)]


@pytest.mark.parametrize("sign", ["an event", "a part of an event"])
async def test_what_waits_while_a_slow_handler_runs(sign: str) -> None:
    """The stream was not silent, only not read: with the next bytes the mirror is live, and whoever waits learns it."""
    now, told, gateway = 100.0, [], Gateway()
    waiting: list[asyncio.Task[None]] = []

    async def handle(change: Change[str, str]) -> None:
        nonlocal now
        if change.revision == 11:
            now += 100
            waiting.append(asyncio.create_task(mirror.synced(HANG)))
            await asyncio.sleep(0)  # it begins to wait

    mirror = Mirror(
        URL, "/c/", on_change=handle, on_state=lambda found: told.append((found.state, found.reason)), transport=gateway
    )
    mirror._clock = lambda: now
    beat = line("bookmark", 11, revision=11, state="live")
    async with mirror:
        body = await gateway.stream()
        body.send(state(10, a="1"), put("/c/a", "2", 11))
        await mirror.until(lambda found: found.revision == 11 and waiting, HANG)
        body.send(beat if sign == "an event" else beat[:7])
        await waiting[0]
        assert told[-2:] == [("stale", "silent"), ("live", "")]
        assert len(gateway.requests) == 1


async def test_a_state_from_before_a_sleep() -> None:
    """The machine slept after it had asked: what then comes first may be as old as the sleep was long."""
    now, gateway, states = 100.0, Gateway(), []
    mirror = Mirror(URL, "/c/", on_state=lambda found: states.append((found.state, found.reason)), transport=gateway)
    mirror._clock, mirror._draw = lambda: now, lambda: 0.0
    async with mirror:
        body = await gateway.stream()
        now += 3600
        body.send(state(10, a="old"))
        (await gateway.stream()).send(state(20, a="new"))
        await mirror.synced(HANG)
        assert dict(mirror) == {"/c/a": "new"}
    assert states[0] == ("connecting", "silent")


async def test_a_state_that_is_old_when_it_comes() -> None:
    """A gateway that is cut off from etcd sends the state that it has, and says at once since when it is unproven."""
    now, gateway = 100.0, Gateway()
    mirror = Mirror(URL, "/c/", transport=gateway)
    mirror._clock, mirror._wall = lambda: now, lambda: 1_767_225_600.0 + 3600  # an hour into 2026
    stale = line("status", state="stale", since="2026-01-01T00:00:00Z", ranges=[])
    async with mirror:
        waiting = asyncio.create_task(mirror.synced(HANG))
        body = await gateway.stream()
        body.send(state(10, a="1") + stale)
        await mirror.until(lambda found: found.state == "stale", HANG)
        assert (mirror.age, dict(mirror), waiting.done()) == (3600, {"/c/a": "1"}, False)
        for unreadable in ("soon", 7, None):
            body.send(line("status", state="stale", since=unreadable, age=unreadable and "1", ranges=[]))
        body.send(line("status", state="stale", ranges=[]), line("bookmark", 11, revision=11, state="stale"))
        await mirror.until(lambda found: found.revision == 11, HANG)
        assert (mirror.age, waiting.done()) == (3600, False)
        body.send(line("status", state="live", ranges=[]))
        await waiting
        assert (mirror.state, mirror.age) == ("live", 0)


async def test_the_age_does_not_depend_on_the_clock_of_the_machine() -> None:
    """The gateway says the age. Of an older one only the time is known: it gives no age below 0."""
    now, gateway = 100.0, Gateway()
    mirror = Mirror(URL, "/c/", transport=gateway)
    mirror._clock, mirror._wall = lambda: now, lambda: 1_767_225_600.0 - 3600  # an hour before 2026
    async with mirror:
        body = await gateway.stream()
        body.send(line("status", state="stale", ranges=[]), state(10, a="1"))
        body.send(line("status", state="stale", since="2026-01-01T00:00:00Z", ranges=[]))
        body.send(put("/c/a", "2", 11))
        await mirror.until(lambda found: found.revision == 11, HANG)
        assert mirror.age == 0
        body.send(line("status", state="stale", since="2026-01-01T00:00:00Z", age=12, ranges=[]), put("/c/a", "3", 12))
        await mirror.until(lambda found: found.revision == 12, HANG)
        assert mirror.age == 12
