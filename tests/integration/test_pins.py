"""Pins (``GATEWAY_PIN``) as operators and readers see them, in front of a real etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client
from tests.support.gateway import GatewayProcess, gateway
from tests.support.metrics import etcd_metric
from tests.support.secure import SecureEtcd, administered
from tests.support.streams import watch
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd

USER = "gateway"


@pytest.fixture(name="etcd")
async def _etcd() -> AsyncIterator[EmbeddedEtcd]:
    async with EmbeddedEtcd() as etcd:
        yield etcd


@pytest.fixture(name="etcd_kv")
async def _etcd_kv(etcd: EmbeddedEtcd) -> AsyncIterator[EtcdClient]:
    async with etcd_client(etcd.endpoint) as client:
        yield client


async def get(server: GatewayProcess, path: str) -> tuple[int, Any]:
    """The status and the parsed body."""
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"{server.base}{path}")
    return answer.status_code, answer.json()


async def ready(server: GatewayProcess) -> dict[str, Any]:
    """Return the body of /readyz once the gateway is ready."""

    async def so() -> bool:
        return (await get(server, "/readyz"))[0] == 200

    await eventually(so)
    body: dict[str, Any] = (await get(server, "/readyz"))[1]
    return body


async def pins_are(server: GatewayProcess, *states: str) -> bool:
    """Whether /v1/feeds shows the pins in these states."""
    return [pin["state"] for pin in (await get(server, "/v1/feeds"))[1]["pins"]] == [*states]


async def test_a_pin_is_one_watch_for_all_inside(etcd: EmbeddedEtcd, etcd_kv: EtcdClient) -> None:
    """Whatever clients ask for inside a pin, etcd has one watcher, before them and after them."""
    await etcd_kv.transact({"/svc/a/1": "1", "/svc/b/1": "1"})
    async with gateway(etcd.endpoint, settings={"GATEWAY_PIN": "/svc/"}) as server:
        assert "pins" not in await ready(server)
        assert await etcd_metric(etcd.endpoint, "etcd_debugging_mvcc_watcher_total") == 1
        streams = [
            await watch(server.base, query)
            for query in ("prefix=/svc/", "prefix=/svc/a/", "prefix=/svc/b/&key=/svc/a/1", "key=/svc/none")
        ]
        for stream in streams:
            await stream.until("synced")
        assert await etcd_metric(etcd.endpoint, "etcd_debugging_mvcc_watcher_total") == 1
        await etcd_kv.transact({"/svc/a/1": "2", "/svc/b/1": "2"})
        assert [len(await stream.changes(number)) for stream, number in zip(streams, (2, 1, 2), strict=False)]
        during = (await _metrics(server)).splitlines()
        assert {"etcd_watch_gateway_channels 4.0", "etcd_watch_gateway_channels_lingering 0.0"} <= {*during}
        assert {"etcd_watch_gateway_pins 1.0", "etcd_watch_gateway_pins_unavailable 0.0"} <= {*during}
        for stream in streams:
            await stream.close()

        async def released() -> bool:
            found = (await get(server, "/v1/feeds"))[1]
            return not found["channels"]

        await eventually(released)
        after = (await _metrics(server)).splitlines()
        assert {"etcd_watch_gateway_channels 0.0", "etcd_watch_gateway_feeds_lingering 0.0"} <= {*after}
        assert await etcd_metric(etcd.endpoint, "etcd_debugging_mvcc_watcher_total") == 1


async def test_a_pin_that_etcd_denies_is_named_and_others_are_served(tmp_path: Path) -> None:
    """Readiness does not wait for it. When somebody grants the role, the pin is served without a restart."""
    password = tmp_path / "password"
    password.write_text("hunter2")
    settings = {
        "GATEWAY_ETCD_USER": USER,
        "GATEWAY_ETCD_PASSWORD_FILE": str(password),
        "GATEWAY_PIN": "/svc/,/secret/",
    }
    async with SecureEtcd() as etcd, administered(etcd) as root:
        await root.add_user(USER, "hunter2", "/svc/")
        await root.put("/secret/a", "1")
        async with gateway(etcd.endpoint, settings=settings) as server:
            body = await ready(server)
            status, problem = await get(server, "/v1/watch?prefix=/secret/a/")
            named = await server.logged("pin unavailable")
            async with await watch(server.base, "prefix=/svc/x/") as stream:
                await stream.until("synced")
            await root.grant(USER, "/secret/")
            await eventually(lambda: pins_are(server, "held", "held"))
            async with await watch(server.base, "prefix=/secret/") as stream:
                assert [event.data.get("key") for event in await stream.until("synced")][1] == "/secret/a"

    assert body["status"] == "ok"
    (pin,) = body["pins"]
    assert (pin["range"], pin["state"]) == ("prefix=/secret/", "unavailable")
    assert "permission denied" in pin["trouble"]
    assert (status, problem["code"]) == (503, "pin-unavailable")
    assert [line["range"] for line in named] == ["prefix=/secret/"]


async def test_a_pin_that_is_too_large_is_named_and_others_are_served(etcd: EmbeddedEtcd, etcd_kv: EtcdClient) -> None:
    """Readiness does not wait for it, and its ranges get no watches of their own."""
    await etcd_kv.put("/svc/a", "1")
    for number in range(24):
        await etcd_kv.put(f"/large/{number}", "x" * (1 << 18))
    settings = {"GATEWAY_PIN": "/svc/,/large/", "GATEWAY_MAX_FEED_BYTES": "4MiB", "GATEWAY_LOG_BYTES": "1MiB"}
    async with gateway(etcd.endpoint, settings=settings) as server:
        body = await ready(server)
        status, problem = await get(server, "/v1/watch?key=/large/1")
        async with await watch(server.base, "key=/svc/a") as stream:
            await stream.until("synced")
        found = (await get(server, "/v1/feeds"))[1]
        samples = (await _metrics(server)).splitlines()

    (pin,) = body["pins"]
    assert (pin["range"], pin["state"]) == ("prefix=/large/", "unavailable")
    assert "do not fit" in pin["trouble"]
    assert (status, problem["code"]) == (503, "pin-unavailable")
    assert [pin["state"] for pin in found["pins"]] == ["held", "unavailable"]
    assert "etcd_watch_gateway_pins 2.0" in samples
    assert "etcd_watch_gateway_pins_unavailable 1.0" in samples


async def test_several_ranges_without_a_pin_need_a_newer_etcd(etcd: EmbeddedEtcd, etcd_kv: EtcdClient) -> None:
    """The refusal names the versions and the setting, is final for an EventSource too, and is counted."""
    await etcd_kv.transact({"/a/1": "1", "/b/1": "1"})
    async with gateway(etcd.endpoint, settings={"GATEWAY_PIN": "/pinned/"}) as server:
        await ready(server)
        async with httpx.AsyncClient(trust_env=False) as http:
            refused = await http.get(
                f"{server.base}/v1/watch?prefix=/a/&prefix=/pinned/b/", headers={"Accept": "text/event-stream"}
            )
        async with await watch(server.base, "prefix=/pinned/a/&prefix=/pinned/b/") as stream:
            await stream.until("synced")
        samples = (await _metrics(server)).splitlines()

    assert (refused.status_code, refused.json()["code"]) == (501, "ranges-need-pin")
    for word in ("3.5.8", "3.5.1", "GATEWAY_PIN"):
        assert word in refused.json()["detail"]
    assert 'etcd_watch_gateway_refusals_total{reason="ranges-need-pin"} 1.0' in samples


async def _metrics(server: GatewayProcess) -> str:
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(f"{server.base}/metrics")).text
