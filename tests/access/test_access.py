"""Access over HTTP: which client may read which range, from which page, how many clients at a time, and how each kind
of client sees a refusal.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, EtcdClient, etcd_client
from tests.support.gateway import GatewayProcess, gateway
from tests.support.metrics import etcd_metric
from tests.support.streams import Stream, request, watch
from tests.support.waiting import eventually

pytestmark = [pytest.mark.etcd, pytest.mark.asyncio(loop_scope="module")]

TOKEN = "tök-en-0123456789"
EVENT_SOURCE = {"Accept": "text/event-stream"}
NOWHERE = "http://127.0.0.1:1"


@pytest_asyncio.fixture(name="etcd", scope="module", loop_scope="module")
async def _etcd() -> AsyncIterator[EmbeddedEtcd]:
    """One etcd for all tests of this module."""
    async with EmbeddedEtcd(args=ALONE) as etcd, etcd_client(etcd.endpoint) as client:
        await client.put("/svc/a", "1")
        yield etcd


@pytest.fixture(name="token_file", scope="module")
def _token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(f"{TOKEN}\n")
    return path


@pytest_asyncio.fixture(name="fenced", scope="module", loop_scope="module")
async def _fenced(etcd: EmbeddedEtcd, token_file: Path) -> AsyncIterator[GatewayProcess]:
    """A gateway with an allow-list, a token and a CORS list at the same time, as in production."""
    fence = {
        "GATEWAY_ALLOW_PREFIXES": "/svc/, /bin/%ff",
        "GATEWAY_TOKEN_FILE": str(token_file),
        "GATEWAY_CORS_ORIGINS": "https://app.example,http://localhost:3000",
    }
    async with gateway(etcd.endpoint, settings=fence) as running:
        yield running
    assert TOKEN not in json.dumps(running.lines, ensure_ascii=False)


def bearer(token: str = TOKEN) -> dict[str, str]:
    """The Authorization header, in the bytes that a client sends."""
    return {"Authorization": f"Bearer {token}"}


async def ask(
    server: GatewayProcess, target: str, headers: Mapping[str, str] | None = None, method: str = "GET"
) -> Stream:
    """Send one request on its own connection; a stream is left after its first byte."""
    answer = await request(server.base + target, dict(headers or {}), method=method)
    await answer.close()
    return answer


def problem(answer: Stream) -> dict[str, Any]:
    """The problem in the answer."""
    assert answer.headers["content-type"] == "application/problem+json", (answer.status, answer.headers)
    found: dict[str, Any] = json.loads(answer.body)
    return found


# --- the allow-list ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query", ["prefix=/svc/", "prefix=/svc/a/b", "prefix=%2fsvc%2F", "key=/svc/a", "key=/svc/", "prefix=/bin/%FF%00"]
)
async def test_inside(fenced: GatewayProcess, query: str) -> None:
    """An allowed prefix and every range that starts with it may be read; prefixes are compared as bytes."""
    for path in ("/v1/kv", "/v1/watch", "/v1/feeds"):
        answer = await ask(fenced, f"{path}?{query}", bearer())

        assert answer.status in (200, 404), (path, answer.body)
        assert answer.status == 200 or problem(answer)["code"] == "key-not-found"


OUTSIDE = [
    *("prefix=", "prefix=/", "prefix=/svc", "prefix=/svc0", "prefix=/SVC/", "prefix=//svc/", "prefix=/other/"),
    *("prefix=/other/../svc/", "prefix=/bin/", "key=/svc", "key=/bin/%fe"),
]


@pytest.mark.parametrize("query", OUTSIDE)
async def test_outside(fenced: GatewayProcess, query: str) -> None:
    """A range that is wider than, beside, or spelt differently from an allowed prefix gets a real 403 that names the
    parameter, even as an EventSource.
    """
    for path in ("/v1/kv", "/v1/watch", "/v1/feeds"):
        for headers in ({}, EVENT_SOURCE):
            answer = await ask(fenced, f"{path}?{query}", {**bearer(), **headers})

            assert answer.status == 403
            assert problem(answer)["code"] == "forbidden"
            assert problem(answer)["parameter"] == query.partition("=")[0]


async def test_nothing_starts_for_the_refused(etcd: EmbeddedEtcd) -> None:
    """A refused range starts no feed, no watcher and no Range at etcd."""

    async def no_watcher() -> bool:
        return await etcd_metric(etcd.endpoint, "etcd_debugging_mvcc_watcher_total") == 0

    await eventually(no_watcher)  # the watchers of earlier tests linger
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_ALLOW_PREFIXES": "/svc/", "GATEWAY_LINGER": "60s"}) as server,
        httpx.AsyncClient(base_url=server.base) as http,
    ):
        for query in OUTSIDE:
            assert (await http.get(f"/v1/watch?{query}")).status_code == 403
            assert (await http.get(f"/v1/kv?{query}")).status_code == 403
        text = (await http.get("/metrics")).text
        feeds = (await http.get("/v1/feeds")).json()["feeds"]
        assert await no_watcher()

    assert feeds == []
    assert "etcd_watch_gateway_feeds_started_total 0.0" in text
    assert "etcd_watch_gateway_etcd_ranges_total 0.0" in text


async def test_a_page_does_not_lead_outside(etcd: EmbeddedEtcd, etcd_kv: EtcdClient) -> None:
    """A page token from a wider prefix does not lead outside: a token must match the prefix of its request."""
    await etcd_kv.transact({"/svc/p1": "", "/svc/p2": "", "/zzz/secret": "s"})
    async with gateway(etcd.endpoint) as open_server, httpx.AsyncClient(base_url=open_server.base) as http:
        token = (await http.get("/v1/kv?prefix=/&limit=1")).json()["next_page"]
        elsewhere = (await http.get("/v1/kv?prefix=/zzz/")).json()
    assert elsewhere["count"] == 1
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_ALLOW_PREFIXES": "/svc/"}) as server,
        httpx.AsyncClient(base_url=server.base) as http,
    ):
        answer = await http.get(f"/v1/kv?prefix=/svc/&page={token}")

    assert answer.status_code in (400, 410)


# --- the token --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN.upper()}"},
        {"Authorization": "Bearer \u00ff\u00fe"},
    ],
)
async def test_wrong_token(fenced: GatewayProcess, headers: dict[str, str]) -> None:
    """A wrong token gets a 401 that names the scheme, before any other check of the request, even as an EventSource."""
    for target in ("/v1/kv?prefix=/svc/", "/v1/watch?prefix=/svc/", "/v1/feeds", "/v1/kv?prefix=/other/", "/v1/watch"):
        for accept in ({}, EVENT_SOURCE):
            answer = await ask(fenced, target, {**headers, **accept})

            assert (answer.status, problem(answer)["code"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert TOKEN.encode() not in answer.body


@pytest.mark.parametrize("value", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER   {TOKEN} "])
async def test_right_token(fenced: GatewayProcess, value: str) -> None:
    """The case of the scheme and the spaces around the token do not matter."""
    answer = await ask(fenced, "/v1/kv?prefix=/svc/", {"Authorization": value})

    assert answer.status == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/", "/docs", "/openapi.json"])
async def test_what_needs_no_token(fenced: GatewayProcess, path: str) -> None:
    """Probes, metrics and the page need no token: they show nothing that is stored in etcd."""
    assert (await ask(fenced, path)).status == 200


# --- CORS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["https://app.example", "http://localhost:3000"])
async def test_listed_origin(fenced: GatewayProcess, origin: str) -> None:
    """A listed origin may read every answer, errors included, and our headers; ``Vary`` tells caches that the answer
    depends on the origin.
    """
    for target, headers, status in (
        ("/v1/kv?prefix=/svc/", bearer(), 200),
        ("/v1/watch?prefix=/svc/", bearer(), 200),
        ("/v1/watch?prefix=/other/", bearer(), 403),
        ("/v1/kv?prefix=/svc/", {}, 401),
        ("/nothing", {}, 404),
    ):
        answer = await ask(fenced, target, {**headers, "Origin": origin})

        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == origin
        assert "Origin" in answer.headers["vary"]
        assert "X-Etcd-Revision" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["https://evil.example", "https://app.example.evil", "http://app.example", "null"])
async def test_unlisted_origin(fenced: GatewayProcess, origin: str) -> None:
    """An unlisted origin gets no permission, neither in the preflight nor in the answer."""
    answer = await ask(fenced, "/v1/kv?prefix=/svc/", {**bearer(), "Origin": origin})
    stream = await ask(fenced, "/v1/watch?prefix=/svc/", {**bearer(), "Origin": origin})
    asked = await ask(
        fenced, "/v1/watch?prefix=/svc/", {"Origin": origin, "Access-Control-Request-Method": "GET"}, "OPTIONS"
    )

    assert "access-control-allow-origin" not in answer.headers
    assert "access-control-allow-origin" not in stream.headers
    assert "access-control-allow-origin" not in asked.headers
    assert asked.status == 400


async def test_preflight(fenced: GatewayProcess) -> None:
    """A browser may send the token or a cursor: its preflight passes without the token."""
    asking = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization,last-event-id,cache-control",
    }
    answer = await ask(fenced, "/v1/watch?prefix=/svc/", asking, "OPTIONS")

    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD"
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("authorization", "last-event-id", "cache-control"))
    assert "Origin" in answer.headers["vary"]
    posting = await ask(fenced, "/v1/kv", asking | {"Access-Control-Request-Method": "DELETE"}, "OPTIONS")
    assert posting.status == 400


async def test_vary_of_a_stream(fenced: GatewayProcess) -> None:
    """A stream's ``Vary`` names what the answer depends on."""
    answer = await ask(fenced, "/v1/watch?prefix=/svc/", {**bearer(), "Origin": "https://app.example"})

    assert answer.headers["vary"] == "Last-Event-ID, Accept, Origin"


@pytest.mark.parametrize("origin", [None, "https://app.example", "https://evil.example"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_no_header_says_anything_twice(fenced: GatewayProcess, origin: str | None, method: str) -> None:
    """``Vary`` contained "Origin" twice once. ``request`` asserts in all tests that no header value appears twice."""
    headers = {**bearer(), **({"Origin": origin} if origin else {})}
    for path in ("/v1/kv", "/v1/watch", "/v1/feeds", "/livez", "/readyz", "/metrics", "/", "/docs", "/openapi.json"):
        for query in ("prefix=/svc/", "prefix=/other/", "bogus=1"):
            answer = await ask(fenced, f"{path}?{query}", headers, method)
            assert "Origin" in answer.headers["vary"], path


async def test_without_cors(etcd: EmbeddedEtcd) -> None:
    """By default, no page of another origin may read."""
    async with gateway(etcd.endpoint) as server:
        answer = await ask(server, "/v1/kv?prefix=/svc/", {"Origin": "https://app.example"})
        asked = await ask(
            server, "/v1/kv", {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}, "OPTIONS"
        )

    assert "access-control-allow-origin" not in answer.headers
    assert asked.status == 405


# --- caps, and other transient refusals -------------------------------------------------------------------------------


async def refused_for_now(server: GatewayProcess, query: str, status: int, code: str) -> None:
    """A client that is not an EventSource gets a status and ``Retry-After``."""
    for headers in ({}, {"Accept": "*/*"}, {"Accept": "application/x-ndjson"}, {"Accept": "text/*"}):
        answer = await ask(server, f"/v1/watch?{query}", headers)

        assert (answer.status, problem(answer)["code"]) == (status, code), answer.body
        assert 1 <= int(answer.headers["retry-after"]) <= 5


async def held_open(
    server: GatewayProcess, query: str, reason: str, accept: str = "text/event-stream", *, retry: bool = True
) -> None:
    """An EventSource gets a stream that states a retry delay, stays open for that time, and then gives the reason."""
    started = time.monotonic()
    async with await watch(server.base, query, {"Accept": accept}) as stream:
        close = await stream.next_event()
        took = time.monotonic() - started

        assert close is not None
        assert (close.type, close.data["reason"], close.id) == ("close", reason, None)
        assert 1000 <= close.data["retry_ms"] <= 5000
        assert took >= close.data["retry_ms"] / 1000 - 0.1
        assert stream.retry == (close.data["retry_ms"] if retry else None)
        assert await stream.next_event() is None


async def test_cap_of_subscribers(etcd: EmbeddedEtcd) -> None:
    """A subscriber over the cap is refused until another one leaves; the accepted subscribers notice nothing."""
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_MAX_SUBSCRIBERS": "2"}) as server,
        await watch(server.base, "prefix=/svc/") as first,
    ):
        second = await watch(server.base, "prefix=/svc/")
        await asyncio.gather(first.until("synced"), second.until("synced"))
        await refused_for_now(server, "prefix=/svc/", 429, "too-many-subscribers")
        await asyncio.gather(
            held_open(server, "prefix=/svc/", "overloaded"),
            held_open(server, "prefix=/svc/&format=ndjson", "overloaded", retry=False),
            held_open(server, "prefix=/svc/", "overloaded", "text/html, Text/Event-Stream;q=0.9"),
        )
        assert (await first.until("bookmark"))[-1].data["state"] == "live"
        await second.close()

        async def admitted() -> bool:
            return (await ask(server, "/v1/watch?prefix=/svc/")).status == 200

        await eventually(admitted)


async def test_who_is_held_open_may_leave(etcd: EmbeddedEtcd) -> None:
    """A refused client that is held open may leave; a gateway that stops does not wait for held clients: they get the
    reason at once.
    """
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_MAX_SUBSCRIBERS": "1"}) as server,
        await watch(server.base, "prefix=/svc/") as inside,
    ):
        await inside.until("synced")
        leaving = await watch(server.base, "prefix=/svc/", EVENT_SOURCE)
        leaving.reset()
        held = [await watch(server.base, "prefix=/svc/", EVENT_SOURCE) for _ in range(5)]
        ending = asyncio.create_task(server.stop())
        closes = [await stream.next_event() for stream in held]
        last = (await inside.until("close"))[-1]
        status = await ending
        for stream in held:
            await stream.close()

    assert {close.data["reason"] for close in closes if close is not None} == {"overloaded"}
    assert last.data["reason"] == "drain"
    assert status == 0


async def test_cap_of_feeds(etcd: EmbeddedEtcd) -> None:
    """A new range over the cap of feeds is refused, a range with a feed is not, and a lingering feed makes room."""
    limits = {"GATEWAY_MAX_FEEDS": "2", "GATEWAY_LINGER": "60s"}
    async with (
        gateway(etcd.endpoint, settings=limits) as server,
        httpx.AsyncClient(base_url=server.base) as http,
        await watch(server.base, "prefix=/svc/") as stays,
    ):
        leaves = await watch(server.base, "prefix=/b/")
        await asyncio.gather(stays.until("synced"), leaves.until("synced"))
        await refused_for_now(server, "prefix=/c/", 429, "too-many-feeds")
        await held_open(server, "prefix=/c/", "overloaded")
        async with await watch(server.base, "prefix=/b/") as again:
            await again.until("synced")
        await leaves.close()

        async def lingers() -> bool:
            feeds = (await http.get("/v1/feeds")).json()["feeds"]
            return [feed["range"] for feed in feeds if feed["lingering"]] == ["prefix=/b/"]

        await eventually(lingers)
        async with await watch(server.base, "prefix=/c/") as third:
            await third.until("synced")
            feeds = (await http.get("/v1/feeds")).json()["feeds"]

    assert sorted(feed["range"] for feed in feeds) == ["prefix=/c/", "prefix=/svc/"]


async def test_cap_of_feed_bytes(etcd: EmbeddedEtcd, etcd_kv: EtcdClient) -> None:
    """A feed that does not fit, at its start or by growing, is closed as too large; others are served beside it."""
    for number in range(20):
        await etcd_kv.put(f"/large/{number}", "x" * 20_000)
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_MAX_FEED_BYTES": "200KiB"}) as server,
        await watch(server.base, "prefix=/svc/") as small,
    ):
        await small.until("synced")
        async with await watch(server.base, "prefix=/large/", EVENT_SOURCE) as stream:
            close = await stream.next_event()
            assert close is not None
            assert (close.type, close.data["reason"]) == ("close", "too-large")
            assert close.data["retry_ms"] >= 10_000
            assert await stream.next_event() is None
        # The refusal is remembered for a while: clients that come back do not make the gateway read the whole range
        # again.
        async with await request(f"{server.base}/v1/watch?prefix=/large/") as refused:
            assert refused.status == 503
            assert json.loads(refused.body)["code"] == "too-large"
            assert int(refused.headers["retry-after"]) >= 10
        async with await watch(server.base, "prefix=/grows/") as growing:
            await growing.until("synced")
            for number in range(20):
                await etcd_kv.put(f"/grows/{number}", "x" * 20_000)
            close = (await growing.until("close"))[-1]
            assert close.data["reason"] == "too-large"
        await etcd_kv.put("/svc/a", "2")
        (change,) = await small.changes(1)
        assert change.data["value"] == "2"
        async with httpx.AsyncClient(base_url=server.base) as http:
            feeds = (await http.get("/v1/feeds")).json()["feeds"]
            metrics = (await http.get("/metrics")).text

    assert [feed["range"] for feed in feeds] == ["prefix=/svc/"]
    assert 'etcd_watch_gateway_streams_closed_total{reason="too-large"} 2.0' in metrics
    assert 'etcd_watch_gateway_refusals_total{reason="too-large"} 1.0' in metrics


async def test_refusals_are_counted(etcd: EmbeddedEtcd, token_file: Path) -> None:
    """Refusals are counted by their code, the permanent ones too."""
    settings = {"GATEWAY_TOKEN_FILE": str(token_file), "GATEWAY_ALLOW_PREFIXES": "/svc/"}
    async with gateway(etcd.endpoint, settings=settings) as server:
        await ask(server, "/v1/watch?prefix=/svc/")
        await ask(server, "/v1/watch?prefix=/other/", bearer())
        await ask(server, "/v1/watch?prefix=/svc/&color=red", bearer())
        metrics = (await ask(server, "/metrics")).body.decode()

    for reason in ("unauthorized", "forbidden", "unknown-parameter"):
        assert f'etcd_watch_gateway_refusals_total{{reason="{reason}"}} 1.0' in metrics


async def test_etcd_absent() -> None:
    """Without a view and etcd, the answer is a 503, or a held stream for an EventSource, which comes back by itself."""
    async with gateway(NOWHERE) as server, httpx.AsyncClient(base_url=server.base) as http:

        async def known_to_be_away() -> bool:
            return bool((await http.get("/readyz")).json()["etcd"]["state"] == "down")

        await eventually(known_to_be_away)
        await refused_for_now(server, "prefix=/svc/", 503, "etcd-unavailable")
        await held_open(server, "prefix=/svc/", "unavailable")
        assert (await http.get("/v1/feeds")).json()["feeds"] == []


async def test_draining() -> None:
    """A client that arrives while the gateway drains is sent elsewhere."""
    draining = Gateway(load({"etcd": NOWHERE}), draw=lambda: 0.0)
    transport = httpx.ASGITransport(app=create_app(gateway=draining))
    async with draining.running(), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        draining.drain()
        plain = await http.get("/v1/watch?prefix=/svc/")
        held = await http.get("/v1/watch?prefix=/svc/", headers=EVENT_SOURCE)
        ready = await http.get("/readyz")
        head = await http.head("/v1/watch?prefix=/svc/")
        held_head = await http.head("/v1/watch?prefix=/svc/", headers=EVENT_SOURCE)

    assert (head.status_code, head.headers["retry-after"]) == (503, "1")
    assert (held_head.status_code, held_head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert (plain.status_code, plain.json()["code"], plain.headers["retry-after"]) == (503, "draining", "1")
    assert (held.status_code, held.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert held.text.startswith("retry: 1000\n: connected ")
    assert held.text.endswith('event: close\ndata: {"type":"close","reason":"drain","retry_ms":1000}\n\n')
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
