"""One link: whose progress is believed, what ends it, and a read that waits while it is given up."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from aetcd import rpc

from app.core.keys import KeyRange
from app.core.multiplex import Lost, WatchInput
from app.etcd.credentials import Credentials
from app.etcd.link import Link
from app.etcd.login import LoginError
from app.etcd.upstream import ANONYMOUS
from tests.etcd.conftest import USER
from tests.support.fake_etcd import FakeEtcd
from tests.support.secure import Admin, SecureEtcd
from tests.support.waiting import HANG, eventually


def link_to(endpoint: str, credentials: Credentials = ANONYMOUS) -> Link:
    """A link whose clock stands."""
    return Link(
        endpoint,
        credentials,
        proof_interval=1,
        on_header=lambda _header: None,
        on_room=lambda: None,
        clock=lambda: 0.0,
    )


@pytest.mark.parametrize("same", [True, False])
async def test_progress_of_another_member_is_not_trusted(same: bool) -> None:
    """Behind one name reads may go to a member of 3.5.16 and watches to one of 3.5.1: its progress overtakes events."""
    async with FakeEtcd("3.5.16") as etcd:
        link = link_to(etcd.endpoint)
        assert await link.check(2) is None
        assert link.progress_trusted
        heard = etcd.header()
        heard.member_id += not same
        link._heard_on_a_stream(heard)

        assert link.progress_trusted is same
        await link.aclose("done")


@pytest.mark.etcd
@pytest.mark.usefixtures("root")
async def test_a_closed_channel_is_no_defect(etcd: SecureEtcd, root: Admin, password_file: Path) -> None:
    """Found by the torture, as a 500: the password had changed, which ended the link under the renewal."""
    credentials = Credentials(user=USER, password_file=password_file)
    link = link_to(etcd.endpoint, credentials)
    assert await link.check(5) is None
    await root.change_password(USER, "another")
    renew = link.login.renew

    async def renew_too_late(stale: str) -> None:
        await link.aclose("the password is another one")
        await renew(stale)

    link.login.renew = renew_too_late  # type: ignore[method-assign]
    with pytest.raises(LoginError, match="given up"):
        await link.range(rpc.RangeRequest(key=b"/svc/a"), 5)


async def test_a_good_member() -> None:
    """Its version says what may be believed of it."""
    for version, trusted in (("3.5.16", True), ("3.5.1", False)):
        async with FakeEtcd(version) as etcd:
            link = link_to(etcd.endpoint)
            assert await link.check(HANG) is None
            assert (link.version_text, link.progress_trusted) == (version, trusted)
            assert link.header.cluster_id == etcd.cluster_id
            await link.aclose("done")


async def test_what_is_wrong_with_a_member() -> None:
    """It has no leader; or nobody is there."""
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
        (grpc.StatusCode.RESOURCE_EXHAUSTED, False),  # what is on it is too large
        (grpc.StatusCode.PERMISSION_DENIED, False),
        (grpc.StatusCode.UNAUTHENTICATED, False),
    ],
)
async def test_a_stream_that_breaks(code: grpc.StatusCode, ends: bool) -> None:
    """It ends the link, unless the reason is what is on the stream, or who opened it."""
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
    """Nothing of it is left at etcd, and its reason is the first one."""
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
    """Asked with a watch under an id that no server gives by itself, of which nothing is left."""
    async with FakeEtcd() as etcd:
        link = link_to(etcd.endpoint)
        assert await link.matches(KeyRange("key", b"a"), HANG) is True
        etcd.refuse_create()
        assert await link.matches(KeyRange("key", b"a"), HANG) is True  # refused under our id: it tells as well
        etcd.refuse_create(echo=False)
        assert await link.matches(KeyRange("key", b"a"), HANG) is None
        await etcd.until(lambda: etcd.open_streams == 0)
        await link.aclose("done")
