"""Measure what gzip costs and saves: clients that join a range whose state is JSON."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace

from benchmarks.cost import cpu_seconds
from benchmarks.load import load
from benchmarks.measure import SETTLE, Figures
from benchmarks.peers import Peer, get
from benchmarks.peers.etcd import WRITERS, gateway_at
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client

RANGE = "/services/"
# Clients that join a second: few enough that the loop is not full, so that it has work for all that it is asked.
PACE = 200
# Bytes of a state at most.
MOST = 64 << 20


def instance(number: int, draw: random.Random) -> tuple[str, str]:
    """The key and the value of an instance of a service, as service discovery writes them: about 300 bytes of JSON."""
    value = {
        "address": f"10.{number % 256}.{number // 256 % 256}.{draw.randrange(256)}:{8000 + number % 100}",
        "weight": draw.randrange(1, 10),
        "zone": f"eu-west-1{'abc'[number % 3]}",
        "version": f"1.{draw.randrange(20)}.{draw.randrange(10)}",
        "healthy": True,
        "pod": f"svc-{draw.getrandbits(40):010x}-{draw.getrandbits(20):05x}",
    }
    return f"{RANGE}app-{number // 20:04}/instances/{number:06}", json.dumps(value)


async def fill(kv: EtcdClient, keys: int) -> None:
    """Put the state."""
    draw = random.Random(1)
    left = iter([instance(number, draw) for number in range(keys)])

    async def write() -> None:
        for key, value in left:
            await kv.put(key, value)

    await asyncio.gather(*(write() for _ in range(WRITERS)))


async def bytes_of_a_state(peer: Peer) -> int:
    """Join once, and count the bytes of the body up to ``synced``, which is stored, so that its text can be found."""
    reader, writer = await asyncio.open_connection("127.0.0.1", peer.port, limit=MOST)
    writer.write(peer.request)
    await reader.readuntil(b"\r\n\r\n")
    size = len(await reader.readuntil(b"event: synced"))
    writer.close()
    return size


async def joiners(clients: int, keys: int, *, gzip: bool) -> Figures:
    """Let *clients* clients join a warm range of *keys* keys, after the first one."""
    settings = {"GATEWAY_GZIP_PREFIXES": RANGE}
    async with (
        EmbeddedEtcd() as etcd,
        etcd_client(etcd.endpoint) as kv,
        gateway_at(etcd, settings) as peer,
    ):
        await fill(kv, keys)
        # Somebody who does not take the state keeps the range warm, and nothing of it is encoded yet.
        async with load(replace(peer, request=get(f"/v1/watch?prefix={RANGE}&snapshot=0")), 1):
            await asyncio.sleep(SETTLE)
            request = get(f"/v1/watch?prefix={RANGE}", coding="gzip" if gzip else "")
            of_range = replace(peer, request=request)
            used = cpu_seconds(peer.pid)
            size = await bytes_of_a_state(of_range)
            await asyncio.sleep(SETTLE)
            first = cpu_seconds(peer.pid) - used
            used = cpu_seconds(peer.pid)
            async with load(of_range, clients, joins_per_second=PACE):
                used = cpu_seconds(peer.pid) - used
    return {
        "bytes of a state": size,
        "CPU of a later client (us)": 1e6 * used / clients,
        "CPU of the first (ms)": 1e3 * first,
    }
