"""Probes and metrics, requested without a server."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx
import pytest

from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import eventually

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
NOWHERE = "http://127.0.0.1:1"


def client(gateway: Gateway) -> httpx.AsyncClient:
    """A client of the gateway's app."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(gateway=gateway)), base_url="http://x")


@pytest.fixture(name="http")
async def _http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with client(gateway) as http:

        async def ready() -> bool:
            return (await http.get("/readyz")).status_code == 200

        await eventually(ready)
        yield http


async def test_alive(http: httpx.AsyncClient, gateway: Gateway) -> None:
    """The gateway is alive until a task that serving needs has died."""
    answer = await http.get("/livez")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    gateway.broken.set()
    broken = await http.get("/livez")
    gateway.broken.clear()

    assert (broken.status_code, broken.json()) == (503, {"status": "broken: see the log"})
    assert broken.headers["cache-control"] == "no-store"


async def test_ready(http: httpx.AsyncClient, gateway: Gateway, fake: FakeEtcd) -> None:
    """The gateway is ready once it has reached etcd, and no longer when it is about to stop."""

    async def connected() -> bool:  # the first answer of etcd makes it ready, while it is still connecting
        return gateway.upstream.condition.state == "ready"

    await eventually(connected)
    answer = (await http.get("/readyz")).json()
    gateway.registry.draining = True
    draining = await http.get("/readyz")
    alive = await http.get("/livez")
    gateway.registry.draining = False

    assert INSTANT.fullmatch(answer["etcd"].pop("since"))
    assert answer == {"status": "ok", "etcd": {"endpoint": fake.endpoint, "state": "ready"}}
    assert (draining.status_code, draining.json()["status"]) == (503, "draining")
    assert alive.status_code == 200


async def test_not_ready_before_etcd_was_in_reach() -> None:
    """A gateway that has not reached etcd is alive, but not ready, and names the endpoint and the reason."""
    gateway = Gateway(load({"etcd": NOWHERE}))
    async with gateway.running(), client(gateway) as http:

        async def down() -> bool:
            return bool((await http.get("/readyz")).json()["etcd"]["state"] == "down")

        await eventually(down)
        answer = await http.get("/readyz")
        alive = await http.get("/livez")

    assert (answer.status_code, answer.json()["status"]) == (503, "waiting for etcd")
    assert answer.json()["etcd"]["endpoint"] == NOWHERE
    assert answer.json()["etcd"]["reason"]
    assert alive.status_code == 200


async def test_ready_when_each_pin_was_live_once(fake: FakeEtcd) -> None:
    """Not before: after a rollout, clients must come to an instance that has the pinned state. Never again after."""
    gateway = Gateway(load({"etcd": fake.endpoint, "pin": "/svc/,/config/"}))
    fake.hold_ranges()
    async with gateway.running(), client(gateway) as http:

        async def waits() -> bool:
            answer = await http.get("/readyz")
            return bool((answer.status_code, answer.json()["status"]) == (503, "waiting for pins"))

        await eventually(waits)
        waiting = (await http.get("/readyz")).json()
        fake.release_ranges()

        async def ready() -> bool:
            return (await http.get("/readyz")).status_code == 200

        await eventually(ready)
        first = (await http.get("/readyz")).json()
        fake.hold_ranges()
        gateway.registry.feeds.restored()
        later = await http.get("/readyz")
        fake.release_ranges()

    assert waiting["pins"] == [
        {"range": "prefix=/svc/", "state": "waiting"}, {"range": "prefix=/config/", "state": "waiting"},
    ]  # fmt: skip
    assert (first["status"], "pins" in first) == ("ok", False)
    assert (later.status_code, "pins" in later.json()) == (200, False)


async def test_metrics(http: httpx.AsyncClient) -> None:
    """The metrics have Prometheus' format, each name once."""
    answer = await http.get("/metrics")
    names = re.findall(r"^# TYPE (\S+)", answer.text, re.MULTILINE)

    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert len(names) == len(set(names))
    assert "etcd_watch_gateway_subscribers" in names
