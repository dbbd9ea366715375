"""Steps of the wall clock, as at a correction, on a resumed laptop or in a migrated machine, have no effect."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.test_release import held_at_etcd
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import QUICK, start
from tests.support.streams import watch
from tests.support.waiting import eventually
from tests.support.wallclock import HOUR, WallClock, library

pytestmark = pytest.mark.etcd

# Each of these times is far shorter than the step, and far longer than the test.
SETTINGS = {
    **QUICK,
    "GATEWAY_LINGER": "30m",
    "GATEWAY_LOG_AGE": "30m",
    "GATEWAY_MAX_AGE": "45m",
    "GATEWAY_SEND_TIMEOUT": "30m",
    "GATEWAY_STALE_AFTER": "10m",
    "GATEWAY_SYNC_TIMEOUT": "10m",
}


@pytest.mark.one_etcd
@pytest.mark.skipif(library() is None, reason="NOT RUN: a wall clock that steps: faketime is not installed")
async def test_steps_of_the_wall_clock(etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path) -> None:
    """Staleness, linger, heartbeats, the log's age and a stream's age do not depend on the wall clock."""
    clock = WallClock(tmp_path / "offset")
    before = ("env", *(f"{name}={text}" for name, text in clock.environment.items()))
    settings = {**SETTINGS, "GATEWAY_PORT": "0", "GATEWAY_ETCD": etcd.endpoint}
    running = await start(settings=settings, before=before)
    try:
        await running.listening()
        async with (
            httpx.AsyncClient(base_url=running.base, trust_env=False) as http,
            await watch(running.base, "prefix=/svc/") as stream,
        ):

            async def feeds() -> dict[str, Any]:
                return {feed["range"]: feed for feed in (await http.get("/v1/feeds")).json()["feeds"]}

            async def lingers() -> bool:
                return bool((await feeds())["prefix=/lingers/"]["lingering"])

            await stream.until("synced")
            async with await watch(running.base, "prefix=/lingers/") as left:
                await left.until("synced")
            await eventually(lingers)
            first = (await feeds())["prefix=/svc/"]
            cursor = stream.last_id
            written = []
            for turn, offset in enumerate((HOUR, 0, -HOUR, HOUR)):
                clock.step(offset)
                # A feed that starts now shows its start by the gateway's wall clock, so the step has taken effect.
                async with await watch(running.base, f"prefix=/new/{turn}/") as new:
                    await new.until("synced")
                shown = seconds((await feeds())[f"prefix=/new/{turn}/"]) - seconds(first)
                assert offset - 1 <= shown <= offset + HOUR / 2

                written.append(await kv.put("/svc/a", str(turn)))
                events = await stream.until("bookmark")
                while not [event for event in events if event.type == "put"]:
                    events += await stream.until("bookmark")
                assert [event.data["mod_revision"] for event in events if event.type == "put"] == written[-1:]
                assert {event.data["state"] for event in events if event.type == "bookmark"} == {"live"}
                assert {event.type for event in events} == {"put", "bookmark"}
                answer = await http.get("/v1/kv?prefix=/svc/")
                assert [item["mod_revision"] for item in answer.json()["kvs"]] == written[-1:]
                async with await watch(running.base, "prefix=/svc/", {"Last-Event-ID": cursor or ""}) as again:
                    found = await again.until("synced")
                assert [event.data.get("mod_revision") for event in found[:-1]] == written
                assert await lingers()
            assert await held_at_etcd(etcd) == (6, 1)
    finally:
        status = await running.stop()
    # The lingering and the followed feeds: none was started again.
    starts = [line["range"] for line in running.lines if line["message"] == "feed start"]
    assert len(starts) == len(set(starts)) == 6
    assert not running.other, "".join(running.other)
    assert status == 0
    said = [line["message"] for line in running.lines if line["level"] != "info"]
    # Warnings about etcd's version and about this machine's limit of open files are expected.
    known = ("upgrade", "GATEWAY_MAX_SUBSCRIBERS")
    assert [message for message in said if not message.endswith(known) and "version" not in message] == []


def seconds(feed: dict[str, Any]) -> float:
    """The feed's start, by the gateway's wall clock."""
    return datetime.datetime.fromisoformat(feed["started"]).timestamp()
