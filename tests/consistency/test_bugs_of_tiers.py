"""The judge finds what is wrong between tiers: gateways in this process, an exact order of events, and given times."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.consistency.bugs import BUGS, IN_ONE_PROCESS
from tests.consistency.edges import (
    EPOCH,
    RANGES,
    Edge,
    Judged,
    Time,
    World,
    judged,
    line,
    listener,
    pass_time,
    put,
    serving,
    synced,
    url_of,
)
from tests.consistency.judge import ViolationError
from tests.support.streams import watch
from tests.support.waiting import eventually
from tests.tier.scripted import CLUSTER, Answered, Asked, Scripted, position, scripted

AHEAD, ENDED, STALE, CIRCLE = sorted(IN_ONE_PROCESS)
# Longer than a follower of tier 2 may be told "live" without it being true.
LONG = 25


@pytest.fixture(name="world")
def _world() -> World:
    return World(Time())


@pytest.fixture(name="root")
async def _root() -> AsyncIterator[Scripted]:
    async with scripted() as found:
        yield found


@pytest.fixture(name="bug")
def _bug(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Inject a bug until the test ends; "": none."""
    bug = str(request.param)
    if bug:
        monkeypatch.setattr("tests.consistency.bugs._replace", monkeypatch.setattr)
        BUGS[bug]()
    return bug


async def lives(edge: Edge, world: World, *, bug: str, above: list[Edge], followers: list[Judged]) -> None:
    """Let time pass: with a bug, the judge of one follower finds it; without, all are told that they are stale."""
    edges = [*above, edge]
    if bug:
        with pytest.raises(ViolationError, match="reports live"):
            await pass_time(LONG, world, edges, followers)
    else:
        await pass_time(LONG, world, edges, followers)
        assert [follower.states[-1] for follower in followers] == ["stale"] * len(followers)


@pytest.mark.parametrize("bug", ["", STALE], indirect=True)
async def test_an_edge_whose_root_is_stale(world: World, root: Scripted, bug: str) -> None:
    """What the root has still comes, and is not called live: the root itself lacks something."""
    async with AsyncExitStack() as stack:
        edge = await stack.enter_async_context(serving(world.time, listener(), root.url))
        follower = await stack.enter_async_context(judged(world, edge))
        first = await root.stream()
        first.write(synced(100))
        await follower.reads("synced")
        world.write(101, 102)
        first.write(line("status", state="stale", ranges=["prefix=/svc/"]) + put(101))
        await follower.reads("put")
        await lives(edge, world, bug=bug, above=[], followers=[follower])


@pytest.mark.parametrize("bug", ["", STALE], indirect=True)
async def test_an_edge_that_returns_to_a_stale_root(world: World, root: Scripted, bug: str) -> None:
    """``synced`` means live to a client. Between ``synced`` and ``status``, an edge's followers are not live either."""
    async with AsyncExitStack() as stack:
        edge = await stack.enter_async_context(serving(world.time, listener(), root.url))
        follower = await stack.enter_async_context(judged(world, edge))
        first = await root.stream()
        first.write(synced(100))
        await follower.reads("synced")
        first.write(line("status", state="stale", ranges=["prefix=/svc/"]))
        first.close()
        second = await root.stream()
        second.write(synced(100, state="stale"))
        second.write(put(101))
        world.write(101)
        await follower.reads("put")
        edge.look()
        await follower.reads("bookmark")
        assert ("live" in follower.states) == bool(bug)


@pytest.mark.parametrize("bug", ["", CIRCLE], indirect=True)
async def test_two_edges_that_follow_each_other(world: World, root: Scripted, bug: str) -> None:
    """One fails over to the other, which follows the first: without tiers, both are live for ever."""
    async with AsyncExitStack() as stack:
        sockets = [listener(), listener()]
        urls = [url_of(one) for one in sockets]
        near = await stack.enter_async_context(serving(world.time, sockets[0], root.url, urls[1]))
        await near.condition(root.url, "ready")
        far = await stack.enter_async_context(serving(world.time, sockets[1], urls[0]))
        await far.condition(urls[0], "ready")
        followers = [
            await stack.enter_async_context(judged(world, near)),
            await stack.enter_async_context(judged(world, far)),
        ]
        stream = await root.stream()
        stream.write(synced(100))
        for follower in followers:
            await follower.reads("synced")
        assert [follower.judge.tier for follower in followers] == [1, 2]
        world.write(101)
        root.answer = gone
        stream.close()
        if bug:
            await eventually(lambda: follows(near, urls[1]))
        else:
            await near.condition("only a lower tier may be followed", "down")
        await lives(far, world, bug=bug, above=[near], followers=followers)


@pytest.mark.parametrize("bug", ["", AHEAD], indirect=True)
async def test_a_cursor_ahead_of_the_hub(world: World, root: Scripted, bug: str) -> None:
    """The upstream has reached a revision. What it has sent of it is another question: a cursor waits for that."""
    root.answer = lambda asked: (
        Answered.of(position(revision=101)) if asked.path == "/v1/progress" else root.usual(asked)
    )
    async with AsyncExitStack() as stack:
        edge = await stack.enter_async_context(serving(world.time, listener(), root.url))
        follower = await stack.enter_async_context(judged(world, edge))
        stream = await root.stream()
        stream.write(synced(100))
        await follower.reads("synced")
        world.write(101)
        await stack.enter_async_context(await watch(edge.base, "prefix=/svc/&format=ndjson&min_revision=101"))
        if bug:
            await eventually(lambda: claims(edge, 101))  # the tip moves with the first answer: nothing more is asked
        else:
            await eventually(lambda: asked(root, "prefix=%2Fsvc%2F", "prefix=/svc/"))
        edge.look()
        if bug:
            with pytest.raises(ViolationError):
                await bookmark(follower)
            return
        await follower.reads("bookmark")
        stream.write(put(101))
        await follower.reads("put")
        follower.rule()


@pytest.mark.parametrize("bug", ["", ENDED], indirect=True)
async def test_who_is_away_at_a_restore(world: World, root: Scripted, bug: str) -> None:
    """The first event after the cursor is a delete, which looks the same in both histories."""
    async with AsyncExitStack() as stack:
        edge = await stack.enter_async_context(serving(world.time, listener(), root.url))
        resident = await stack.enter_async_context(judged(world, edge))
        first = await root.stream()
        first.write(synced(100))
        await resident.reads("synced")
        async with judged(world, edge) as follower:
            await follower.reads("synced")
            world.write(101, 102)
            first.write(put(101) + put(102))
            for _ in range(2):
                await follower.reads("put")
                await resident.reads("put")
        world.restore(101)
        kv = {"key": "/svc/101", "value": "v", "create_revision": 101, "mod_revision": 101, "version": 1}
        state = Answered.of({"revision": 101, "cursor": f"{EPOCH}-101", "kvs": [kv], "count": 1})
        root.answer = lambda asked: state if asked.path == "/v1/kv" else root.usual(asked)
        first.write(line("reset", 0, reason="restored", ranges=["prefix=/svc/"], cluster_id=f"{CLUSTER:x}"))
        second = await root.stream()
        second.write(synced(101))
        await resident.reads("synced")
        world.delete(103, b"/svc/101")
        second.write(line("delete", 103, key="/svc/101", mod_revision=103))
        await resident.reads("delete")
        await stack.enter_async_context(await follower.reopen(edge))
        await follower.reads("synced")
        if bug:
            with pytest.raises(ViolationError, match="no history knows this"):
                follower.rule()
            return
        follower.rule()
        assert follower.judge.resets == ["initial", "restored"]


async def bookmark(follower: Judged) -> None:
    """Read the next bookmark, and rule on it."""
    await follower.reads("bookmark")
    follower.rule()


async def asked(root: Scripted, *ranges: str) -> bool:
    """Whether the edge has asked the root for its progress in a range, and has its answer."""
    return sum(one.query.startswith(ranges) for one in root.of("/v1/progress")) > 1


async def claims(edge: Edge, revision: int) -> bool:
    """Whether the edge takes its log for complete up to a revision."""
    feed = edge.gateway.registry.feeds.get(RANGES[0])
    return feed is not None and feed.history.log.tip >= revision


async def follows(edge: Edge, url: str) -> bool:
    """Whether the edge has a live stream at a gateway."""
    feed = edge.gateway.registry.feeds.get(RANGES[0])
    return edge.follows(url) is not None and feed is not None and feed.state.value == "live"


def gone(_asked: Asked) -> Answered:
    """What a root answers that has failed."""
    return Answered(b"", 500)
