"""A cursor of a history that a restore has ended comes to a gateway that has noticed the restore.

The restored cluster keeps its id, and counts the same revisions again. The first event after the cursor is a delete,
which has no count of puts: nothing in the event itself shows that it belongs to another history.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from app.gateway import Gateway
from app.settings import load
from tests.cases.clients import Client, joined
from tests.consistency.edges import listener, served, url_of
from tests.support.fake_etcd import FakeEtcd
from tests.support.proxy import proxy
from tests.support.waiting import soon

RESTORED = ["initial", "restored"]


@pytest.fixture(name="fake")
async def _fake() -> AsyncIterator[FakeEtcd]:
    async with FakeEtcd() as fake:
        fake.put(b"/svc/a", b"1")
        fake.put(b"/svc/b", b"1")
        yield fake


@contextlib.asynccontextmanager
async def serving(**changed: object) -> AsyncIterator[str]:
    """A gateway in this process that has reached what it follows; yields its URL."""
    settings = load({"heartbeat": "3600s", "linger": "0s", **changed})
    gateway, listening = Gateway(settings, draw=lambda: 0.0), listener()
    async with served(gateway, settings, listening):
        await soon(lambda: gateway.upstream.condition.state == "ready")
        yield url_of(listening)


async def reach(revision: int, *clients: Client) -> None:
    """Wait until the clients' mirrors are exact at *revision* or later."""
    await soon(lambda: all(client.mirror.synced and client.mirror.revision >= revision for client in clients))


def restore(fake: FakeEtcd, back: int, *, up_to: int = 0) -> None:
    """Restore the state *back* revisions ago, and then write another range's key up to a revision."""
    fake.restore(fake.revision - back)
    fake.raft_term = 1
    advance(fake, up_to)


def advance(fake: FakeEtcd, up_to: int) -> None:
    """Write a key of another range until etcd has reached a revision."""
    while fake.revision < up_to:
        fake.put(b"/other", b"%d" % fake.revision)


def write(fake: FakeEtcd) -> int:
    """Write the three revisions that the restore takes away; return the last."""
    return [fake.put(name, b"1") for name in (b"/svc/c", b"/svc/d", b"/svc/e")][-1]


def keys(client: Client) -> list[str]:
    """The keys of a client's mirror."""
    return sorted(key for key, _ in client.mirror.state)


def deletes(client: Client) -> list[int]:
    """The revisions of the deletes that the client's stream has brought."""
    return [event.data["mod_revision"] for event in client.events if event.type == "delete"]


@pytest.mark.parametrize("passed", [True, False], ids=["passed", "lower"])
@pytest.mark.parametrize("below", [False, True], ids=["client", "edge"])
async def test_who_was_away_is_reset(fake: FakeEtcd, passed: bool, below: bool) -> None:
    """A client, or an edge, is away while its gateway notices the restore, and returns to the new history.

    *passed*: the gateway sees the new history only when that has passed the cursor.
    """
    async with (
        proxy(fake.endpoint) as to_etcd,
        serving(etcd=to_etcd.endpoint) as root,
        proxy(root) as to_root,
        serving(upstream=to_root.endpoint) as edge,
        joined(root) as (resident,),
        joined(edge if below else root) as (client,),
    ):
        last = write(fake)
        await reach(last, client, resident)
        to_root.cut()
        if not below:
            await client.leave()
        if passed:
            to_etcd.cut()
        restore(fake, 3, up_to=last + 5 if passed else 0)
        to_etcd.heal()
        await soon(lambda: resident.resets == RESTORED and resident.mirror.synced)
        advance(fake, last + 5)
        last = fake.delete(b"/svc/a")
        await reach(last, resident)
        to_root.heal()
        if not below:
            await client.join(root)
        await reach(last, client)
        assert (client.resets, keys(client)) == (RESTORED, ["/svc/b"])
        assert deletes(client) == []


async def test_an_edge_that_was_started_later(fake: FakeEtcd) -> None:
    """It knows from its root which cursors may be of the old history. Cursors above resume."""
    async with serving(etcd=fake.endpoint) as root, joined(root, count=2) as (resident, client):
        last = write(fake)
        await reach(last, client)
        await client.leave()
        restore(fake, 3)
        await soon(lambda: resident.resets == RESTORED and resident.mirror.synced)
        advance(fake, last)
        fake.delete(b"/svc/a")
        async with serving(upstream=root) as edge:
            await client.join(edge)
            await reach(last, client)
            assert (client.resets, keys(client)) == (RESTORED, ["/svc/b"])
            await client.leave()
            last = fake.put(b"/svc/f", b"1")
            await client.join(edge)
            await reach(last, client)
            assert (client.resets, keys(client)) == (RESTORED, ["/svc/b", "/svc/f"])


@pytest.mark.parametrize("tiers", [1, 2])
async def test_a_root_that_was_started_later(fake: FakeEtcd, tiers: int) -> None:
    """The only one that knows the old history is an edge. Its root was replaced, or its root's root was."""
    async with contextlib.AsyncExitStack() as stack:
        old_root = await stack.enter_async_context(serving(etcd=fake.endpoint))
        to_root = await stack.enter_async_context(proxy(old_root))
        edge = await stack.enter_async_context(serving(upstream=to_root.endpoint))
        if tiers == 2:
            edge = await stack.enter_async_context(serving(upstream=edge))
        (client, quiet) = await stack.enter_async_context(joined(edge, count=2))
        last = write(fake)
        await reach(last, client, quiet)
        await quiet.leave()
        to_root.cut()
        restore(fake, 3, up_to=last + 5)
        last = fake.delete(b"/svc/a")
        new_root = await stack.enter_async_context(serving(etcd=fake.endpoint))
        to_root.lead_to(new_root)
        to_root.heal()
        await reach(last, client)
        assert (client.resets, keys(client)) == (RESTORED, ["/svc/b"])
        assert deletes(client) == []
        await quiet.join(edge)
        await reach(last, quiet)
        assert (quiet.resets, keys(quiet)) == (RESTORED, ["/svc/b"])


async def test_a_restore_that_only_one_range_can_prove(fake: FakeEtcd) -> None:
    """The second of two restores: revision, raft term and raft index have passed what the gateway knows, and the last
    event of a quiet range is compacted. The other range finds another event at its last revision.
    """
    fake.put(b"/quiet/a", b"1")
    fake.put(b"/quiet/b", b"1")
    async with (
        proxy(fake.endpoint) as to_etcd,
        serving(etcd=to_etcd.endpoint) as root,
        joined(root) as (busy,),
        joined(root, "prefix=/quiet/") as (quiet,),
    ):
        last = write(fake)
        await reach(last, busy)
        to_etcd.cut()
        fake.restore(last - 3)
        fake.raft_term = 2
        fake.delete(b"/quiet/a")
        advance(fake, last - 1)
        fake.put(b"/svc/other", b"1")
        advance(fake, last + 5)
        fake.compact(last - 1)
        to_etcd.heal()
        await soon(lambda: quiet.resets == RESTORED and quiet.mirror.synced)
        assert (keys(quiet), busy.resets) == (["/quiet/b"], RESTORED)
