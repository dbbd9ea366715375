"""Attacks on the wire: bytes that end lines, names of hosts, origins, and paths that mean another path."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from app.gateway import Gateway
from app.logs import JsonFormatter
from app.main import create_app
from app.settings import load
from tests.stream.conftest import _fake
from tests.support.asgi_client import Client, http_scope, swallow
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import HANG

__all__ = ["_fake"]

PAGE = "https://page.example"
# Everything that ends a line, or a block, in HTTP, SSE, NDJSON, or for `str.splitlines`.
HOSTILE = (
    "\r\nX-Evil: 1\r\n\r\n",
    '\n\nevent: close\ndata: {"type":"close"}\nid: 00000000-99\n\n',
    '"}\n{"type":"reset","cursor":"00000000-99"}\n',
    "\rid: 00000000-99\r\r",
    "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029",
    "\0\x1b[31m\x7f",
    "\\u000aid: x\\",
)


HEADERS = (
    b"x-request-id", b"last-event-id", b"origin", b"if-none-match", b"prefer", b"user-agent", b"accept", b"host",
)  # fmt: skip


@pytest.fixture(name="guarded")
async def _guarded(fake: FakeEtcd, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with a token, a policy, and one origin whose pages may read."""
    (tmp_path / "tokens").write_text(f"tokens: [{{name: a, sha256: {sha256(b'a').hexdigest()}, roles: [r, operator]}}]")
    (tmp_path / "policy").write_text("roles: {r: {read: [/svc/]}}")
    files = {"tokens_file": tmp_path / "tokens", "policy_file": tmp_path / "policy"}
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": "0s", "cors_origins": PAGE, **files}))
    async with gateway.running():
        yield gateway


@pytest.fixture(name="http")
async def _http(guarded: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(gateway=guarded))
    headers = {"Authorization": "Bearer a"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers, timeout=HANG) as http:
        yield http


# --- bytes that end lines ---------------------------------------------------------------------------------------------


def lines_of(text: str) -> list[str]:
    """The lines as the strictest and the most careless parser see them: they must agree."""
    lines = re.split(r"\r\n|\r|\n", text)
    assert lines[:-1] == text.splitlines() or lines == text.splitlines()
    return lines


@pytest.mark.parametrize("form", ["sse", "ndjson"])
async def test_a_key_or_a_value_ends_no_line_of_a_stream(guarded: Gateway, fake: FakeEtcd, form: str) -> None:
    """Each event has the key and the value as they are. No event, id or line comes out of them."""
    headers = [(b"authorization", b"Bearer a")]
    client = Client(guarded, swallow, f"prefix=/svc/&format={form}".encode(), headers=headers)
    await client.until('"type":"synced"')
    for hostile in HOSTILE:
        fake.put(f"/svc/{hostile}".encode(), (hostile * 2).encode())
    fake.delete(f"/svc/{HOSTILE[-1]}".encode())
    await client.until('"type":"delete"')
    await client.leave()
    events: list[dict[str, Any]] = []
    for line in lines_of(client.text):
        if form == "ndjson":
            events += [json.loads(line)] if line else []
        else:
            assert re.match(r"(|:.*|(event|data|id|retry): .*)$", line), line
            events += [json.loads(line.removeprefix("data: "))] if line.startswith("data: ") else []

    assert [event["type"] for event in events] == ["reset", "put", "synced", *["put"] * len(HOSTILE), "delete"]
    found = [(event["key"], event["value"]) for event in events[3:-1]]
    assert found == [(f"/svc/{hostile}", hostile * 2) for hostile in HOSTILE]
    assert "00000000-99" not in re.findall(r"(?m)^id: (.*)$", client.text)


async def test_a_key_ends_no_line_of_an_answer(http: httpx.AsyncClient, fake: FakeEtcd) -> None:
    """A list, a refusal, /v1/feeds and /metrics: the key is text in JSON, or is not there."""
    for hostile in HOSTILE:
        key = f"/svc/{hostile}"
        fake.put(key.encode(), hostile.encode())
        listed = await http.get("/v1/kv", params={"key": key})
        assert {"key": key, "value": hostile}.items() <= listed.json()["kv"].items()
        refused = await http.get("/v1/kv", params={"prefix": f"/other/{hostile}"})
        unknown = await http.get("/v1/kv", params={f"a{hostile}": "1"})
        held = await http.get("/v1/feeds", params={"key": key})
        assert (refused.status_code, unknown.status_code, held.status_code) == (403, 400, 200)
        for answer in (listed, refused, unknown, held):
            assert len(answer.text.splitlines()) == 1
    assert "evil" not in (await http.get("/metrics")).text.lower()


@pytest.mark.parametrize("path", ["/v1/watch", "/v1/kv"])
async def test_no_header_of_an_answer_has_what_a_client_sent(guarded: Gateway, path: str) -> None:
    """Whatever a server lets through: no header of the answer holds a byte that ends a line, nor a new header."""
    heads: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            heads.append(message)

    app = create_app(gateway=guarded)
    for name, hostile in itertools.product(HEADERS, HOSTILE):
        headers = [(b"authorization", b"Bearer a"), (name, hostile.encode())]
        await app(http_scope(path, b"prefix=/svc/", headers=headers), receive, send)

    assert heads
    for head in heads:
        for key, value in head["headers"]:
            assert not re.search(rb"[\r\n\0]", key + value)
            assert b"evil" not in (key + value).lower()


async def test_a_line_of_the_log_stays_one(http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    """A range, a client's name and a request's id of the attacker are text in one line."""
    caplog.set_level(logging.INFO)
    for hostile in HOSTILE:
        headers = {b"User-Agent": hostile.encode(), b"X-Request-Id": hostile.encode()}
        await http.get("/v1/kv", params={"key": f"/svc/{hostile}"}, headers=headers)
        await http.get("/v1/kv", params={"key": f"/other/{hostile}"}, headers=headers)

    assert [record.name for record in caplog.records].count("gateway.audit") == 2 * len(HOSTILE)
    for record in caplog.records:
        assert len(JsonFormatter().format(record).splitlines()) == 1


# --- hosts, origins and paths -----------------------------------------------------------------------------------------

PATHS = ("/", "/docs", "/openapi.json", "/livez", "/v1/kv?prefix=/svc/", "/v1/access", "/v1/kv/", "/nothing")
ELSEWHERE = {
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "evil",
    "X-Forwarded-Prefix": "/evil",
    "Forwarded": "host=evil.example;proto=evil",
    "X-Original-URL": "/metrics?evil",
    "X-Rewrite-URL": "/metrics?evil",
    "X-HTTP-Method-Override": "DELETE",
}


@pytest.mark.parametrize("path", PATHS)
async def test_the_host_changes_nothing(http: httpx.AsyncClient, path: str) -> None:
    """No answer names the host that a client sent, redirects to it, or depends on it; so no cache is poisoned."""
    plain = await http.get(path)
    for host in ("evil.example", "", "evil.example:99999", "[::1", "test@evil.example", "a, evil"):
        answer = await http.get(path, headers={"Host": host, **ELSEWHERE})

        assert (answer.status_code, answer.content) == (plain.status_code, plain.content)
        assert answer.status_code < 300 or answer.status_code == 404
        assert "evil" not in answer.text + str(answer.headers)


async def test_no_header_leads_around_a_refusal(http: httpx.AsyncClient) -> None:
    """Headers by which some frameworks serve another path or method do not."""
    for name in ELSEWHERE:
        answer = await http.get("/v1/kv?prefix=/other/", headers={name: "/livez"})

        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


ORIGINS = (
    "null", "https://page.example.evil", "http://page.example", "https://page.example:8443", "https://evil-page.example",
    "https://page.example/", "https://PAGE.EXAMPLE", "https://evil.example, https://page.example", "*", "",
    "https://page.example\x00.evil",
)  # fmt: skip


@pytest.mark.parametrize("origin", ORIGINS)
async def test_an_origin_that_only_looks_like_one(guarded: Gateway, http: httpx.AsyncClient, origin: str) -> None:
    """Only the named origin may read: lists, refusals, streams, and what a preflight asks for. None is reflected."""
    headers = {"Origin": origin}
    answers = [await http.get(target, headers=headers) for target in ("/v1/kv?prefix=/svc/", "/v1/kv?prefix=/x")]
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    answers.append(await http.options("/v1/kv?prefix=/svc/", headers=headers | asked))
    client = Client(
        guarded, swallow, b"prefix=/svc/", headers=[(b"authorization", b"Bearer a"), (b"origin", origin.encode())]
    )
    await client.until("synced")
    await client.leave()

    assert client.status == 200
    for found in [answer.headers for answer in answers] + [client.headers]:
        assert "access-control-allow-origin" not in found
        assert "access-control-allow-credentials" not in found
    named = await http.get("/v1/kv?prefix=/svc/", headers={"Origin": PAGE})
    assert named.headers["access-control-allow-origin"] == PAGE


SPELLINGS = (
    "/v1/kv/", "/v1//kv", "//v1/kv", "/v1/./kv", "/x/../v1/kv", "/V1/KV", "/v1/%6bv", "/v1/kv;a=b", "/v1/kv%00",
     "/v1/kv%2f", "/v1%2fkv", "/v1/kv%0d%0a", "/v1/watch/", "/v1/feeds/", "/metrics/", "/METRICS", "/docs/../metrics",
)  # fmt: skip


async def test_no_spelling_of_a_path_goes_around_the_credentials(guarded: Gateway) -> None:
    """Another spelling of a path is not there, or needs what the path needs."""
    transport = httpx.ASGITransport(create_app(gateway=guarded))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=HANG) as http:
        for path in SPELLINGS:
            answer = await http.get(httpx.URL("http://test").copy_with(raw_path=f"{path}?prefix=/svc/".encode()))

            assert answer.status_code in (401, 404), path
            assert answer.headers["content-type"] == "application/problem+json"
