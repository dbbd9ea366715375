"""``app.workers.worker``: a worker that ends by itself. All else: ``test_hub`` and ``test_team``."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import httpx
import pytest

from app.settings import SettingsError, load
from app.workers.link import Link, Message
from app.workers.worker import Worker
from tests.support.embedded import EmbeddedEtcd
from tests.support.metrics import gateway_metric
from tests.support.streams import watch
from tests.support.waiting import HANG, eventually
from tests.workers.test_hub import pids, team

pytestmark = [pytest.mark.etcd, pytest.mark.one_etcd]


async def test_a_worker_is_told_to_stop(etcd: EmbeddedEtcd) -> None:
    """It drains, and is replaced; a terminal's Ctrl-C, which all processes hear, does nothing to a worker."""
    both = await team(etcd)
    first, second = pids(both)
    os.kill(second, signal.SIGINT)
    os.kill(second, signal.SIGHUP)
    streams = [await watch(both.base, "prefix=/svc/") for _ in range(2)]
    for stream in streams:
        await stream.until("synced")
    os.kill(first, signal.SIGTERM)

    async def replaced() -> bool:
        ended = [line for line in both.lines_so_far if line["message"] == "worker end"]
        return [line["status"] for line in ended] == [0] and pids(both)[0] != first

    await eventually(replaced)
    async with httpx.AsyncClient(base_url=both.base) as http:
        (feed,) = (await http.get("/v1/feeds")).json()["feeds"]
        assert await gateway_metric(http, "streams_opened_total") == 2, "nobody had asked the worker before it ended"
        metrics = (await http.get("/metrics")).text
    assert feed["subscribers"] == 1
    assert 'etcd_watch_gateway_streams_closed_total{reason="drain"} 1.0\n' in metrics
    for stream in streams:
        await stream.close()
    assert await both.stop() == 0
    assert pids(both)[1] == second
    assert [line for line in both.lines if line["level"] == "error"] == []


async def test_what_is_said_while_a_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts when the worker serves: otherwise a session that has ended meanwhile would go on there."""
    mine, theirs = socket.socketpair()
    passed, far = socket.socketpair()
    worker = Worker(passed, "/nowhere/hub")
    taken: list[Message] = []
    monkeypatch.setattr(worker, "_take", taken.append)
    monkeypatch.setattr(worker, "_look", lambda: None)
    said: Message = {"do": "ended", "id": "1", "sealed_by": "k", "expires": 1.0}
    worker._take_first(said)
    mine.setblocking(False)
    worker._link = await Link.open(mine, worker._take_first, lambda: None)
    worker._begin()
    assert taken == [said]
    worker._stop_receiving()
    worker._link.close()
    for sock in (theirs, passed, far):
        sock.close()


async def test_a_file_that_cannot_be_used_when_a_worker_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker lets the hub go, and its process ends, so that the hub tries again: the file may be mended.

    With warnings as errors, uvloop waited for the open link for ever. When each worker had died, nobody served.
    """
    for name in ("logs.install", "return_large_blocks"):
        monkeypatch.setattr(f"app.workers.worker.{name}", lambda *_args, **_named: None)
    policy = tmp_path / "policy.yaml"
    policy.write_text("roles: [")
    mine, theirs = socket.socketpair()
    passed, far = socket.socketpair()
    ended = asyncio.Event()
    for sock in (mine, theirs):
        sock.setblocking(False)
    hub = await Link.open(theirs, lambda _message: None, ended.set)
    settings = load({"policy_file": str(policy), "log_level": "debug"}).model_dump(mode="json")
    hub.send("settings", settings=settings, number=1, contents={}, ended=[])
    with pytest.raises(SettingsError, match="is not YAML"):
        await Worker(passed, "/nowhere/hub").run(mine)
    async with asyncio.timeout(HANG):
        await ended.wait()
    hub.close()
    for sock in (passed, far):
        sock.close()
