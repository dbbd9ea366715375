"""The reads that prove that a link's member is in touch with its cluster.

Which key they ask for, how many there are, and when the gateway leaves the member.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from aetcd import rpc

from app.core.keys import KeyRange
from app.core.linearizable_reads import LinearizableReads
from app.etcd.link import Link
from app.etcd.quorum import ANY_KEY, CUT_OFF, QuorumChecker
from tests.support.waiting import eventually


@dataclass
class Watch:
    """An open watch."""

    range: KeyRange
    permitted_at: float | None = 0.0


@dataclass
class Member:
    """A link, as far as the checker uses it: *answer* answers each Range, or raises."""

    answer: Callable[[bytes], int]
    asked: list[bytes] = field(default_factory=list)
    failed: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    endpoint: str = "http://etcd:2379"
    pool: Any = field(default_factory=lambda: SimpleNamespace(streams=[]))
    asked_streams: int = 0

    async def range(self, request: Any, _timeout: float) -> Any:
        """Answer one Range."""
        self.asked.append(request.key)
        return SimpleNamespace(header=SimpleNamespace(revision=self.answer(request.key)))

    def ask_for_progress(self) -> None:
        """Count the request."""
        self.asked_streams += 1

    def fail(self, why: str) -> None:
        """Record that the link failed."""
        if not self.failed.done():
            self.failed.set_result(why)


def refuse(code: grpc.StatusCode, details: str = "etcdserver: no") -> Any:
    """The error that gRPC raises."""
    raise rpc.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@contextlib.asynccontextmanager
async def proving(member: Member, watches: list[Watch]) -> AsyncIterator[tuple[QuorumChecker, LinearizableReads]]:
    """A running checker, with reads due every 10 ms."""
    linearizable_reads = LinearizableReads(0.02)
    checker = QuorumChecker(
        linearizable_reads, watches, lambda: (0, 0), lambda _known, _header: None, clock=time.monotonic
    )
    if watches:
        checker.watching()
    task = asyncio.create_task(checker.run(cast("Link", member)))
    try:
        yield checker, linearizable_reads
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def watch(name: str) -> Watch:
    """A watch of a prefix."""
    return Watch(KeyRange("prefix", name.encode()))


async def asked_often(member: Member, times: int = 3) -> None:
    """Wait for that number of reads."""

    async def often() -> bool:
        return len(member.asked) >= times

    await eventually(often)


async def test_nobody_watches_nothing_is_asked() -> None:
    """Without a watch there are no reads, nor after the last watch has ended.

    But a client's read that timed out causes one.
    """
    member, watches = Member(lambda _key: 5), [watch("/a/")]
    async with proving(member, watches) as (checker, _):
        await asked_often(member)
        watches.clear()
        await asyncio.sleep(0.05)  # reads under way
        before = len(member.asked)
        await asyncio.sleep(0.2)
        assert len(member.asked) == before
        checker.check_now()
        await asked_often(member, before + 1)
        assert member.asked[-1] == ANY_KEY


async def test_one_read_is_for_all() -> None:
    """One read proves every watch, and asks every watch for progress."""
    member, watches = Member(lambda _key: 5), [watch(f"/{n}/") for n in range(100)]
    async with proving(member, watches) as (_, linearizable_reads):
        await asked_often(member)
        assert set(member.asked) == {b"/0/"}
        assert linearizable_reads.proven_at(5) is not None
        assert linearizable_reads.proven_at(4) is None
        assert member.asked_streams >= 2


async def test_reads_of_others_count() -> None:
    """Clients' reads count, so that no read is made for the proof alone."""
    member = Member(lambda _key: 5)
    linearizable_reads = LinearizableReads(1000)
    watches = [watch("/a/")]
    checker = QuorumChecker(
        linearizable_reads, watches, lambda: (0, 0), lambda _known, _header: None, clock=lambda: now
    )
    now = 0.0
    checker.watching()
    now = 700.0
    linearizable_reads.note(650.0, 5)
    task = asyncio.create_task(checker.run(cast("Link", member)))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert member.asked == []


async def test_another_key_is_asked_for_when_one_is_denied() -> None:
    """When one key is denied, another is read: a role may have lost the key while its watch lives on."""
    member = Member(lambda key: 5 if key == b"/b/" else refuse(grpc.StatusCode.PERMISSION_DENIED))
    async with proving(member, [watch("/a/"), watch("/b/")]) as (_, linearizable_reads):
        await asked_often(member)
        assert member.asked[:3] == [b"/a/", b"/b/", b"/b/"]
        assert linearizable_reads.proven_at(5) is not None
        assert not member.failed.done()


async def test_a_member_that_denies_everything_is_not_cut_off() -> None:
    """A member that denies everything has asked its cluster before it checks roles, so the gateway stays.

    But nothing is proven.
    """
    member = Member(lambda _key: refuse(grpc.StatusCode.PERMISSION_DENIED))
    async with proving(member, [watch("/a/"), watch("/b/")]) as (_, linearizable_reads):
        await asked_often(member, 5)
        assert linearizable_reads.proven_at(1 << 60) is None
        assert not member.failed.done()


async def test_a_member_that_answers_nothing_is_left() -> None:
    """A member without answers is left only after more than one read: a new leader refuses reads for a moment."""
    member = Member(lambda _key: refuse(grpc.StatusCode.UNAVAILABLE))
    async with proving(member, [watch("/a/")]):
        assert "etcdserver: no" in await asyncio.wait_for(member.failed, 30)
        assert len(member.asked) > 1


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"),
        (grpc.StatusCode.UNKNOWN, "context deadline exceeded"),
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out, possibly due to connection lost"),
    ],
    ids=["by gRPC", "by etcd 3.4", "by etcd after 7 s"],
)
async def test_a_member_that_is_mute_is_cut_off(code: grpc.StatusCode, details: str) -> None:
    """A silent member is reported by name as cut off."""
    member = Member(lambda _key: refuse(code, details))
    async with proving(member, [watch("/a/")]):
        assert CUT_OFF in await asyncio.wait_for(member.failed, 30)
