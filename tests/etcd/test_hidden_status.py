"""Members that hide their status from the gateway's user (3.5.28 and later).

A fake plays them: this machine has no such etcd.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
import pytest
from aetcd import rpc

from tests.etcd.conftest import says, values
from tests.integration.test_faults import follow
from tests.support.fake_etcd import FakeEtcd, RefusedError, _unary
from tests.support.gateway import gateway
from tests.support.waiting import eventually


class Discreet(FakeEtcd):
    """From 3.5.28 on only root may read the status (etcd #21663).

    *shy*: as 3.5.28, which hides the list of members too.
    """

    shy = False
    learner = False

    def _handlers(self) -> Iterable[grpc.GenericRpcHandler]:
        yield from super()._handlers()
        table = {"MemberList": _unary(self._member_list, "MemberList")}
        yield grpc.method_handlers_generic_handler("etcdserverpb.Cluster", table)

    async def _status(self, _request: Any) -> Any:
        raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")

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


@pytest.mark.process
async def test_a_learner_that_hides_its_status() -> None:
    """A learner is recognised by the list of members."""
    async with Discreet("3.6.0") as etcd:
        etcd.learner = True
        async with gateway(etcd.endpoint) as server:
            await eventually(lambda: says(server, "down", "learner"))
