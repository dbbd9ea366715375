"""Members that hide their status from the gateway's user (3.5.28 and later).

A fake plays them: this machine has no such etcd.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
import httpx
import pytest
from aetcd import rpc

from tests.etcd.conftest import says, values
from tests.etcd.test_link import link_to
from tests.integration.test_faults import follow
from tests.support.fake_etcd import FakeEtcd, RefusedError, _unary
from tests.support.gateway import gateway
from tests.support.waiting import HANG, eventually


class Discreet(FakeEtcd):
    """From 3.5.28 on only root may read the status (etcd #21663).

    *shy*: as 3.5.28, which hides the list of members too.
    """

    shy = False
    learner = False

    def __init__(self, version: str) -> None:
        super().__init__(version)
        self.refuse_status = grpc.StatusCode.PERMISSION_DENIED

    def _handlers(self) -> Iterable[grpc.GenericRpcHandler]:
        yield from super()._handlers()
        table = {"MemberList": _unary(self._member_list, "MemberList")}
        yield grpc.method_handlers_generic_handler("etcdserverpb.Cluster", table)

    async def _member_list(self, _request: Any) -> Any:
        if self.shy:
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")
        us = rpc.Member(ID=self.member_id, isLearner=self.learner)
        return rpc.MemberListResponse(header=self.header(), members=[us, rpc.Member(ID=1, isLearner=True)])


@pytest.mark.parametrize("shy", [False, True])
@pytest.mark.process
async def test_a_member_that_hides_its_status(shy: bool) -> None:
    """The version is unknown, so progress is not trusted; everything else works, and the log reports this once."""
    async with Discreet("3.5.28") as etcd, gateway(etcd.endpoint) as server:
        etcd.shy = shy
        etcd.put(b"/svc/a", b"1")
        async with follow(server.base, 1) as (follower,):
            assert await values(server) == (200, {"/svc/a": "1"})
            assert await says(server, "ready")
            assert follower.mirror.resets == ["initial"]
    said = [line for line in server.lines if line["message"].startswith("etcd does not tell its version")]
    assert len(said) == 1


@pytest.mark.parametrize("shy", [False, True])
async def test_a_version_that_the_operator_vouches_for(shy: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The version is used for every member that does not tell its own, also for one behind the same name."""
    caplog.set_level("INFO")
    async with Discreet("3.5.28") as etcd:
        etcd.shy = shy
        link = link_to(etcd.endpoint, vouched_version="3.5.28")
        assert not link.progress_trusted
        for _ in range(2):
            assert await link.check(HANG) is None
        assert (link.version_text, link.progress_trusted) == ("3.5.28", True)
        heard = etcd.header()
        heard.member_id += 1
        link._heard_on_a_stream(heard)
        assert link.progress_trusted
        assert not link._may_lose(heard.member_id)
        await link.aclose("done")
    assert [record.message for record in caplog.records if "GATEWAY_ETCD_VERSION" in record.message] == [
        "etcd does not tell its version to the gateway's user: GATEWAY_ETCD_VERSION is used"
    ]


async def test_a_version_that_is_vouched_for_is_judged_like_any_other() -> None:
    """A vouched version whose progress overtakes events is not trusted."""
    async with Discreet("3.5.28") as etcd:
        link = link_to(etcd.endpoint, vouched_version="3.5.7")
        assert await link.check(HANG) is None
        assert (link.version_text, link.progress_trusted) == ("3.5.7", False)
        await link.aclose("done")


@pytest.mark.parametrize("first", [True, False], ids=["told first", "told later"])
async def test_a_version_that_the_member_tells_wins(first: bool) -> None:
    """The operator may not have noticed that the member runs another version."""
    async with Discreet("3.5.1") as etcd:
        link = link_to(etcd.endpoint, vouched_version="3.5.28")
        for tells in (first, not first):
            etcd.refuse_status = None if tells else grpc.StatusCode.PERMISSION_DENIED
            assert await link.check(HANG) is None
        assert (link.version_text, link.progress_trusted) == ("3.5.1", False)
        heard = etcd.header()
        heard.member_id += 1
        link._heard_on_a_stream(heard)
        assert not link.progress_trusted
        await link.aclose("done")


@pytest.mark.process
async def test_the_version_that_is_used_is_reported() -> None:
    """/v1/feeds and the metric name the version that decides what the gateway trusts."""
    settings = {"GATEWAY_ETCD_VERSION": "3.5.28"}
    async with (
        Discreet("3.6.0") as etcd,
        gateway(etcd.endpoint, settings=settings) as server,
        httpx.AsyncClient(trust_env=False, base_url=server.base) as client,
    ):
        await eventually(lambda: says(server, "ready"))
        assert (await client.get("/v1/feeds")).json()["etcd"]["version"] == "3.5.28"
        assert 'etcd_version="3.5.28"' in (await client.get("/metrics")).text


@pytest.mark.process
async def test_a_learner_that_hides_its_status() -> None:
    """A learner is recognised by the list of members."""
    async with Discreet("3.6.0") as etcd:
        etcd.learner = True
        async with gateway(etcd.endpoint) as server:
            await eventually(lambda: says(server, "down", "learner"))
