"""Cursors from earlier releases resume on this one.

``earlier_cursors.json`` holds, for each release, the cursor that it gave out for each watch and read. A cursor contains
the cluster's id. The id follows from the names below, so the test rebuilds that cluster and its history. Never change a
recorded cursor: it is in somebody's browser. ``python -m tests.integration.test_earlier_cursors RELEASE`` records the
cursors of the present code.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.dev.etcd import Place, free_ports
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client
from tests.support.gateway import GatewayProcess, gateway
from tests.support.streams import request, watch

pytestmark = pytest.mark.etcd

RECORDED = Path(__file__).with_name("earlier_cursors.json")
# The cluster's id is computed from these. The peer address is only a name: nothing listens on it.
NAME = "recorded"
PEER_URL = "http://127.0.0.1:2380"
KEYS = (b"/svc/a", b"/svc/b", b"/svc/\xff", b"/svc/\xc3\xa9", b"/svc/100%", b"/")
QUERIES = (
    "prefix=",
    "prefix=/",
    "prefix=/svc/",
    "prefix=%2Fsvc%2F",
    "prefix=/svc/%ff",
    "prefix=/svc/%C3%A9",
    "prefix=/svc/100%25",
    "prefix=/svc/&encoding=base64",
    "prefix=/svc/&encoding=auto",
    "key=/svc/a",
    "key=/svc/%ff&encoding=base64",
)
EPOCHS = ("", "restored-2026")


@asynccontextmanager
async def same_cluster() -> AsyncIterator[EmbeddedEtcd]:
    """An empty etcd with the cluster id of the recording."""
    etcd = EmbeddedEtcd(args=[f"--initial-advertise-peer-urls={PEER_URL}"])
    try:
        await etcd.launch(Place(NAME, NAME, *free_ports(2)), f"{NAME}={PEER_URL}")
        await etcd.wait_healthy()
        yield etcd
    finally:
        await etcd.stop()


async def write(kv: EtcdClient, value: str) -> None:
    """Write each key, in one revision each."""
    for key in KEYS:
        await kv.put(key, value)


async def recorded(server: GatewayProcess) -> dict[str, list[str]]:
    """The cursors that the gateway gives out now, by path and query: a stream's last cursor, and a read's."""
    found: dict[str, list[str]] = {}
    for query in QUERIES:
        async with await watch(server.base, query) as stream:
            await stream.until("synced")
            assert stream.last_id is not None
        answer = await request(f"{server.base}/v1/kv?{query}")
        await answer.close()
        found[query] = [stream.last_id, json.loads(answer.body)["cursor"]]
    return found


@pytest.mark.parametrize("epoch", EPOCHS)
async def test_recorded_cursors_resume(epoch: str) -> None:
    """Each recorded cursor brings the later changes, and no reset."""
    releases: dict[str, dict[str, dict[str, list[str]]]] = json.loads(RECORDED.read_text(encoding="utf-8"))
    async with AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(same_cluster())
        kv = await stack.enter_async_context(etcd_client(etcd.endpoint))
        await write(kv, "1")
        server = await stack.enter_async_context(gateway(etcd.endpoint, settings={"GATEWAY_EPOCH": epoch}))
        # Follow each range from before: then its log has the later changes, even if etcd's progress is not trusted.
        for query in QUERIES:
            stream = await stack.enter_async_context(await watch(server.base, query))
            await stream.until("synced")
        await write(kv, "2")

        found = {
            (release, query, cursor): await _resumed(server, query, cursor)
            for release, epochs in releases.items()
            for query, cursors in epochs[epoch].items()
            for cursor in cursors
        }

    assert found == {(release, query, cursor): _expected(query) for release, query, cursor in found}
    assert {query for _release, query, _cursor in found} == set(QUERIES)


async def _resumed(server: GatewayProcess, query: str, cursor: str) -> list[tuple[str, int]]:
    """The types and revisions that a client with *cursor* gets, until the range's last change."""
    found: list[tuple[str, int]] = []
    async with await watch(server.base, query, {"Last-Event-ID": cursor}) as stream:
        while len(found) < len(_expected(query)):
            event = await stream.next_event()
            assert event is not None, found
            if event.type in ("reset", "put", "delete"):
                found.append((event.type, event.data.get("mod_revision", 0)))
    return found


def _expected(query: str) -> list[tuple[str, int]]:
    """The second writes to the range: etcd's first revision is 2, and each key was written once before."""
    names: dict[str, Any] = {
        "prefix=": KEYS,
        "prefix=/": KEYS,
        "prefix=/svc/%ff": KEYS[2:3],
        "prefix=/svc/%C3%A9": KEYS[3:4],
        "prefix=/svc/100%25": KEYS[4:5],
        "key=/svc/a": KEYS[:1],
        "key=/svc/%ff&encoding=base64": KEYS[2:3],
    }
    return [("put", 2 + len(KEYS) + KEYS.index(key)) for key in names.get(query, KEYS[:5])]


async def _record(release: str) -> None:
    releases = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}
    releases[release] = {}
    async with same_cluster() as etcd, etcd_client(etcd.endpoint) as kv:
        await write(kv, "1")
        for epoch in EPOCHS:
            async with gateway(etcd.endpoint, settings={"GATEWAY_EPOCH": epoch}) as server:
                releases[release][epoch] = await recorded(server)
    RECORDED.write_text(json.dumps(releases, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(_record(sys.argv[1]))
