"""The memory budget: nothing stays counted however a read, a snapshot or a stream ends, and nothing counts twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest

from app.api.kv_etcd import EtcdReads
from app.api.kv_request import parse
from app.core.budget import Use
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.asgi_client import Client, swallow, synced
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd

BOUND = 16 << 20


@contextlib.asynccontextmanager
async def running(etcd: EmbeddedEtcd, **settings: object) -> AsyncIterator[Gateway]:
    """A gateway in this process; at the end its budget holds nothing."""
    gateway = Gateway(load({"etcd": etcd.endpoint, "linger": 0, "max_feed_bytes": BOUND, **settings}))
    async with gateway.running():
        yield gateway
        await eventually(lambda: nothing_held(gateway))


async def nothing_held(gateway: Gateway) -> bool:
    """Whether the budget is empty, inside and outside, and nobody waits for it."""
    budget = gateway.budget
    return not (budget.held or budget.paged or budget.outside) and not any(budget.waiting(use) for use in Use)


def client(gateway: Gateway) -> httpx.AsyncClient:
    """A client of the gateway's app, without a socket."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(gateway=gateway)), base_url="http://x")


async def fill(kv: EtcdClient, prefix: str, count: int, size: int) -> None:
    """Put *count* values of *size* bytes."""
    for number in range(count):
        await kv.put(f"{prefix}{number:04}", "x" * size)


async def test_reads(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """Lists, keys, counts, absent keys, expired pages, reads that etcd does not answer, and cancelled reads leave
    nothing counted.
    """
    await fill(kv, "/b/", 20, 100_000)
    async with running(etcd) as gateway, client(gateway) as http:
        for query, status in (
            ("prefix=/b/", 200),
            ("prefix=/b/&keys_only=1", 200),
            ("prefix=/b/&count_only=1", 200),
            ("key=/b/0000", 200),
            ("key=/none", 404),
            ("prefix=/b/&consistency=feed", 200),
            ("prefix=/b/&consistency=feed&limit=3&encoding=base64", 200),
            ("prefix=/b/&consistency=feed&count_only=1", 200),
            ("key=/b/0000&consistency=feed", 200),
            ("key=/none&consistency=feed", 404),
        ):
            assert (await http.get(f"/v1/kv?{query}")).status_code == status
        page = (await http.get("/v1/kv?prefix=/b/&limit=3")).json()["next_page"]
        await kv.compact(await kv.put("/other", "1"))
        assert (await http.get(f"/v1/kv?prefix=/b/&page={page}")).status_code == 410
        await eventually(lambda: nothing_held(gateway))
        etcd.sigstop()
        reading = [asyncio.create_task(http.get(f"/v1/kv?prefix=/b/&limit={n}")) for n in range(1, 30)]
        await eventually(lambda: asks(gateway))
        for task in reading[::2]:
            task.cancel()
        etcd.sigcont()
        await asyncio.gather(*reading, return_exceptions=True)


async def asks(gateway: Gateway) -> bool:
    """Whether a page is held while other reads wait."""
    return bool(gateway.budget.holds(Use.PAGE)) and gateway.budget.waiting(Use.ANSWER) > 0


async def test_equal_reads_are_one_body(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """Equal reads share one body, which stays counted until the last of them has released it."""
    await fill(kv, "/b/", 20, 100_000)
    async with running(etcd) as gateway:
        reads, asked = EtcdReads(gateway), parse(b"prefix=/b/")
        shared = [reads.read(asked) for _ in range(10)]
        answers = await asyncio.gather(*shared)
        distinct = set(answers)
        assert len(distinct) == 1
        size = distinct.pop().size
        assert size > 20 * 100_000
        assert gateway.budget.of(Use.ANSWER) == size
        del answers[1:]
        assert gateway.budget.of(Use.ANSWER) == size
        answers.clear()
        await eventually(lambda: nothing_held(gateway))


async def test_an_answer_ends_early_where_memory_is_short(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """An answer that is short of memory ends early, with a page token; all pages together are the whole list, once."""
    await fill(kv, "/b/", 60, 100_000)
    async with running(etcd) as gateway, client(gateway) as http:
        found: list[str] = []
        pages, token = 0, ""
        while True:
            body = (await http.get(f"/v1/kv?prefix=/b/{token}")).json()
            assert body["count"] == 60
            found += [item["key"] for item in body["kvs"]]
            pages += 1
            if "next_page" not in body:
                break
            token = f"&page={body['next_page']}"
    assert found == [f"/b/{number:04}" for number in range(60)]
    assert pages > 1  # 6 MB do not fit in a quarter of 16 MiB


async def test_reads_from_memory_are_counted(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A body from memory counts beside the view; where memory is short it ends early, and all pages are the list."""
    await fill(kv, "/b/", 60, 100_000)
    async with running(etcd, linger=60) as gateway, client(gateway) as http:
        found: list[str] = []
        pages, token = 0, ""
        while True:
            body = (await http.get(f"/v1/kv?prefix=/b/&consistency=feed{token}")).json()
            assert body["count"] == 60
            found += [item["key"] for item in body["kvs"]]
            pages += 1
            if "next_page" not in body:
                break
            token = f"&page={body['next_page']}"
        assert gateway.budget.of(Use.ANSWER) == 0
        assert gateway.budget.held <= BOUND
        gateway.drain()
    assert found == [f"/b/{number:04}" for number in range(60)]
    assert pages > 1


async def test_answers_give_way_to_feeds(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """Answers that clients have not taken are cut off when a feed would otherwise have to end; the feed survives."""
    await fill(kv, "/b/", 30, 100_000)
    await fill(kv, "/feed/", 140, 100_000)
    async with running(etcd) as gateway:
        answer = await EtcdReads(gateway).read(parse(b"prefix=/b/"))
        assert not answer.revoked
        follower = Client(gateway, swallow, b"prefix=/feed/")
        await synced(follower)
        assert answer.revoked
        assert answer.parts is None
        assert gateway.budget.of(Use.ANSWER) == 0
        follower.leaves.set()
        await follower.task
        del answer


async def test_states_that_are_not_read_to_their_end(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A snapshot that is not read to its end, because its subscriber leaves or it does not fit, leaves nothing."""
    await fill(kv, "/b/", 30, 100_000)
    async with running(etcd, max_feed_bytes=2 << 20) as gateway:
        for _ in range(3):
            follower = Client(gateway, swallow, b"prefix=/b/")
            await asyncio.sleep(0)
            follower.leaves.set()
            await follower.task
        follower = Client(gateway, swallow, b"prefix=/b/")
        await eventually(lambda: closed(follower))
        await follower.task


async def closed(follower: Client) -> bool:
    """The subscriber was told that its range is too large."""
    return '"reason":"too-large"' in follower.text
