"""The judge finds what is wrong between tiers: gateways in this process, an exact order of events, and given times."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.consistency.bugs import BUGS, IN_ONE_PROCESS
from tests.consistency.edges import (
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
from tests.tier.scripted import Answered, Asked, Scripted, position, scripted

AHEAD, STALE, CIRCLE = sorted(IN_ONE_PROCESS)
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


async def bookmark(follower: Judged) -> None:
    """Read the next bookmark, and rule on it."""
    await follower.reads("bookmark")
    follower.rule()


async def asked(root: Scripted, *ranges: str) -> bool:
    """Whether the edge has asked the root for its progress in a range, and has its answer."""
    return sum(one.query.startswith(ranges) for one in root.of("/v1/progress")) > 1


async def follows(edge: Edge, url: str) -> bool:
    """Whether the edge has a live stream at a gateway."""
    feed = edge.gateway.registry.feeds.get(RANGES[0])
    return edge.follows(url) is not None and feed is not None and feed.state.value == "live"


def gone(_asked: Asked) -> Answered:
    """What a root answers that has failed."""
    return Answered(b"", 500)
