"""Errors as problems: what clients are told, and what they are never told (etcd's address, the gateway's user)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import pytest
from aetcd import rpc
from fastapi import FastAPI, Request

from app.api.problems import install, problem
from app.core.errors import BadRequestError, GatewayError, TooLargeError, TransientError, UnauthorizedError
from app.etcd.convert import range_error
from tests.support.embedded import EmbeddedEtcd
from tests.support.fake_etcd import FakeEtcd
from tests.support.gateway import GatewayProcess, gateway
from tests.support.streams import request
from tests.support.waiting import eventually

ENDPOINT = "https://etcd-0.secret.internal:2379"
WORDS = "ipv4:10.9.8.7:2379: failed to connect for user 'gateway' with /etc/secret/key.pem"
SSE = {"Accept": "text/event-stream"}


def body_of(error: GatewayError) -> dict[str, Any]:
    """The body of a problem."""
    found: dict[str, Any] = json.loads(bytes(problem(error).body))
    return found


def kinds(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    """All kinds of errors."""
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_every_error_is_a_problem(kind: type[GatewayError]) -> None:
    """Every error is a problem as in RFC 9457, with a code for machines; caches may keep none of them."""
    answer = problem(kind("what is wrong"))
    body = body_of(kind("what is wrong"))

    assert answer.media_type == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert body == {
        "type": f"urn:etcd-watch-gateway:problem:{kind.code}",
        "title": kind.title,
        "status": answer.status_code,
        "code": kind.code,
        "detail": "what is wrong",
    }
    assert ("retry-after" in answer.headers) == issubclass(kind, TransientError)
    assert ("www-authenticate" in answer.headers) == issubclass(kind, UnauthorizedError)


def test_the_parameter_is_named() -> None:
    """A problem of a wrong request names the parameter, if there is one."""
    assert body_of(BadRequestError("x", parameter="prefix"))["parameter"] == "prefix"
    assert body_of(BadRequestError("x", parameter=""))["parameter"] == ""


@pytest.mark.parametrize(("seconds", "header"), [(None, "10"), (0.2, "1"), (1.0, "1"), (3600.1, "3601")])
def test_when_to_come_back(seconds: float | None, header: str) -> None:
    """``Retry-After`` is in whole seconds, never too early; its default is the error's own."""
    assert problem(TooLargeError("x"), retry_after=seconds).headers["retry-after"] == header


def test_headers_of_the_error() -> None:
    """The error's headers are the headers of the answer."""
    error = BadRequestError("x")
    error.headers = {"X-Etcd-Revision": "7"}

    assert problem(error).headers["x-etcd-revision"] == "7"


async def ask(path: str, method: str = "GET") -> httpx.Response:
    """Request endpoints that fail in each way."""
    app = FastAPI(docs_url=None)
    install(app)

    async def refuses(_request: Request) -> None:
        raise UnauthorizedError("no token")

    async def breaks(_request: Request) -> None:
        raise RuntimeError("secret.internal")

    async def wants(number: int) -> None:
        del number

    for name, endpoint in (("/refuses", refuses), ("/breaks", breaks), ("/wants", wants)):
        app.add_api_route(name, endpoint)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        return await http.request(method, path)


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [
        ("/refuses", "GET", 401, "unauthorized"),
        ("/breaks", "GET", 500, "internal"),
        ("/wants", "GET", 500, "internal"),
        ("/nothing", "GET", 404, "no-such-path"),
        ("/refuses", "POST", 405, "method-not-allowed"),
    ],
)
async def test_whatever_fails_is_answered_by_a_problem(path: str, method: str, status: int, code: str) -> None:
    """Every failure is answered with a problem; a problem of our own defect does not quote the error."""
    answer = await ask(path, method)

    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["status"], answer.json()["code"]) == (status, status, code)
    assert "secret" not in answer.text
    assert answer.headers.get("allow") == ("GET, HEAD" if status == 405 else None)


# --- etcd -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda code: code.name)
def test_no_failure_of_a_call_is_told_with_its_words(code: grpc.StatusCode) -> None:
    """The text of a failed call is never told, whatever its code: it may contain an address."""
    error = range_error(ENDPOINT, rpc.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), WORDS))
    if isinstance(error, GatewayError):  # other errors are never told to clients
        said = bytes(problem(error).body).decode()
        assert not [word for word in ("secret", "2379", "10.9.8.7", "gateway'") if word in said], said
        assert ENDPOINT in str(error)
        assert WORDS in str(error)


@pytest.mark.parametrize("code", [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT])
def test_the_words_of_etcd_itself_are_told(code: grpc.StatusCode) -> None:
    """etcd's own text of a refusal is told."""
    words = "etcdserver: user name is empty"
    error = range_error(ENDPOINT, rpc.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), words))
    assert isinstance(error, GatewayError)
    assert error.detail == words


async def everything(server: GatewayProcess) -> list[str]:
    """All that clients are told by every kind of request, status included."""
    said = []
    async with httpx.AsyncClient(base_url=server.base, trust_env=False) as http:
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
    """Clients are told that etcd is away; operators are told where it is, by the log and /readyz."""
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
    """An endpoint's failure names its address, as gRPC's own texts do."""
    async with FakeEtcd() as fake, gateway(fake.endpoint) as server:
        fake.fail_ranges(1000, grpc.StatusCode.UNKNOWN, WORDS)
        async with httpx.AsyncClient(base_url=server.base, trust_env=False) as http:
            answer = await http.get("/v1/kv?prefix=/svc/")
    assert answer.status_code == 503
    assert "10.9.8.7" not in answer.text
