"""Servers in the place of etcd that answer watches under their own ids, such as etcd's grpc-proxy."""

from __future__ import annotations

import httpx
import pytest

from app.core.keys import KeyRange
from app.core.multiplex import Message, Multiplexer
from tests.etcd.conftest import condition, says, values
from tests.support.gateway import gateway
from tests.support.grpc_proxy import grpc_proxy
from tests.support.metrics import etcd_metric
from tests.support.secure import SecureEtcd
from tests.support.streams import request, watch
from tests.support.versions import Candidate
from tests.support.waiting import eventually

WORDS = "its own watch ids, as etcd's grpc-proxy does"


@pytest.mark.etcd
async def test_a_grpc_proxy_is_refused_by_name(etcd: SecureEtcd, candidate: Candidate) -> None:
    """The server is refused before a stream waits for it.

    /readyz, /v1/feeds, the log, and the errors of stream requests name it.
    """
    async with grpc_proxy(etcd.endpoint, candidate.folder) as endpoint, gateway(endpoint) as server:
        await eventually(lambda: says(server, "down", WORDS))
        async with httpx.AsyncClient(base_url=server.base, trust_env=False) as http:
            assert (await http.get("/readyz")).status_code == 503
            assert WORDS in (await http.get("/v1/feeds")).json()["etcd"]["reason"]
            refused = await http.get("/v1/watch?prefix=/svc/")
            assert (refused.status_code, refused.json()["code"]) == (503, "etcd-unavailable")
            assert WORDS in refused.json()["detail"]
        async with await request(f"{server.base}/v1/watch?prefix=/svc/", {"Accept": "text/event-stream"}) as held:
            closed = (await held.until("close"))[-1]
            assert (closed.data["reason"], WORDS in closed.data["detail"]) == ("unavailable", True)
    said = [line for line in server.lines if line["message"] == "etcd is out of reach"]
    assert WORDS in said[0]["reason"]
    assert said[0]["endpoint"] == endpoint


@pytest.mark.etcd
@pytest.mark.one_etcd
async def test_another_endpoint_is_used(etcd: SecureEtcd, candidate: Candidate) -> None:
    """Another endpoint is used, and the attempt at the proxy leaves neither a watcher nor a stream at etcd."""
    async with (
        grpc_proxy(etcd.endpoint, candidate.folder) as endpoint,
        gateway(f"{endpoint},{etcd.endpoint}") as server,
    ):
        await eventually(lambda: says(server, "ready"))
        assert (await condition(server))[0] == "ready"
        async with await watch(server.base, "prefix=/svc/") as stream:
            await stream.until("synced")
        assert (await values(server))[0] == 200
    async with gateway(etcd.endpoint) as server:
        await eventually(lambda: says(server, "ready"))

        async def nothing_is_held() -> bool:
            return not await etcd_metric(etcd.endpoint, "etcd_debugging_mvcc_watcher_total")

        await eventually(nothing_is_held)


def test_an_answer_for_nobody_is_no_ones() -> None:
    """Of two creates, the first is answered with the second's id, after an answer with an id that no create has."""
    mux = Multiplexer()
    heard: list[object] = []
    for _ in range(2):
        mux.create(KeyRange("prefix", b"/svc/"), 0, heard.append)
    mux.receive(Message(0, 5, created=True), progress_trusted=True)
    assert mux.unmatched
    assert heard == []


def test_a_refusal_under_no_id_is_no_sign() -> None:
    """A refusal with id -1 is not a sign: etcd itself sends -1 there."""
    mux = Multiplexer()
    heard: list[object] = []
    mux.create(KeyRange("prefix", b"/svc/"), 0, heard.append)
    mux.receive(Message(-1, created=True, canceled=True, cancel_reason="no"), progress_trusted=True)
    assert not mux.unmatched
    assert len(heard) == 1
