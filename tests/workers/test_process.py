"""``app.workers.process``: one worker, as the hub sees it. Its life in a team: ``test_team``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from app.core.merged_metrics import Family, Sample
from app.core.quotas import Quotas, QuotaSettings
from app.core.worker_report import Report
from app.workers.admissions import Admissions
from app.workers.descriptor_passing import ConnectionSender
from app.workers.link import LAST_REPORT, Link, Message
from app.workers.process import SILENCE, START_SILENCE, WorkerProcess
from tests.support.waiting import HANG, soon
from tests.watch.world import World

REPORT = Report({"feeds": []}, [])


class Others:
    """The team, which hears what concerns others."""

    def __init__(self) -> None:
        self.told: list[Message] = []

    def tell_others(self, _sender: WorkerProcess, message: Message) -> None:
        """See ``Others``."""
        self.told.append(message)

    def expire(self) -> None:
        """See ``Others``."""
        raise AssertionError("there is room")


class Scene:
    """A worker without a process, whose messages a test writes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.others = Others()
        self.world = World(linger=0.0, serves_workers=True)
        self.worker = WorkerProcess(1, self.world.registry, self.others, lambda: self.now)
        self.signals: list[int] = []
        self.heard: list[Message] = []
        self.far: Link


@asynccontextmanager
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """See ``Scene``."""
    found = Scene()
    mine, theirs = socket.socketpair()
    for sock in (mine, theirs):
        sock.setblocking(False)
    passed, far = socket.socketpair()
    worker = found.worker
    monkeypatch.setattr(worker, "signal", found.signals.append)
    worker._sender = ConnectionSender(passed, lambda: found.now)
    worker._link = await Link.open(mine, worker._take, worker.ready.set)
    worker._admissions = Admissions(found.world.registry, worker._link, found.others.expire)
    found.far = await Link.open(theirs, found.heard.append, lambda: None)
    yield found
    assert worker.release() == []
    found.far.close()
    far.close()
    await found.world.empty()


async def test_a_silent_worker_is_killed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It serves nobody. One that only takes its time to start is not."""
    async with scene(monkeypatch) as found:
        for _ in range(2 * SILENCE):
            found.worker.check()
        assert found.signals == []
        found.now += 2.0
        assert found.worker.load.waiting == 2.0, "a stopped worker is noticed before a connection is passed to it"
        found.far.send("ready")
        await soon(found.worker.ready.is_set)
        await soon(lambda: {"do": "ping"} in found.heard)
        found.far.send("load", taken=0, open=0)
        await soon(lambda: found.worker.load.waiting == 0.0)
        for _ in range(SILENCE):
            found.worker.check()
        assert found.signals == []
        with caplog.at_level(logging.ERROR):
            found.worker.check()
        assert found.signals == [signal.SIGKILL]
        assert "does not answer" in caplog.text


async def test_a_worker_that_hangs_at_its_start_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else notices it: the others serve, and the team has one worker less for ever."""
    async with scene(monkeypatch) as found:
        for _ in range(START_SILENCE):
            found.worker.check()
        assert found.signals == []
        found.worker.check()
        assert found.signals == [signal.SIGKILL]


async def test_nobody_kills_a_worker_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not replaced while the system gives no process, and the log must not say so every second."""
    async with scene(monkeypatch) as found:
        found.worker.release()
        for _ in range(START_SILENCE + 1):
            found.worker.check()
        assert found.signals == []


async def test_the_pings_of_a_slow_start_do_not_count_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has become ready has as much time for its answers as any other."""
    async with scene(monkeypatch) as found:
        for _ in range(START_SILENCE):
            found.worker.check()
        found.far.send("ready")
        await soon(found.worker.ready.is_set)
        for _ in range(SILENCE):
            found.worker.check()
        assert found.signals == []


async def test_a_hub_that_was_frozen_kills_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """`docker pause` freezes hub and workers: no worker was asked meanwhile."""
    async with scene(monkeypatch) as found:
        found.far.send("ready")
        await soon(found.worker.ready.is_set)
        found.worker.check()
        found.now += 3600.0
        found.worker.check()
        assert found.signals == []


async def test_what_a_worker_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its load, its streams, its reports, and what concerns others."""
    async with scene(monkeypatch) as found:
        worker = found.worker
        found.far.send("admit", id=1, ranges=[["prefix", "/svc/"]], caller=None, has_cursor=False)
        found.far.send("load", taken=0, open=5)
        found.far.send("failed", address="10.0.0.1")
        found.far.send("draining")
        await soon(lambda: worker.leaving)
        assert (worker.load.streams, worker.load.connections) == (1, 5)
        assert found.others.told == [{"do": "failed", "address": "10.0.0.1"}]
        asked = asyncio.create_task(worker.report(None))
        await soon(lambda: any(one["do"] == "report" for one in found.heard))
        found.far.send("report", id=1, **REPORT.encode())
        assert await asked == worker.last_report == REPORT
        last = Report({"feeds": []}, [Family("count", "counter", "", (Sample("count_total", (), 3.0),))])
        found.far.send("report", id=LAST_REPORT, **last.encode())
        await soon(lambda: worker.last_report == last)
        found.far.send("release", id=1)
        await soon(lambda: worker.load.streams == 0)


async def test_wrong_credentials_count_against_the_streams_of_their_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in one process. The hub passed them on, and did not count them: an address had twice its rate."""
    caller = ["token:a", "10.0.0.1"]
    async with scene(monkeypatch) as found:
        found.world.registry.quotas = Quotas(QuotaSettings(address_joins=2))
        monkeypatch.setattr(found.world.registry, "_clock", lambda: found.now)
        found.far.send("failed", address="10.0.0.1")
        for number in (1, 2):
            found.far.send("admit", id=number, ranges=[["prefix", "/svc/"]], caller=caller, has_cursor=False)
        await soon(lambda: len(found.heard) == 2)
        assert [(one["do"], one.get("code")) for one in found.heard] == [
            ("admitted", None),
            ("refused", "address-joins"),
        ]
        assert found.others.told == [{"do": "failed", "address": "10.0.0.1"}]


async def test_nobody_waits_for_the_report_of_a_dead_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asked for it takes the last one."""
    async with scene(monkeypatch) as found:
        asked = asyncio.create_task(found.worker.report(None))
        await soon(lambda: len(found.heard) > 0)
        found.worker.release()
        with pytest.raises(asyncio.CancelledError):
            await asked


async def test_a_report_of_some_ranges_does_not_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last report counts of a worker that does not answer."""
    async with scene(monkeypatch) as found:
        for number, only in ((1, None), (2, [["prefix", "/svc/"]])):
            asked = asyncio.create_task(found.worker.report(only))
            await soon(lambda number=number: len(found.heard) == number)  # type: ignore[misc]
            found.far.send("report", id=number, feeds={"feeds": [number]}, metrics=[])
            assert (await asked).feeds == {"feeds": [number]}
        assert found.worker.last_report == Report({"feeds": [1]}, [])


async def test_the_last_report_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub asks a worker that is about to end, and reads both answers at once: the later one has all counts."""
    async with scene(monkeypatch) as found:
        asked = asyncio.create_task(found.worker.report(None))
        await soon(lambda: len(found.heard) > 0)
        for number, of in ((1, "asked"), (LAST_REPORT, "last")):
            found.worker._take({"do": "report", "id": number, "feeds": {"feeds": [of]}, "metrics": []})
        assert (await asked).feeds == {"feeds": ["asked"]}
        assert found.worker.last_report == Report({"feeds": ["last"]}, [])


async def test_a_worker_imports_from_where_the_hub_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from the current directory, whose modules may have the names of libraries."""
    given: list[tuple[list[str], dict[str, str]]] = []

    def none(words: list[str], *, env: Mapping[str, str] = os.environ, **_options: object) -> None:
        given.append((words, dict(env)))
        raise OSError("no process")

    worker = Scene().worker
    monkeypatch.setattr(subprocess, "Popen", none)
    with pytest.raises(OSError, match="no process"):
        await worker.start({}, "/nowhere", dict, {})
    ((words, environment),) = given
    assert "-P" in words[: words.index("-m")]
    assert environment["PYTHONPATH"].split(os.pathsep) == sys.path


async def test_who_waits_for_the_end_may_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own end cancels those who wait, and then waits itself. It found a cancelled task, and raised that."""
    async with scene(monkeypatch) as found:
        over: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def end() -> int:
            return await over

        found.worker._ended = asyncio.create_task(end())
        first, second = (asyncio.create_task(found.worker.until_ended()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        over.set_result(3)
        assert await second == await found.worker.until_ended() == 3
        assert first.cancelled()


@pytest.mark.process
async def test_an_interrupted_start_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else knows a process whose start was cancelled."""

    async def never(*_arguments: object) -> Link:
        opening.set()
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]  # never done

    opening = asyncio.Event()
    monkeypatch.setattr(Link, "open", never)
    worker = Scene().worker
    starting = asyncio.create_task(worker.start({}, "", dict, {}))
    async with asyncio.timeout(HANG):
        await opening.wait()
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    assert worker._process.returncode == -signal.SIGKILL
