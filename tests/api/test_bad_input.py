"""Every wrong request gets a problem that names the error, and never a 500."""

from __future__ import annotations

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.api import kv_request, watch_query
from app.core.query import MAX_KEY_BYTES
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE
from tests.support.gateway import GatewayProcess, gateway
from tests.support.metrics import etcd_metric
from tests.support.raw_http import Line
from tests.support.streams import request
from tests.support.streams import watch as open_stream

pytestmark = [pytest.mark.etcd, pytest.mark.asyncio(loop_scope="module")]

KV, WATCH, FEEDS = "/v1/kv", "/v1/watch", "/v1/feeds"
RANGED = (KV, WATCH, FEEDS)
PATHS = (*RANGED, "/livez", "/readyz", "/metrics", "/", "/docs", "/openapi.json")


@pytest_asyncio.fixture(name="server", scope="module", loop_scope="module")
async def _server() -> AsyncIterator[GatewayProcess]:
    """One gateway for all tests of this module: no test changes it."""
    async with EmbeddedEtcd(args=ALONE) as etcd, gateway(etcd.endpoint) as running:
        yield running


@pytest_asyncio.fixture(name="line", scope="module", loop_scope="module")
async def _line(server: GatewayProcess) -> AsyncIterator[Line]:
    line = Line(server.port)
    yield line
    await line.close()


TOO_HIGH = urlsafe_b64encode(b"a-99999999999999999999-/a/b").decode()
LONG = "a" * (MAX_KEY_BYTES + 1)


@pytest.mark.parametrize("path", RANGED)
@pytest.mark.parametrize(
    ("query", "code", "parameter"),
    [
        ("prefix=/a/&bogus=1", "unknown-parameter", "bogus"),
        ("prefix=/a/&Prefix=/b/", "unknown-parameter", "Prefix"),
        ("prefix=/a/&=1", "unknown-parameter", ""),
        ("prefix=/a/&%ff=1", "unknown-parameter", "\\xff"),
        ("prefix=/a/&%00=1", "unknown-parameter", "\0"),
        ("prefix=/a/&" + "n" * 1000 + "=1", "unknown-parameter", "n" * 64),
        ("prefix=/a/;key=x&;=", "unknown-parameter", ";"),
        ("&".join(f"prefix=/{n}/" for n in range(33)), "selection-too-wide", "prefix"),
        ("key=a&" + "%70refix=/a/&" * 32, "selection-too-wide", "prefix"),
        ("key=", "invalid-parameter", "key"),
        ("key", "invalid-parameter", "key"),
        ("key=" + LONG, "too-long", "key"),
        ("prefix=" + LONG, "too-long", "prefix"),
        ("prefix=" + "%ff" * (MAX_KEY_BYTES + 1), "too-long", "prefix"),
        ("prefix=%zz", "invalid-parameter", "prefix"),
        ("prefix=100%", "invalid-parameter", "prefix"),
        ("key=%4", "invalid-parameter", "key"),
        ("key=%%41", "invalid-parameter", "key"),
    ],
)
async def test_range_parameters(line: Line, path: str, query: str, code: str, parameter: str) -> None:
    """Every endpoint with a range refuses a wrong range and names the parameter."""
    answer = await line.ask(f"{path}?{query}")
    found = answer.problem()

    assert (answer.status, found["code"], found["parameter"]) == (400, code, parameter)


@pytest.mark.parametrize(
    ("target", "code", "parameter"),
    [
        (KV, "missing-parameter", "prefix"),
        (WATCH, "missing-parameter", "prefix"),
        (f"{KV}?limit=1", "missing-parameter", "prefix"),
        *[
            (f"{KV}?prefix=&limit={value}", "invalid-parameter", "limit")
            for value in ("", "0", "-1", "1.5", "1e3", "x", "%C2%B2", "100001", "9" * 30, "0x10", "+1", "1%00")
        ],
        *[
            (f"{KV}?prefix=&{name}={value}", "invalid-parameter", name)
            for name in ("keys_only", "count_only")
            for value in ("", "2", "yes", "%ff", "on", "01")
        ],
        *[(f"{WATCH}?prefix=&snapshot={value}", "invalid-parameter", "snapshot") for value in ("", "2", "no", "%00")],
        *[
            (f"{path}?prefix=&encoding={value}", "invalid-parameter", "encoding")
            for path in (KV, WATCH)
            for value in ("", "hex", "BASE64", "%ff")
        ],
        *[(f"{WATCH}?prefix=&format={value}", "invalid-parameter", "format") for value in ("", "json", "SSE", "%ff")],
        *[
            (f"{KV}?prefix=/a/&page={value}", "invalid-parameter", "page")
            for value in ("", "x", "%ff", "!!!!", "a" * 5000, "YWItLTUtYQ", "YS0tLQ", "YS01LQ", TOO_HIGH)
        ],
        (f"{KV}?key=a&page=x", "conflicting-parameters", "page"),
        (f"{KV}?key=a&limit=1", "conflicting-parameters", "limit"),
        (f"{KV}?key=a&keys_only=1", "conflicting-parameters", "keys_only"),
        (f"{KV}?key=a&count_only=0", "conflicting-parameters", "count_only"),
        (f"{KV}?key=a&key=a&limit=1", "conflicting-parameters", "limit"),
        (f"{KV}?prefix=/a/&snapshot=0", "unknown-parameter", "snapshot"),
        *[
            (f"{KV}?prefix=/a/&consistency={value}", "invalid-parameter", "consistency")
            for value in ("", "Feed", "serializable", "feed,linearizable")
        ],
        *[
            (f"{KV}?prefix=/a/&min_revision={value}", "invalid-parameter", "min_revision")
            for value in ("", "-1", "1.5", "x", "%d9%a1", "1" * 20)
        ],
        (f"{KV}?prefix=/a/&consistency=feed&consistency=feed", "repeated-parameter", "consistency"),
        (f"{WATCH}?prefix=/a/&limit=5", "unknown-parameter", "limit"),
        (f"{WATCH}?prefix=/a/&last_event_id=a&last_event_id=b", "repeated-parameter", "last_event_id"),
        (f"{WATCH}?prefix=/a/&last_event_id=a&lastEventId=b&last_event_id=c", "repeated-parameter", "last_event_id"),
        (f"{WATCH}?prefix=/a/&lasteventid=a", "unknown-parameter", "lasteventid"),
        (f"{WATCH}?prefix=/a/&__=1", "unknown-parameter", "__"),
        (f"{KV}?prefix=/a/&lastEventId=a", "unknown-parameter", "lastEventId"),
        (f"{FEEDS}?prefix=/a/&lastEventId=a", "unknown-parameter", "lastEventId"),
        (f"{FEEDS}?encoding=auto", "unknown-parameter", "encoding"),
    ],
)  # fmt: skip
async def test_other_parameters(line: Line, target: str, code: str, parameter: str) -> None:
    """A meaningless value, or a parameter that conflicts with another, is refused."""
    answer = await line.ask(target)
    found = answer.problem()

    assert (answer.status, found["code"], found["parameter"]) == (400, code, parameter)


@pytest.mark.parametrize(
    "query", ["", "&", "&&prefix=&", "prefix", "prefix=", "prefix=%00", "prefix=%ff%FF", "prefix=%25", "prefix=a=b"]
)
async def test_odd_but_right(line: Line, query: str) -> None:
    """Empty parts, a name without "=", and any byte are accepted."""
    answer = await line.ask(f"{FEEDS}?{query}")

    assert answer.status == 200
    assert json.loads(answer.body)["feeds"] == []


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("buster", ["_=1767225600000", "_", "_=", "_=1&_=2", "%5f=1", "_=%zz", "_=%ff&&_"])
async def test_a_cache_buster_is_ignored(line: Line, path: str, buster: str) -> None:
    """A cache buster, which clients append against caches, is ignored wherever it stands."""
    for query in (f"prefix=/a/&{buster}", f"{buster}&prefix=/a/"):
        answer = await line.ask(f"{path}?{query}")

        assert answer.status == 200, answer


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
async def test_methods(line: Line, path: str, method: str) -> None:
    """Only GET and HEAD are allowed: any other method gets 405 with Allow, and so does an OPTIONS without Origin."""
    answer = await line.ask(f"{path}?prefix=/a/", method)

    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD"
    found = answer.problem()
    assert found["code"] == "method-not-allowed"
    assert method in found["detail"]


# These headers change from one answer to the next.
CHANGING = {"date", "x-request-id"}


@pytest.mark.parametrize(
    "target",
    [*(f"{path}?prefix=/a/" for path in PATHS), f"{WATCH}?prefix=/a/&format=ndjson", f"{KV}?key=/none",
     f"{KV}?prefix=/a/&count_only=1", f"{WATCH}?prefix=/a/&bogus=1", f"{WATCH}", f"{WATCH}?prefix=/a/&snapshot=2",
     f"{KV}?prefix=%zz", "/nothing"],
)  # fmt: skip
async def test_head_is_get_without_a_body(line: Line, target: str) -> None:
    """HEAD returns GET's status and headers and no body; the connection's next answer is for the next request."""
    head = await line.ask(target, "HEAD")
    assert (await line.ask("/livez")).body == b'{"status":"ok"}\n'
    if target.startswith(WATCH) and head.status == 200:
        async with await open_stream(f"http://127.0.0.1:{line.port}", target.partition("?")[2]) as stream:
            wanted, status = dict(stream.headers), stream.status
        assert (wanted.pop("transfer-encoding"), wanted.pop("connection")) == ("chunked", "close")
    else:
        answer = await line.ask(target)
        wanted, status = answer.headers, answer.status
        assert "content-length" in wanted
    varying = CHANGING | ({"content-length"} if target.startswith(("/metrics", FEEDS)) else set())
    assert head.status == status
    assert {name: value for name, value in head.headers.items() if name not in varying} == {
        name: value for name, value in wanted.items() if name not in varying
    }
    assert set(head.headers) == set(wanted)


async def test_a_head_of_a_stream_joins_nothing(server: GatewayProcess) -> None:
    """A HEAD of a stream starts no feed, opens no stream, and leaves nothing; a half-closed client is answered."""
    before = await counted(server.base)
    for _ in range(20):
        stream = await request(f"{server.base}/v1/watch?prefix=/head/", method="HEAD")
        assert stream.status == 200
        await stream.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"HEAD /v1/watch?prefix=/head/ HTTP/1.1\r\nHost: x\r\n\r\n")
    writer.write_eof()
    async with asyncio.timeout(30):
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert await counted(server.base) == before


async def counted(base: str) -> list[float]:
    """The feeds and streams started so far, and the requests refused."""
    names = ("feeds_started_total", "streams_opened_total", "subscribers", "refusals_total")
    return [await etcd_metric(base, f"etcd_watch_gateway_{name}") for name in names]


@pytest.mark.parametrize("path", [KV, WATCH, "/nothing"])
async def test_a_body_that_nobody_asked_for(line: Line, path: str) -> None:
    """An unexpected request body is skipped, and the connection continues with the next request."""
    await line.send(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" % path.encode() + b"x" * 300_000)
    (await line.receive()).problem()
    answer = await line.ask("/livez")

    assert answer.status == 200


@pytest.mark.parametrize(
    "path",
    ["/v1", "/v1/", "/v2/kv", "/v1/kv/", "/v1/watch/", "/livez/", "//", "/%zz", "/%ff%fe", "/v1%2fkv%00",
     "/../etc/passwd", "/v1/kv/" + "a" * 4000, "/redoc", "/favicon.ico"],
)  # fmt: skip
async def test_unknown_paths(line: Line, path: str) -> None:
    """A path with another slash is unknown: a redirect would lose a proxy's prefix, and name a foreign host."""
    answer = await line.ask(f"{path}?prefix=/a/")

    assert answer.status == 404
    assert answer.problem()["code"] == "no-such-path"


NAMES = st.sampled_from(sorted({*kv_request._KNOWN, *watch_query._KNOWN, "bogus", "%70refix", "%ff", ""}))
TEXTS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=30)
BYTES = st.binary(max_size=20).map(lambda data: "".join(f"%{byte:02x}" for byte in data))
VALUES = st.one_of(TEXTS, BYTES, st.sampled_from(["0", "1", "auto", "base64", "ndjson", "sse", "/a/", "YS05LS9hLw"]))
QUERIES = st.one_of(TEXTS, st.lists(st.tuples(NAMES, VALUES), max_size=5).map(lambda p: "&".join(map("=".join, p))))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from([KV, FEEDS]), query=QUERIES)
@example(path=KV, query="prefix=/a/&page=YS05LS9hLw")
async def test_fuzzed_queries(line: Line, path: str, query: str) -> None:
    """Any query gets an answer or a 4xx problem, all over one connection."""
    answer = await line.ask(f"{path}?{query}")

    if answer.status == 200:
        assert json.loads(answer.body)
    elif answer.status == 404:
        assert answer.problem()["code"] == "key-not-found"
    else:
        assert answer.status in (400, 410)
        assert answer.problem()["parameter"] is not None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=QUERIES, last_event_id=st.one_of(st.none(), TEXTS))
async def test_fuzzed_watches(server: GatewayProcess, query: str, last_event_id: str | None) -> None:
    """Any watch query gets a stream or a problem; a cursor in the header never causes a problem."""
    line = Line(server.port)
    answer = await line.ask(f"{WATCH}?{query}", headers=f"Last-Event-ID: {last_event_id}\r\n" if last_event_id else "")
    await line.close()

    if answer.status == 200:
        assert answer.headers["x-gateway-instance"]
    elif answer.status == 501:
        assert answer.problem()["code"] == "ranges-need-pin"
    else:
        assert answer.status == 400
        assert answer.problem()["parameter"] is not None
