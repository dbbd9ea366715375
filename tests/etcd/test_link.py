"""One link: whose progress it trusts, how it ends, and a read that waits while the link is closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from aetcd import rpc

from app.core.feed_messages import Lost, WatchInput
from app.core.keys import KeyRange
from app.etcd.credentials import Credentials
from app.etcd.link import Link
from app.etcd.login import LoginError
from app.etcd.upstream import ANONYMOUS
from tests.etcd.conftest import USER
from tests.support.fake_etcd import FakeEtcd
from tests.support.proxy import proxy
from tests.support.secure import Admin, SecureEtcd
from tests.support.waiting import HANG, eventually


def link_to(endpoint: str, credentials: Credentials = ANONYMOUS, *, vouched_version: str = "") -> Link:
    """A link whose clock stands still."""
    return Link(
        endpoint,
        credentials,
        vouched_version=vouched_version,
        proof_interval=1,
        on_header=lambda _header: None,
        on_room=lambda: None,
        clock=lambda: 0.0,
    )


@pytest.mark.parametrize("same", [True, False])
async def test_progress_of_another_member_is_not_trusted(same: bool) -> None:
    """One name may lead reads to a 3.5.16 and watches to a 3.5.1, whose progress overtakes events."""
    async with FakeEtcd("3.5.16") as etcd:
        link = link_to(etcd.endpoint)
        assert await link.check(2) is None
        assert (link.progress_trusted, link.watch_version) == (True, "3.5.16")
        heard = etcd.header()
        heard.member_id += not same
        link._heard_on_a_stream(heard)

        assert link.progress_trusted is same
        await link.aclose("done")


@pytest.mark.parametrize("version", ["3.5.17", "3.5.1"])
async def test_the_member_that_serves_the_watches_is_asked_for_its_version(version: str) -> None:
    """Behind a Service, reads and watches go to different members: two times in three, with three members."""
    async with FakeEtcd("3.5.16") as reads, FakeEtcd(version) as watches, proxy(reads.endpoint) as service:
        watches.member_id = reads.member_id + 1
        link = link_to(service.endpoint)
        assert await link.check(HANG) is None
        service.lead_to(watches.endpoint)
        link.pool.create(KeyRange("key", b"/a"), 0, lambda _given: None, stream_kind="live")

        async def heard() -> bool:
            return link._watch_member == watches.member_id

        await eventually(heard)
        assert (link.version_known, link.progress_trusted, link.watch_version) == (False, False, "")
        assert await link.check(HANG) is None
        assert (link.version_known, link.progress_trusted) == (True, version == "3.5.17")
        assert link.watch_version == version
        assert (reads.asked.statuses, watches.asked.statuses) == (2, 1)
        assert await link.check(HANG) is None
        assert (reads.asked.statuses, watches.asked.statuses) == (3, 1), "the version does not change on a connection"
        await link.aclose("done")


async def test_a_watches_member_that_hides_its_version() -> None:
    """The operator vouches for that member, too. If it only does not answer, the next check asks again."""
    async with FakeEtcd("3.5.1") as reads, FakeEtcd("3.5.28") as watches, proxy(reads.endpoint) as service:
        watches.member_id = reads.member_id + 1
        link = link_to(service.endpoint, vouched_version="3.5.28")
        assert await link.check(HANG) is None
        service.lead_to(watches.endpoint)
        link.pool.create(KeyRange("key", b"/a"), 0, lambda _given: None, stream_kind="live")

        async def heard() -> bool:
            return link._watch_member == watches.member_id

        await eventually(heard)
        for code, known in ((grpc.StatusCode.UNAVAILABLE, False), (grpc.StatusCode.PERMISSION_DENIED, True)):
            watches.refuse_status = code
            assert await link.check(HANG) is None
            assert (link.version_known, link.progress_trusted) == (known, known)
        await link.aclose("done")


@pytest.mark.etcd
@pytest.mark.usefixtures("root")
async def test_a_closed_channel_is_no_defect(etcd: SecureEtcd, root: Admin, password_file: Path) -> None:
    """Found by the torture, as a 500: the password had changed, which ended the link during a renewal."""
    credentials = Credentials(user=USER, password_file=password_file)
    link = link_to(etcd.endpoint, credentials)
    assert await link.check(5) is None
    await root.change_password(USER, "another")
    renew = link.login.renew

    async def renew_too_late(stale: str) -> None:
        await link.aclose("the password has changed")
        await renew(stale)

    link.login.renew = renew_too_late  # type: ignore[method-assign]
    with pytest.raises(LoginError, match="closed during the login"):
        await link.range(rpc.RangeRequest(key=b"/svc/a"), 5)


async def test_a_good_member() -> None:
    """The member's version decides what the gateway trusts."""
    for version, trusted in (("3.5.16", True), ("3.5.1", False)):
        async with FakeEtcd(version) as etcd:
            link = link_to(etcd.endpoint)
            assert await link.check(HANG) is None
            assert (link.version_text, link.progress_trusted) == (version, trusted)
            assert link.header.cluster_id == etcd.cluster_id
            await link.aclose("done")


async def test_what_is_wrong_with_a_member() -> None:
    """A member without a leader, and an absent member, are reported."""
    async with FakeEtcd() as etcd:
        link = link_to(etcd.endpoint)
        etcd.lose_leader()
        assert await link.check(HANG) == "the member has no leader"
        etcd.regain_leader()
        assert await link.check(HANG) is None
        await etcd.stop()
        assert (await link.check(HANG) or "").startswith("unavailable: ")
        await link.aclose("done")


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        (grpc.StatusCode.UNAVAILABLE, True),
        (grpc.StatusCode.INTERNAL, True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, False),  # a message on the stream is too large
        (grpc.StatusCode.PERMISSION_DENIED, False),
        (grpc.StatusCode.UNAUTHENTICATED, False),
    ],
)
async def test_a_stream_that_breaks(code: grpc.StatusCode, ends: bool) -> None:
    """A broken stream ends the link, unless the cause is a message on the stream, or the client that opened it."""
    heard: list[WatchInput] = []
    async with FakeEtcd() as etcd:
        link = link_to(etcd.endpoint)
        assert link.pool.create(KeyRange("prefix", b"/svc/"), 0, heard.append, stream_kind="live") is not None
        await etcd.until(lambda: etcd.open_watchers == 1)
        etcd.break_streams(code, "broken")

        async def lost() -> bool:
            return any(isinstance(given, Lost) for given in heard)

        await eventually(lost)
        assert link.pool.streams == []
        assert (link.failed.result() if link.failed.done() else "") == ("watch stream: broken" if ends else "")
        await link.aclose("done")


async def test_its_end_is_told_to_its_watches() -> None:
    """The link's watches are notified of its end with the first reason; nothing of the link is left at etcd."""
    heard: list[WatchInput] = []
    async with FakeEtcd() as etcd:
        link = link_to(etcd.endpoint)
        assert link.pool.create(KeyRange("prefix", b"/svc/"), 0, heard.append, stream_kind="live") is not None
        await etcd.until(lambda: etcd.open_watchers == 1)
        link.fail("the first reason")
        await link.aclose("another one")
        await etcd.until(lambda: etcd.open_streams == 0)
        assert heard[-1] == Lost("another one")
        assert link.failed.result() == "the first reason"


async def test_whether_watches_are_matched() -> None:
    """The link tests a server with a watch under an id that no server chooses.

    Afterwards nothing of that watch is left.
    """
    async with FakeEtcd() as etcd:
        link = link_to(etcd.endpoint)
        assert await link.matches(KeyRange("key", b"a"), HANG) is True
        etcd.refuse_create()
        # refused under the requested id: that proves it as well
        assert await link.matches(KeyRange("key", b"a"), HANG) is True
        etcd.refuse_create(echo=False)
        assert await link.matches(KeyRange("key", b"a"), HANG) is None
        await etcd.until(lambda: etcd.open_streams == 0)
        await link.aclose("done")


async def test_a_read_that_a_new_leader_ends_has_no_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The read is made once more, in what is left of its time."""
    now = 100.0
    timeouts: list[float] = []
    link = link_to("http://127.0.0.1:1")

    async def end(_call: Any, _request: Any, timeout: float) -> Any:
        nonlocal now
        now += 3
        timeouts.append(timeout)
        nothing = grpc.aio.Metadata()
        raise rpc.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "etcdserver: leader changed")

    monkeypatch.setattr(link, "_ask", end)
    monkeypatch.setattr(link, "_clock", lambda: now)
    with pytest.raises(rpc.AioRpcError):
        await link.range(rpc.RangeRequest(key=b"a"), 5)
    assert timeouts == [5, 2]
    await link.aclose("done")
