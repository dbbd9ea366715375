"""The reference clients with the real gateway, while etcd and the gateway stop and restart."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.examples.test_mirrors import load_mirror
from tests.integration.test_faults import write
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import gateway
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd


@pytest.mark.one_etcd
async def test_mirror_py_survives_everything(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """After etcd is killed, and the gateway is stopped and restarted on the same port, the mirror is exact and live."""
    rng = random.Random(7)
    mirror: Any = None

    async def equal() -> bool:
        _revision, state = await kv.state("/svc/")
        found = {key: (item["value"], item["mod_revision"]) for (key, _), item in mirror.items.items()}
        expected = {key.decode(): (item.value.decode(), item.mod_revision) for key, item in state.items()}
        return mirror.state == "live" and found == expected

    await write(kv, rng, 30)
    async with gateway(etcd.endpoint) as server:
        port = server.port
        mirror = load_mirror().Mirror(server.base, "/svc/")
        following = asyncio.create_task(mirror.run())
        await eventually(equal)
        await etcd.kill()
        await etcd.restart()
        await write(kv, rng, 50)
        await eventually(equal)
    assert mirror.state != "live"
    await write(kv, rng, 50)
    async with gateway(etcd.endpoint, settings={"GATEWAY_PORT": str(port)}):
        await eventually(equal)
        await write(kv, rng, 50)
        await eventually(equal)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
