"""``app.workers.worker``: a worker that ends by itself. All else: ``test_hub`` and ``test_team``."""

from __future__ import annotations

import os
import signal

import httpx
import pytest

from tests.support.embedded import EmbeddedEtcd
from tests.support.streams import watch
from tests.support.waiting import eventually
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
        ended = [line for line in both.lines if line["message"] == "worker end"]
        return [line["status"] for line in ended] == [0] and pids(both)[0] != first

    await eventually(replaced)
    async with httpx.AsyncClient(base_url=both.base) as http:
        (feed,) = (await http.get("/v1/feeds")).json()["feeds"]
    assert feed["subscribers"] == 1
    for stream in streams:
        await stream.close()
    assert await both.stop() == 0
    assert pids(both)[1] == second
    assert [line for line in both.lines if line["level"] == "error"] == []
