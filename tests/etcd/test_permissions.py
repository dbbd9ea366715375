"""The audit of open watches: one after the other, and only the cluster's own answer ends a watch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from app.core.errors import UnavailableError
from app.core.keys import KeyRange
from app.etcd import permissions
from app.etcd.permissions import INTERVAL, PermissionChecker
from tests.support.waiting import eventually


@dataclass
class Watch:
    """An open watch."""

    range: KeyRange
    permitted_at: float | None = 0.0
    revoked: list[str] = field(default_factory=list)

    def revoke(self, reason: str) -> None:
        """Record the reason."""
        self.permitted_at = None
        self.revoked.append(reason)


class Kv:
    """The answers of KV for each range: from the member itself (serializable), and from the cluster."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bool]] = []
        self.denied_by_member: set[bytes] = set()
        self.denied: set[bytes] = set()
        self.raises: dict[bytes, Exception] = {}

    async def permitted(self, watched: KeyRange, *, serializable: bool = False) -> bool:
        """Answer as ``Reads.permitted`` does."""
        self.asked.append((watched.start, serializable))
        await asyncio.sleep(0)
        if watched.start in self.raises:
            raise self.raises[watched.start]
        return watched.start not in (self.denied_by_member if serializable else self.denied)


class Time:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def auditing(watches: list[Watch], kv: Kv, clock: Time) -> AsyncIterator[None]:
    """A running checker."""
    task = asyncio.create_task(PermissionChecker(watches, kv.permitted, interval=INTERVAL, clock=clock).run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause of a second between two checks."""
    monkeypatch.setattr(permissions, "PACE", 0.001)


def watch(name: str, permitted_at: float | None = 0.0) -> Watch:
    """A watch of a prefix."""
    return Watch(KeyRange("prefix", name.encode()), permitted_at)


async def asked(kv: Kv, times: int) -> None:
    """Wait for that number of checks."""

    async def often() -> bool:
        return len(kv.asked) >= times

    await eventually(often)


async def test_each_has_its_turn() -> None:
    """The watch with the oldest check comes first; no watch is checked again before the interval is over."""
    kv, clock = Kv(), Time()
    watches = [watch("/b/", 50), watch("/a/", 40), watch("/new/", 95), watch("/closed/", None)]
    async with auditing(watches, kv, clock):
        await asked(kv, 2)
        clock.now = 95 + INTERVAL
        await asked(kv, 3)
        await asyncio.sleep(0.05)
        assert kv.asked == [(b"/a/", True), (b"/b/", True), (b"/new/", True)]
        clock.now = 100 + INTERVAL
        await asked(kv, 5)
        assert {key for key, _ in kv.asked[3:5]} == {b"/a/", b"/b/"}
    assert [one.revoked for one in watches] == [[]] * 4


async def test_only_the_cluster_ends_a_watch() -> None:
    """A member that does not know of a role yet denies what the cluster permits.

    Only the cluster's answer ends a watch.
    """
    kv = Kv()
    kv.denied_by_member = {b"/a/", b"/b/"}
    kv.denied = {b"/b/"}
    watches = [watch("/a/", 1), watch("/b/", 2)]
    async with auditing(watches, kv, Time()):
        await asked(kv, 4)

        async def revoked() -> bool:
            return bool(watches[1].revoked)

        await eventually(revoked)
    assert kv.asked == [(b"/a/", True), (b"/a/", False), (b"/b/", True), (b"/b/", False)]
    assert [one.revoked for one in watches] == [[], ["etcd no longer permits this watch"]]


async def test_no_answer_is_no_denial() -> None:
    """An etcd that is away reveals nothing about roles; the watch waits for its next turn."""
    kv = Kv()
    kv.raises[b"/a/"] = UnavailableError("etcd is away")
    watches = [watch("/a/", 1), watch("/b/", 2)]
    async with auditing(watches, kv, Time()):
        await asked(kv, 2)
        await asyncio.sleep(0.05)
    assert kv.asked == [(b"/a/", True), (b"/b/", True)]
    assert [one.revoked for one in watches] == [[], []]


async def test_a_defect_at_one_keeps_no_other_from_its_turn() -> None:
    """A defect at one watch is logged, and the other watches have their turns.

    The failed check is repeated after the interval.
    """
    kv = Kv()
    kv.raises[b"/a/"] = RuntimeError("a defect")
    watches = [watch("/a/", 1), watch("/b/", 2)]
    async with auditing(watches, kv, Time()):
        await asked(kv, 2)
    assert kv.asked[:2] == [(b"/a/", True), (b"/b/", True)]


async def test_a_watch_that_is_let_go_meanwhile_is_not_revoked() -> None:
    """A watch that was released meanwhile is not revoked.

    Nor is a watch that moved to another stream: its new create decides.
    """
    kv = Kv()
    kv.denied_by_member = kv.denied = {b"/a/"}
    one = watch("/a/", 1)
    permitted = kv.permitted

    async def let_go(watched: KeyRange, *, serializable: bool = False) -> bool:
        one.permitted_at = None
        return await permitted(watched, serializable=serializable)

    kv.permitted = let_go  # type: ignore[method-assign]
    async with auditing([one], kv, Time()):
        await asked(kv, 2)
        await asyncio.sleep(0.05)
    assert (one.revoked, one.permitted_at) == ([], None)
