"""Packets that are silently lost: between the gateway and etcd, and between the gateway and a client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator

import pytest

from tests.integration.test_release import held_at_etcd
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import QUICK, STALE_SOON, GatewayProcess, start
from tests.support.namespace import Cable, ToHost, ToMachine, namespace
from tests.support.streams import watch, watch_synced
from tests.support.waiting import HANG, eventually

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, ("ip", "iptables"))),
        reason="NOT RUN: packets that are lost: needs root, iproute2 and iptables",
    ),
]


@contextlib.asynccontextmanager
async def on_another_host(
    etcd: EmbeddedEtcd, **settings: str
) -> AsyncIterator[tuple[GatewayProcess, str, Cable, Cable]]:
    """A gateway on the other host, its URL, its cable to etcd, and its cable to clients."""
    async with namespace(2) as other:
        to_etcd, to_clients = other.cables
        relay = ToMachine(to_etcd, etcd.endpoint)
        await relay.start()
        chosen = {"GATEWAY_HOST": "0.0.0.0", "GATEWAY_PORT": "0", "GATEWAY_ALLOW_PREFIXES": ""}
        running = await start(
            settings={**QUICK, **chosen, "GATEWAY_ETCD": relay.endpoint, **settings}, before=other.before
        )
        try:
            await running.listening()
            front = ToHost(to_clients, running.port)
            await front.start()
            try:
                yield running, front.endpoint, to_etcd, to_clients
            finally:
                await front.stop()
        finally:
            assert await running.stop() == 0, running.lines_so_far[-5:]
            await relay.stop()


async def test_the_machine_keeps_its_network() -> None:
    """The network of what runs beside these tests does not change."""
    before = socket.if_nameindex()
    async with namespace(1):
        assert socket.if_nameindex() == before


async def test_between_the_gateway_and_etcd(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """Subscribers are notified that their view is stale, and then get all that they have missed, without a reset."""
    async with (
        on_another_host(etcd, **STALE_SOON) as (_running, url, to_etcd, _),
        await watch_synced(url, "prefix=/svc/") as stream,
    ):
        await kv.put("/svc/a", "before")
        await stream.changes(1)
        await to_etcd.drop()
        await stream.until_status("stale")
        for n in range(20):
            await kv.put("/svc/a", str(n))
        await to_etcd.heal()
        seen = await stream.until_status("live")
        changes = [event for event in seen if event.type == "put"]
        changes += await stream.changes(20 - len(changes)) if len(changes) < 20 else []

    assert [event.data["value"] for event in changes] == [str(n) for n in range(20)]
    assert not [event for event in seen if event.type == "reset"]


@pytest.mark.parametrize("sink", ["fast", "portable"])
async def test_between_the_gateway_and_a_client(etcd: EmbeddedEtcd, sink: str) -> None:
    """A vanished client is disconnected although only heartbeats are sent to it; its watch is released, too."""
    settings = {"GATEWAY_SEND_TIMEOUT": "1s", "GATEWAY_SINK": sink}
    async with on_another_host(etcd, **settings) as (running, url, _, to_clients):
        stream = await watch(url, "prefix=/svc/")
        await stream.until("bookmark")
        assert await held_at_etcd(etcd) == (1, 1)
        await to_clients.drop()

        async def released() -> bool:
            return await held_at_etcd(etcd) == (0, 0)

        # The kernel itself would abort the connection after 15 minutes.
        await eventually(released)
        assert await running.stream_ends() == ["send-timeout"]
        await to_clients.heal()
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(stream.close(), HANG)
