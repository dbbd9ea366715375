"""What clients are told of an etcd that does not serve them: never where it is, or who we are there."""

from __future__ import annotations

from urllib.parse import urlsplit

import grpc
import httpx
import pytest
from aetcd import rpc

from app.api.problems import problem
from app.core.errors import GatewayError
from app.etcd.convert import range_error
from tests.support.embedded import EmbeddedEtcd
from tests.support.fake_etcd import FakeEtcd
from tests.support.gateway import GatewayProcess, gateway
from tests.support.streams import request
from tests.support.waiting import eventually

ENDPOINT = "https://etcd-0.secret.internal:2379"
WORDS = "ipv4:10.9.8.7:2379: failed to connect for user 'gateway' with /etc/secret/key.pem"
SSE = {"Accept": "text/event-stream"}


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda code: code.name)
def test_no_failure_of_a_call_is_told_with_its_words(code: grpc.StatusCode) -> None:
    """Whatever the code: an address can be in the words of any."""
    error = range_error(ENDPOINT, rpc.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), WORDS))
    if isinstance(error, GatewayError):  # others are never told to clients
        said = bytes(problem(error).body).decode()
        assert not [word for word in ("secret", "2379", "10.9.8.7", "gateway'") if word in said], said
        assert ENDPOINT in str(error)
        assert WORDS in str(error)


@pytest.mark.parametrize("code", [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT])
def test_the_words_of_etcd_itself_are_told(code: grpc.StatusCode) -> None:
    """Of a refusal."""
    words = "etcdserver: user name is empty"
    error = range_error(ENDPOINT, rpc.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), words))
    assert isinstance(error, GatewayError)
    assert error.detail == words


async def everything(server: GatewayProcess) -> list[str]:
    """All that clients are told, asked in every way, status and all."""
    said = []
    async with httpx.AsyncClient(base_url=server.base, timeout=30, trust_env=False) as http:
        for path in (
            "/v1/kv?key=/svc/a",
            "/v1/kv?prefix=/svc/",
            "/v1/kv?prefix=/svc/&count_only=1",
            "/v1/watch?prefix=/svc/",
            "/v1/watch?prefix=/svc/&format=ndjson",
        ):
            answer = await http.get(path)
            assert answer.status_code >= 500, answer.text
            said.append(f"{answer.headers} {answer.text}")
    async with await request(f"{server.base}/v1/watch?prefix=/svc/", SSE) as held:
        assert held.status == 200
        text = ""
        while data := await held.chunk():
            text += data.decode()
        assert "event: close" in text
        said.append(text)
    return said


async def test_etcd_is_away() -> None:
    """Clients are told that; operators are told where it is, in the log and by /readyz."""
    async with EmbeddedEtcd() as etcd, gateway(etcd.endpoint) as server:
        await etcd.kill()

        async def known() -> bool:
            async with httpx.AsyncClient(base_url=server.base, trust_env=False) as http:
                return "reason" in (await http.get("/readyz")).json()["etcd"]

        await eventually(known)
        port = str(urlsplit(etcd.endpoint).port)
        for said in await everything(server):
            assert port not in said, said
            assert "etcd is out of reach" in said
    assert [line for line in server.lines if line["message"] == "not served" and port in line["cause"]]
    assert [line for line in server.lines if line["message"] == "refused" and port in line["cause"]]


async def test_an_endpoint_says_its_address() -> None:
    """In the words of a failure, as gRPC's own do."""
    async with FakeEtcd() as fake, gateway(fake.endpoint) as server:
        fake.fail_ranges(1000, grpc.StatusCode.UNKNOWN, WORDS)
        async with httpx.AsyncClient(base_url=server.base, timeout=30, trust_env=False) as http:
            answer = await http.get("/v1/kv?prefix=/svc/")
    assert answer.status_code == 503
    assert "10.9.8.7" not in answer.text
