"""Every example of the OpenAPI document is what the gateway sends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api import examples
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.asgi_client import Client, swallow
from tests.support.fake_etcd import FakeEtcd
from tests.support.openapi import Answers, operations
from tests.support.waiting import HANG

SINCE = "2026-01-01T00:00:00Z"


@pytest.fixture(name="fake")
async def _fake() -> AsyncIterator[FakeEtcd]:
    """The etcd of the examples."""
    async with FakeEtcd() as fake:
        fake.put(b"/svc/api-0", b"10.0.0.7:80")
        fake.put(b"/svc/api-1", b"10.0.0.8:80")
        fake.put(b"/svc/api-0", b"10.0.0.9:80")
        fake.put(b"/flags/mask", b"\xff\x00")
        yield fake


@dataclass
class World:
    """A gateway, and what its document shows."""

    gateway: Gateway
    app: Any
    http: httpx.AsyncClient

    async def told(self, request: str, **headers: str) -> httpx.Response:
        """The answer to the request of an example's summary."""
        method, _, target = request.partition(" ")
        return await self.http.request(method, target, headers=headers)


async def world(**settings: object) -> AsyncIterator[World]:
    """A gateway with these settings."""
    gateway = Gateway(load({"linger": "0s", "sync_timeout": "0.2s", **settings}), draw=lambda: 0.5)
    async with gateway.running():
        app = create_app(gateway=gateway)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=HANG) as http:
            yield World(gateway, app, http)


@pytest.fixture(name="fenced")
async def _fenced(fake: FakeEtcd) -> AsyncIterator[World]:
    """A gateway that serves two prefixes."""
    async for one in world(etcd=fake.endpoint, allow_prefixes="/svc/,/flags/"):
        yield one


@pytest.fixture(name="guarded")
async def _guarded(fake: FakeEtcd, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway that asks for tokens."""
    (tmp_path / "tokens").write_text(
        f"tokens: [{{name: dash, sha256: {sha256(b'dash').hexdigest()}, roles: [reader], "
        "expires: 2999-01-01T00:00:00Z}]"
    )
    (tmp_path / "policy").write_text("roles: {reader: {read: [/svc/], keys_only: [/audit/]}}")
    files = {"tokens_file": tmp_path / "tokens", "policy_file": tmp_path / "policy"}
    async for one in world(etcd=fake.endpoint, **files):
        yield one


def shown(document: dict[str, Any]) -> dict[str, tuple[str, str, str, Any]]:
    """Every example that the document shows: by its request, the path, status and type under which it stands."""
    found = {}
    for path, operation in operations(document):
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                for example in content.get("examples", {}).values():
                    found[example["summary"]] = (path, status, media_type, example["value"])
    return found


@pytest.mark.parametrize(
    "request_line",
    [one["summary"] for group in (examples.KV, examples.LIVEZ, *examples.PROBLEMS.values()) for one in group.values()],
)
async def test_the_request_has_this_answer(fenced: World, guarded: World, request_line: str) -> None:
    """The request of the summary is answered with exactly the example, where the document says so."""
    asked = guarded if request_line == "GET /v1/access" else fenced
    examples_of = {**shown(guarded.app.openapi()), **shown(fenced.app.openapi())}
    if request_line == "GET /v1/access":  # without a token, here
        examples_of[request_line] = ("/v1/access", "401", "application/problem+json", _only(examples.PROBLEMS[401]))
    if "/v1/watch" in request_line:  # the etcd of this example is too old for several ranges on one stream
        async with FakeEtcd(version="3.5.1") as old:
            async for one in world(etcd=old.endpoint):
                await eventually_known(one)
                answer = await one.told(request_line)
    else:
        answer = await asked.told(request_line)
    _path, status, media_type, value = examples_of[request_line]

    assert (str(answer.status_code), answer.headers["content-type"]) == (status, media_type), answer.text
    assert answer.json() == value


def _only(group: examples.Examples) -> Any:
    (one,) = group.values()
    return one["value"]


async def eventually_known(one: World) -> None:
    """Wait until the gateway knows etcd's version."""
    await one.told("GET /v1/kv?key=/any")


async def test_who_i_am(guarded: World) -> None:
    """The example is that of a token."""
    answer = await guarded.told("GET /v1/access", Authorization="Bearer dash")

    assert answer.json() == _only(examples.ACCESS)


@pytest.mark.parametrize("accept", [b"text/event-stream", b"application/x-ndjson"])
async def test_the_events_of_a_stream(fake: FakeEtcd, accept: bytes) -> None:
    """A stream sends exactly the examples, in their order, but for the moment since when it is stale."""
    documented = examples.SSE_EVENTS if b"event-stream" in accept else examples.EVENTS
    async for one in world(etcd=fake.endpoint):
        headers = [(b"accept", accept)]
        client = Client(one.gateway, swallow, b"prefix=/svc/", app=one.app, headers=headers)
        await client.until('"type":"synced"')
        fake.txn([(b"/svc/api-2", b"10.0.0.3:80"), (b"/svc/api-1", None)])
        await client.until('"type":"delete"')
        one.gateway.registry.drain()
        await client.until('"type":"close"')
        await client.leave()
        events = [*(server_sent if b"event-stream" in accept else ndjson)(client.text)]
    expected = [example["value"] for name, example in documented.items() if name != "status"]
    (second,) = [one for one in events if "10.0.0.8:80" in str(one)]  # the state has one more item

    assert [one for one in events if one != second] == expected
    answers = Answers(one_app(fake).openapi())
    schema = {"$ref": f"#/components/schemas/{'ServerSent' if b'event-stream' in accept else ''}Event"}
    assert [answers.faults(schema, one) for one in events] == [[]] * len(events)


def one_app(fake: FakeEtcd) -> Any:
    """An app, for its document."""
    return create_app(gateway=Gateway(load({"etcd": fake.endpoint})))


def ndjson(text: str) -> Iterator[dict[str, Any]]:
    """The events of an NDJSON stream."""
    return (json.loads(line) for line in text.splitlines() if line)


def server_sent(text: str) -> Iterator[dict[str, str]]:
    """The events of an SSE stream, without what is for the browser alone."""
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        fields.pop("retry", None)
        if fields:
            yield fields


async def test_a_stale_stream(fake: FakeEtcd) -> None:
    """The example of a status is that of an etcd which is silent."""
    async for one in world(etcd=fake.endpoint, stale_after="1s"):
        client = Client(one.gateway, swallow, b"prefix=/svc/&format=ndjson", app=one.app)
        await client.until('"type":"synced"')
        fake.stall()
        await client.until('"type":"status"')
        fake.flow()
        await client.leave()
        (status,) = [json.loads(line) for line in client.text.splitlines() if '"status"' in line][:1]

    assert isinstance(status["age"], int)
    assert status | {"since": SINCE, "age": 10} == examples.EVENTS["status"]["value"]


async def test_every_example_is_valid(fenced: World, guarded: World) -> None:
    """Each example has the schema under which it stands, and every event has an example."""
    for one in (fenced, guarded):
        document = one.app.openapi()
        answers = Answers(document)
        for path, status, media_type, value in shown(document).values():
            schema = document["paths"][path]["get"]["responses"][status]["content"][media_type]["schema"]
            assert answers.faults(schema, value) == []
    kinds = {one["value"]["type"] for one in examples.EVENTS.values()}
    assert kinds == set(fenced.app.openapi()["components"]["schemas"]["Event"]["discriminator"]["mapping"])


async def test_a_page_of_another_cluster_as_the_first_request(fake: FakeEtcd) -> None:
    """The token is refused, though the gateway learns the cluster's id only from the answer to this request."""
    request_line, value = next((one["summary"], one["value"]) for one in examples.PROBLEMS[410].values())
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": "0s"}))
    async with gateway.running():
        assert not gateway.upstream.cluster_id
        transport = httpx.ASGITransport(create_app(gateway=gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=HANG) as http:
            answer = await http.get(request_line.removeprefix("GET "))

    assert answer.json() == value


async def test_bodies_without_examples(fenced: World) -> None:
    """What differs from moment to moment has the schema that the document says."""
    client = Client(fenced.gateway, swallow, b"prefix=/svc/", app=fenced.app)
    await client.until("synced")
    answers = Answers(fenced.app.openapi())
    for target in (
        "/v1/feeds",
        "/v1/feeds?prefix=/svc/",
        "/readyz",
        "/metrics",
        "/v1/access",
        "/v1/progress",
        "/v1/progress?prefix=/svc/",
    ):
        answer = await fenced.http.get(target)
        path = target.partition("?")[0]
        found = answers.answer_faults(path, answer.status_code, answer.headers["content-type"], answer.content)
        assert found == [], target
    await client.leave()
