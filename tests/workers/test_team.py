"""``app.workers.team``: two workers as one gateway, with a real etcd below."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shlex
import signal
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
import pytest_asyncio

from app.access.sessions import LIFETIME
from app.core.worker_report import Report
from app.gateway import Gateway
from app.settings import SettingsError, load
from app.workers.balance import Load
from app.workers.process import WorkerProcess
from app.workers.team import Team
from tests.integration.test_faults import all_hold, follow
from tests.integration.test_operations import commands
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, EtcdClient, etcd_client
from tests.support.gateway import GatewayProcess, start
from tests.support.metrics import gateway_metric
from tests.support.streams import watch
from tests.support.waiting import HANG, eventually
from tests.workers.test_hub import pids, team, watchers

pytestmark = [pytest.mark.etcd, pytest.mark.one_etcd, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(name="etcd", scope="module", loop_scope="module")
async def _etcd() -> AsyncIterator[EmbeddedEtcd]:
    """One etcd for all tests."""
    async with EmbeddedEtcd(args=ALONE) as etcd:
        yield etcd


@pytest_asyncio.fixture(name="both", scope="module", loop_scope="module")
async def _both(etcd: EmbeddedEtcd) -> AsyncIterator[GatewayProcess]:
    """One gateway for all tests."""
    running = await team(etcd, GATEWAY_MAX_SUBSCRIBERS="9", GATEWAY_MAX_FEEDS="3", GATEWAY_LINGER="2s")
    yield running
    assert await running.stop() == 0


@pytest_asyncio.fixture(name="kv", loop_scope="module")
async def _kv(etcd: EmbeddedEtcd) -> AsyncIterator[EtcdClient]:
    """A plain client of etcd."""
    async with etcd_client(etcd.endpoint) as client:
        yield client


@pytest_asyncio.fixture(name="http", loop_scope="module")
async def _http(both: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway."""
    async with httpx.AsyncClient(base_url=both.base) as client:
        yield client


async def feeds(http: httpx.AsyncClient, query: str = "") -> dict[str, list[dict[str, object]]]:
    """The answer of ``/v1/feeds``."""
    found: dict[str, list[dict[str, object]]] = (await http.get(f"/v1/feeds{query}")).json()
    return found


async def all_gone(http: httpx.AsyncClient, etcd: EmbeddedEtcd) -> None:
    """Wait until nobody follows anything."""

    async def so() -> bool:
        return await watchers(etcd) == 0 and (await feeds(http))["channels"] == []

    await eventually(so)


async def test_etcd_sees_one_watch(
    etcd: EmbeddedEtcd, both: GatewayProcess, kv: EtcdClient, http: httpx.AsyncClient
) -> None:
    """Both workers serve clients, every client has every change, and all of it is one watch at etcd."""
    await kv.put("/svc/a", "1")
    async with follow(both.base, 6) as followers:
        await kv.put("/svc/b", "2")
        await kv.delete("/svc/a")
        await eventually(lambda: all_hold(followers, kv))
        assert await watchers(etcd) == 1
        (feed,) = (await feeds(http))["feeds"]
        assert (feed["subscribers"], feed["lingering"], feed["held_by"]) == (6, False, [["prefix=/svc/"]])
        (channel,) = (await feeds(http, "?prefix=/svc/"))["channels"]
        listed = channel["subscriber_list"]
        assert isinstance(listed, list)
        assert len(listed) == 6
        assert await gateway_metric(http, "subscribers") == 6

    async def both_have_served() -> bool:
        # On a busy machine the hub may pass over a worker that has not had its turn.
        async with follow(both.base, 2):
            pass
        return {line["worker"] for line in both.lines_so_far if line["message"] == "stream end"} == {1, 2}

    await eventually(both_have_served)
    await all_gone(http, etcd)


async def test_the_limits_are_those_of_the_whole(
    etcd: EmbeddedEtcd, both: GatewayProcess, http: httpx.AsyncClient
) -> None:
    """Nine streams are nine, whichever worker has them; a range that lingers gives way to a new one."""
    async with follow(both.base, 9):
        refused = await http.get("/v1/watch?prefix=/svc/", headers={"Accept": "application/x-ndjson"})
        assert (refused.status_code, refused.json()["code"]) == (429, "too-many-subscribers")
    async with follow(both.base, 1, "/one/"), follow(both.base, 1, "/two/"), follow(both.base, 1, "/three/"):
        refused = await http.get("/v1/watch?prefix=/four/", headers={"Accept": "application/x-ndjson"})
        assert (refused.status_code, refused.json()["code"]) == (429, "too-many-feeds")
    async with follow(both.base, 1, "/four/"):
        assert await watchers(etcd) <= 3
    await all_gone(http, etcd)


async def test_a_dead_worker_is_replaced(
    etcd: EmbeddedEtcd, both: GatewayProcess, kv: EtcdClient, http: httpx.AsyncClient
) -> None:
    """Its clients resume at the other without a reset; what they followed is released; no counter becomes smaller."""
    await kv.put("/svc/a", "0")
    async with await watch(both.base, "prefix=/svc/") as stream:
        synced = (await stream.until("synced"))[-1]
    opened = await gateway_metric(http, "streams_opened_total")
    before = pids(both)
    for number in range(2):
        os.kill(before[number], signal.SIGKILL)
        written = await kv.put("/svc/a", str(number))  # which the hub may not have yet
        resumed = f"prefix=/svc/&last_event_id={synced.id}&min_revision={written}"
        async with await watch(both.base, resumed) as stream:
            events = await stream.until("synced")
            synced = events[-1]
            assert [event.type for event in events] == ["put", "synced"]

        async def replaced(number: int = number) -> bool:
            return pids(both)[number] != before[number] and await ready(both, http)

        await eventually(replaced)
    assert await gateway_metric(http, "streams_opened_total") >= opened
    await all_gone(http, etcd)


async def ready(both: GatewayProcess, http: httpx.AsyncClient) -> bool:
    """Whether both workers take connections."""
    async with follow(both.base, 4):
        (channel,) = (await feeds(http, "?prefix=/svc/"))["channels"]
        return channel["subscribers"] == 4


async def test_a_stopped_worker_keeps_nobody_waiting(both: GatewayProcess) -> None:
    """The other serves all connections that come after the hub has noticed, within a second, and both are counted."""
    stopped = pids(both)[0]
    os.kill(stopped, signal.SIGSTOP)

    async def served() -> bool:
        # Not by a connection that is kept, which may be at the stopped worker.
        async with httpx.AsyncClient(base_url=both.base, headers={"Connection": "close"}, timeout=5.0) as others:
            try:
                for _ in range(20):
                    assert (await others.get("/v1/kv?prefix=/svc/")).status_code == 200
                return await gateway_metric(others, "etcd_up") == 1
            except httpx.TimeoutException:
                return False

    try:
        await eventually(served)
    finally:
        with contextlib.suppress(ProcessLookupError):  # on a very slow machine, the hub has given it up
            os.kill(stopped, signal.SIGCONT)


async def test_the_commands_of_the_operations_page(etcd: EmbeddedEtcd) -> None:
    """A hub and its workers start with the flags of the page, on another port, and without our fork server."""
    (line,) = commands("workers").splitlines()
    flags = shlex.split(line)[2:]
    given = [etcd.endpoint if flag.startswith("http://") else "0" if flag == "8080" else flag for flag in flags]
    running = await start(*given, before=("env",))
    await running.listening()
    assert len(pids(running)) == 2
    assert await running.stop() == 0


async def test_a_worker_that_begins_later_refuses_every_cookie_of_an_ended_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also one that outlives the cookie with which the session was ended."""
    now = 1000.0
    monkeypatch.setattr("app.workers.team.time.time", lambda: now)
    hub = Team(Gateway(load({}), serves_workers=True), 0, "", {}, dict, clock=lambda: now, draw=lambda: 0.0)
    sender = WorkerProcess(1, hub._gateway.registry, hub, lambda: now)
    hub.tell_others(sender, {"do": "ended", "id": "one", "sealed_by": "key", "expires": now + 1})
    now += LIFETIME - 1
    hub.tell_others(sender, {"do": "ended", "id": "two", "sealed_by": "key", "expires": now + 1})
    assert list(hub._ended_sessions) == ["one", "two"]
    now += 2
    hub.tell_others(sender, {"do": "ended", "id": "three", "sealed_by": "key", "expires": now + 1})
    assert list(hub._ended_sessions) == ["two", "three"]


class Full:
    """A worker whose socket has no room for a while."""

    serving, leaving, load = True, False, Load(0, 0)

    def __init__(self, room: int) -> None:
        self.room = room

    def give(self, _connection: object, _port: object) -> bool:
        """Take a connection, if there is room."""
        self.room -= 1
        return self.room >= 0


async def test_a_worker_without_room_gets_the_next_connection() -> None:
    """The kernel may refuse a descriptor for a moment. A worker that was left out for that would stay so for ever."""
    first, second = Full(0), Full(1)
    team = Team(cast("Gateway", None), 2, "", {}, dict, clock=lambda: 0.0, draw=lambda: 0.0)
    team._members = cast("dict[int, WorkerProcess]", {1: first, 2: second})
    connection = cast("socket.socket", None)
    assert team.give(connection, "clients"), "the second has room"
    assert not team.give(connection, "clients")
    first.room = 1
    assert team.give(connection, "clients")


class Member:
    """A worker that answers for its reports, and may end."""

    serving = True
    last_report = Report({}, [])

    async def report(self, _only: object) -> Report:
        """Answer in the next turn."""
        await asyncio.sleep(0)
        return self.last_report


async def test_a_worker_that_ends_during_a_scrape_counts_once() -> None:
    """What it has counted is among what the ended ones have counted: together they would be twice as much."""
    members = {1: Member(), 2: Member()}
    members[2].last_report = Report({"of": 2}, [])
    team = Team(cast("Gateway", None), 2, "", {}, dict, clock=lambda: 0.0, draw=lambda: 0.0)
    team._members = cast("dict[int, WorkerProcess]", members)
    scrape = asyncio.create_task(team.reports())
    await asyncio.sleep(0)
    members[1].serving = False  # as ``_depart`` does, when it has added the last report to ``ended``
    assert await scrape == [members[2].last_report]


async def test_more_workers_than_the_system_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the setting."""

    async def no_descriptor(_team: Team, _number: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Team, "_start", no_descriptor)
    gateway = cast("Gateway", SimpleNamespace(fail=None))
    team = Team(gateway, 3, "", {}, dict, clock=lambda: 0.0, draw=lambda: 0.0)
    with pytest.raises(SettingsError, match="cannot start 3 workers: Too many open files; start fewer"):
        await team.start()
    await team.aclose()


async def test_a_worker_hears_the_hub_while_others_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hub that it does not hear, a worker says that its pins are stale. The hub began when all workers served."""
    heard = asyncio.Event()
    first = SimpleNamespace(check=heard.set)

    async def begin(team: Team, number: int) -> None:
        if number == 1:
            team._members[1] = cast("WorkerProcess", first)
        else:
            await heard.wait()
            raise OSError(errno.EMFILE, "the end of this test")

    monkeypatch.setattr(Team, "_start_first", begin)
    monkeypatch.setattr("app.workers.team.TICK", 0.0)
    gateway = cast("Gateway", SimpleNamespace(fail=None))
    team = Team(gateway, 2, "", {}, dict, clock=lambda: 0.0, draw=lambda: 0.0)
    async with asyncio.timeout(HANG):
        with pytest.raises(SettingsError, match="the end of this test"):
            await team.start()
    team._members.clear()
    await team.aclose()
