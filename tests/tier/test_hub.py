"""``app.tier.hub``: the hub as a worker sees it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.core.errors import (
    DeniedError,
    EtcdRefusedError,
    GatewayError,
    OverCapacityError,
    PageExpiredError,
    RangesNeedPinError,
    TooLargeError,
    TransientError,
    UnavailableError,
)
from app.core.quotas import Caller
from app.core.selection import Ranges
from app.ports import Admission
from app.tier.hub import HubUpstream
from tests.support.connections import serving_at
from tests.support.waiting import soon
from tests.tier.scripted import Answered, Scripted, epoch_of, position


class Alive:
    """The hub's link: it was alive at a time that a test gives."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.heard_at = 0.0

    async def admit(self, ranges: Ranges, *, caller: Caller | None, has_cursor: bool) -> Admission:
        """See ``app.ports.Hub``."""
        raise NotImplementedError

    async def check_join(self, ranges: Ranges, *, caller: Caller | None) -> None:
        """See ``app.ports.Hub``."""

    async def begin_read(self, caller: Caller) -> Admission:
        """See ``app.ports.Hub``."""
        raise NotImplementedError

    def tell_ended(self, session: str, sealed_by: str, expires: float) -> None:
        """See ``app.ports.Hub``."""

    def tell_failed(self, address: str) -> None:
        """See ``app.ports.Hub``."""

    def tell_bookmarks_due(self, ranges: Ranges, host: str, revision: int) -> None:
        """See ``app.ports.Hub``."""


@contextlib.asynccontextmanager
async def hub(path: Path, root: Scripted) -> AsyncIterator[HubUpstream]:
    """A worker's upstream, at a scripted hub."""
    loop = asyncio.get_running_loop()
    async with serving_at(path, root.take):
        made = HubUpstream(Alive(str(path)), epoch_of, stale_after=60.0, clock=loop.time, draw=lambda: 0.0)
        task = asyncio.create_task(made.run())
        try:
            yield made
        finally:
            await made.aclose()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("tier", [0, 2])
async def test_a_worker_is_of_the_hubs_own_tier(tmp_path: Path, tier: int) -> None:
    """It is the same gateway: an edge may follow it as it may follow the hub."""
    root = Scripted()
    answered = Answered.of(position(), X_Gateway_Tier=str(tier))
    root.answer = lambda _asked: answered
    async with hub(tmp_path / "hub", root) as above:
        await soon(lambda: above.member_known)
        assert above.tier == tier
        assert above.condition.state == "ready"


async def test_a_worker_waits_as_the_hub_does(tmp_path: Path) -> None:
    """Until the hub's etcd answers, a stream waits: the hub itself refuses if it must."""
    root = Scripted()
    root.answer = lambda _asked: Answered.of(position(cluster_id="0"))
    async with hub(tmp_path / "hub", root) as above:
        await soon(lambda: len(root.asked) > 2)
        assert above.condition.state == "connecting"
        root.answer = root.usual
        await soon(lambda: above.member_known)


async def test_a_worker_that_waits_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It looks at the hub several times a second, and each look that failed was a line of the log."""
    root = Scripted()
    root.answer = lambda _asked: Answered.of(position(cluster_id="0"))
    async with hub(tmp_path / "hub", root) as above:
        began = above.condition.since
        await soon(lambda: len(root.asked) > 3)
        assert [one.message for one in caplog.records].count("the upstream cannot be used") == 1
        assert (above.condition.state, above.condition.since) == ("connecting", began)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (429, "too-many-reads", OverCapacityError),
        (503, "etcd-unavailable", UnavailableError),
        (503, "too-large", TooLargeError),
        (503, "pin-unavailable", TransientError),
        (502, "etcd-refused", EtcdRefusedError),
        (501, "ranges-need-pin", RangesNeedPinError),
        (410, "page-expired", PageExpiredError),
        (403, "", DeniedError),
    ],
)
async def test_a_client_sees_what_the_hub_says(
    tmp_path: Path, status: int, code: str, kind: type[GatewayError]
) -> None:
    """The same status, code and words as from a single process."""
    root = Scripted()
    said = {"code": code, "detail": "the hub's words"}
    root.answer = lambda asked: root.usual(asked) if asked.path == "/v1/progress" else Answered.of(said, status)
    async with hub(tmp_path / "hub", root) as above:
        with pytest.raises(GatewayError) as refused:
            await above.read("prefix=/svc/")
    assert type(refused.value) is kind
    if code:
        assert (refused.value.status, refused.value.code, refused.value.detail) == (status, code, "the hub's words")


async def test_an_answer_whose_memory_the_hub_needs(tmp_path: Path) -> None:
    """A single process says so, and does not say that etcd is out of reach."""
    root = Scripted()
    async with hub(tmp_path / "hub", root) as above:
        await soon(lambda: above.member_known)
        root.answer = lambda asked: root.usual(asked) if asked.path == "/v1/progress" else Answered.cut()
        with pytest.raises(OverCapacityError) as refused:
            await above.read("prefix=/svc/")
    assert (refused.value.status, refused.value.code) == (429, "too-many-reads")


@pytest.mark.parametrize(("tier", "reach"), [(0, 9000), (1, 8100)])
async def test_history_below_a_worker_is_read_from_the_hub(tmp_path: Path, tier: int, reach: int) -> None:
    """The hub's tip may be ahead: a worker asks for nine tenths of what its hub reads."""
    root = Scripted()
    answered = Answered.of(position(), X_Gateway_Tier=str(tier))
    root.answer = lambda _asked: answered
    async with hub(tmp_path / "hub", root) as above:
        await soon(lambda: above.member_known)
        assert above.reach(10_000) == reach


async def test_a_silent_hub_is_not_believed_for_three_heartbeats(tmp_path: Path) -> None:
    """A worker would say "live" for 45 s after its hub was stopped. The link is heard every second instead."""
    loop = asyncio.get_running_loop()
    alive = Alive(str(tmp_path / "hub"))
    above = HubUpstream(alive, epoch_of, stale_after=10.0, clock=loop.time, draw=lambda: 0.0)
    alive.heard_at = 7.0
    assert above.alive_at(heard_at=100.0, silence=45.0) == 7.0
    await above.aclose()
    await above.client.aclose()
