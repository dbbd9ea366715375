"""``GET /v1/kv`` as a client sees it, with a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from aetcd import rpc

from app.etcd import reads
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.fake_etcd import FakeEtcd
from tests.support.gateway import GatewayProcess, gateway
from tests.support.metrics import etcd_metric, gateway_metric
from tests.support.size import size
from tests.support.streams import watch
from tests.support.waiting import HANG, eventually

pytestmark = [pytest.mark.etcd, pytest.mark.asyncio(loop_scope="module")]

RANGES = "etcd_watch_gateway_etcd_ranges_total"


@pytest_asyncio.fixture(name="etcd", scope="module", loop_scope="module")
async def _etcd() -> AsyncIterator[EmbeddedEtcd]:
    """One etcd for all tests of this module: each test has its own prefixes."""
    async with EmbeddedEtcd() as etcd:
        yield etcd


@pytest_asyncio.fixture(name="server", scope="module", loop_scope="module")
async def _server(etcd: EmbeddedEtcd) -> AsyncIterator[GatewayProcess]:
    """One gateway for all tests of this module; a brief freeze of etcd does not disturb it."""
    async with gateway(etcd.endpoint) as running:
        yield running


@pytest_asyncio.fixture(name="http", scope="module", loop_scope="module")
async def _http(server: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.base, timeout=HANG) as client:
        yield client


async def read(http: httpx.AsyncClient, query: str) -> dict[str, Any]:
    """Return the body of an answer that must be 200."""
    answer = await http.get(f"/v1/kv?{query}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    assert answer.headers["x-etcd-revision"] == str(body["revision"])
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    return body


async def test_single_key(http: httpx.AsyncClient, etcd_kv: EtcdClient) -> None:
    """A single key has every field under etcd's name; a key without a lease has no ``lease``."""
    created = await etcd_kv.put("/one/a", "1")
    await etcd_kv.put("/one/ab", "other")
    modified = await etcd_kv.put("/one/a", "2")
    last = await etcd_kv.put("/elsewhere", "x")
    body = await read(http, "key=/one/a")

    cursor = body.pop("cursor")
    assert body == {
        "revision": last,
        "kv": {"key": "/one/a", "value": "2", "create_revision": created, "mod_revision": modified, "version": 2},
    }
    assert cursor.endswith(f"-{last}")


async def test_absent_key(http: httpx.AsyncClient, etcd_kv: EtcdClient) -> None:
    """An absent key, also a deleted one, gets a 404 problem that names the revision it is true for."""
    await etcd_kv.put("/gone", "1")
    revision = await etcd_kv.delete("/gone")
    for key in ("/gone", "/never"):
        answer = await http.get("/v1/kv", params={"key": key})

        assert answer.status_code == 404
        assert answer.headers["x-etcd-revision"] == str(revision)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "key-not-found"
        assert key in answer.json()["detail"]


async def test_list(http: httpx.AsyncClient, etcd_kv: EtcdClient) -> None:
    """A list has the keys under the prefix, in order, and no others."""
    await etcd_kv.put("/listed", "no")
    await etcd_kv.put("/listed/b", "2")
    await etcd_kv.put("/listed/a", "")
    await etcd_kv.put("/listed0", "no")
    last = await etcd_kv.put("/listed/é", 'ü\n"')
    body = await read(http, "prefix=/listed/")

    assert [(item["key"], item["value"]) for item in body["kvs"]] == [
        ("/listed/a", ""),
        ("/listed/b", "2"),
        ("/listed/é", 'ü\n"'),
    ]
    assert list(body) == ["revision", "cursor", "kvs", "count"]
    assert (body["revision"], body["count"]) == (last, 3)


async def test_nothing_there(http: httpx.AsyncClient, etcd_kv: EtcdClient) -> None:
    """An empty list is a valid answer; an empty prefix means all keys."""
    await etcd_kv.put("/something", "1")
    empty = await read(http, "prefix=/nothing/here/")
    everything = await read(http, "prefix=")

    assert (empty["kvs"], empty["count"]) == ([], 0)
    assert everything["count"] == len(everything["kvs"]) > 0


async def test_keys_only_and_count_only(http: httpx.AsyncClient, etcd_kv: EtcdClient) -> None:
    """``keys_only`` and ``count_only`` leave fields out and do not change the others."""
    for name in "abc":
        await etcd_kv.put(f"/part/{name}", name * 3)
    full = await read(http, "prefix=/part/")
    keys = await read(http, "prefix=/part/&keys_only=1")
    count = await read(http, "prefix=/part/&count_only=1")
    off = await read(http, "prefix=/part/&keys_only=0&count_only=false")

    for item in full["kvs"]:
        del item["value"]
    assert keys["kvs"] == full["kvs"]
    assert (count["kvs"], count["count"], count["revision"]) == ([], 3, full["revision"])
    assert "value" in off["kvs"][0]


async def test_pages_are_of_one_revision(http: httpx.AsyncClient, etcd_kv: EtcdClient) -> None:
    """All pages are of the first page's revision whatever changes meanwhile, and each page has that state's count."""
    await etcd_kv.transact({f"/paged/{n:03}": f"{n}" for n in range(25)})
    expected = [(f"/paged/{n:03}", f"{n}") for n in range(25)]
    found: list[tuple[str, str]] = []
    pages: list[dict[str, Any]] = []
    query = "prefix=/paged/&limit=10"
    while True:
        page = await read(http, query)
        pages.append(page)
        found += [(item["key"], item["value"]) for item in page["kvs"]]
        if "next_page" not in page:
            break
        query = f"prefix=/paged/&limit=10&page={page['next_page']}"
        await etcd_kv.transact({"/paged/000": None, "/paged/012": "new", "/paged/02": "added", "/paged/zzz": "added"})

    assert found == expected
    assert [len(page["kvs"]) for page in pages] == [10, 10, 5]
    assert {(page["revision"], page["cursor"], page["count"]) for page in pages} == {
        (pages[0]["revision"], pages[0]["cursor"], 25)
    }
    assert (await read(http, "prefix=/paged/"))["count"] == 26


async def test_pages_larger_than_one_range(http: httpx.AsyncClient, etcd_kv: EtcdClient) -> None:
    """A page of several Ranges has the requested length and counts all keys; the next may have another length."""
    for start in range(0, 800, 100):
        await etcd_kv.transact({f"/long/{n:04}": "" for n in range(start, start + 100)})
    first = await read(http, "prefix=/long/&limit=700")
    second = await read(http, f"prefix=/long/&limit=50&page={first['next_page']}")
    third = await read(http, f"prefix=/long/&page={second['next_page']}")

    assert [len(page["kvs"]) for page in (first, second, third)] == [700, 50, 50]
    assert [item["key"] for page in (first, second, third) for item in page["kvs"]] == [
        f"/long/{n:04}" for n in range(800)
    ]
    assert "next_page" not in third
    assert {page["count"] for page in (first, second, third)} == {800}


async def test_several_ranges_are_one_list(http: httpx.AsyncClient, etcd_kv: EtcdClient) -> None:
    """Several ranges are one list, in the order of the keys, with one count; absent keys are left out."""
    await etcd_kv.transact({"/many/b/1": "b1", "/many/b/2": "b2", "/many/c": "c", "/many/a/1": "a1", "/many/a": "not"})
    body = await read(http, "prefix=/many/b/&key=/many/c&prefix=/many/a/&key=/many/absent&key=/many/b/1")
    keys = await read(http, "key=/many/absent&key=/many/c")
    none = await read(http, "key=/many/absent&key=/many/gone")
    counted = await read(http, "prefix=/many/b/&key=/many/c&prefix=/many/a/&count_only=1")

    assert [item["key"] for item in body["kvs"]] == ["/many/a/1", "/many/b/1", "/many/b/2", "/many/c"]
    assert (body["count"], list(body)) == (4, ["revision", "cursor", "kvs", "count"])
    assert ([item["value"] for item in keys["kvs"]], keys["count"]) == (["c"], 1)
    assert (none["kvs"], none["count"]) == ([], 0)
    assert (counted["kvs"], counted["count"], counted["revision"]) == ([], 4, body["revision"])


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6])
async def test_pages_of_several_ranges(http: httpx.AsyncClient, etcd_kv: EtcdClient, limit: int) -> None:
    """Pages across ranges are of one revision, and ``next_page`` is there exactly if there is another page."""
    at = f"/span/{limit}"
    expected = [f"{at}/{name}" for name in ("a/1", "a/2", "b", "c/1", "c/2", "e")]
    ranges = f"prefix={at}/a/&key={at}/b&prefix={at}/bb/&prefix={at}/c/&key={at}/d&key={at}/e&key={at}/f"
    await etcd_kv.transact(dict.fromkeys(expected, "1"))
    found, pages = [], []
    query = f"{ranges}&limit={limit}"
    while query:
        page = await read(http, query)
        pages.append(page)
        found += [item["key"] for item in page["kvs"]]
        await etcd_kv.transact({f"{at}/a/3": "new", f"{at}/b": None, f"{at}/d": "new", f"{at}/c/2": "new"})
        token = page.get("next_page")
        query = f"{ranges}&limit={limit}&page={token}" if token else ""

    assert found == expected
    assert [len(page["kvs"]) for page in pages[:-1]] == [limit] * (len(pages) - 1)
    assert len(pages) == -(-len(expected) // limit)
    assert {(page["revision"], page["count"]) for page in pages} == {(pages[0]["revision"], 6)}


async def test_cursor_of_several_ranges(http: httpx.AsyncClient, etcd: EmbeddedEtcd, etcd_kv: EtcdClient) -> None:
    """The cursor of a list of several ranges starts a watch of the same ranges, also at another replica."""
    await etcd_kv.transact({"/two/a/1": "1", "/two/b": "1"})
    body = await read(http, "prefix=/two/a/&key=/two/b")
    async with gateway(etcd.endpoint, settings={"GATEWAY_PIN": "/two/"}) as replica:
        query = f"key=/two/b&prefix=/two/a/&last_event_id={body['cursor']}"
        async with await watch(replica.base, query) as stream:
            first = await stream.next_event()

    assert first is not None
    assert (first.type, first.data["revision"]) == ("synced", body["revision"])


async def test_pages_of_binary_keys(http: httpx.AsyncClient, etcd_kv: EtcdClient) -> None:
    """The next page starts directly after any key, even if the next key is its smallest successor."""
    keys = [b"/bp/\xff", b"/bp/\xff\x00", b"/bp/\xff\x00\x00", b"/bp/\xff\xff"]
    for key in keys:
        await etcd_kv.put(key, "")
    found = []
    query = "prefix=/bp/&limit=1&encoding=base64"
    while query:
        page = await read(http, query)
        found += [item["key"] for item in page["kvs"]]
        token = page.get("next_page")
        query = f"prefix=/bp/&limit=1&encoding=base64&page={token}" if token else ""

    assert len(found) == len(set(found)) == 4


async def test_foreign_pages(http: httpx.AsyncClient, etcd_kv: EtcdClient) -> None:
    """A page token of another prefix is a client error; a token of the same prefix but another question has expired."""
    await etcd_kv.transact({"/mine/a": "", "/mine/b": "", "/yours/a": "", "/yours/b": ""})
    token = (await read(http, "prefix=/yours/&limit=1"))["next_page"]
    foreign = await http.get(f"/v1/kv?prefix=/mine/&page={token}")
    otherwise = await http.get(f"/v1/kv?prefix=/yours/&keys_only=1&page={token}")
    wider = await http.get(f"/v1/kv?prefix=/&page={token}")
    counted = await http.get(f"/v1/kv?prefix=/yours/&count_only=1&page={token}")

    assert (foreign.status_code, foreign.json()["parameter"]) == (400, "page")
    assert (otherwise.status_code, otherwise.json()["code"]) == (410, "page-expired")
    assert (wider.status_code, wider.json()["code"]) == (410, "page-expired")
    assert (counted.status_code, counted.json()["code"]) == (400, "conflicting-parameters")


async def test_page_after_compaction(http: httpx.AsyncClient, etcd_kv: EtcdClient) -> None:
    """After the compaction of its revision a page token gets a 410: the client must start over."""
    await etcd_kv.transact({"/short/a": "", "/short/b": "", "/short/c": ""})
    token = (await read(http, "prefix=/short/&limit=1"))["next_page"]
    await etcd_kv.compact(await etcd_kv.put("/short/d"))
    answer = await http.get(f"/v1/kv?prefix=/short/&limit=1&page={token}")

    assert answer.status_code == 410
    assert (answer.json()["code"], answer.json()["parameter"]) == ("page-expired", "page")
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(("lease", "text"), [(0x7000_0000_0000_0ABC, "7000000000000abc"), (255, "ff")])
async def test_lease(http: httpx.AsyncClient, etcd_kv: EtcdClient, lease: int, text: str) -> None:
    """A lease is lower-case hex, as etcdctl prints it; JavaScript would round a 64-bit number."""
    await etcd_kv.lease.LeaseGrant(rpc.LeaseGrantRequest(TTL=60, ID=lease))
    await etcd_kv.put("/leased", "1", lease=lease)

    assert (await read(http, "key=/leased"))["kv"]["lease"] == text


async def test_bytes(http: httpx.AsyncClient, etcd_kv: EtcdClient) -> None:
    """Keys and values that are not text are base64, and marked as such; query bytes are bytes; "+" is a space."""
    await etcd_kv.put(b"/bin/\xff\x00", b"\x80\x81")
    await etcd_kv.put(b"/bin/a b+c", b"text")
    binary = (await read(http, "key=/bin/%ff%00"))["kv"]
    plus = (await read(http, "key=/bin/a+b%2Bc"))["kv"]
    forced = (await read(http, "key=/bin/a%20b%2bc&encoding=base64"))["kv"]
    under = await read(http, "prefix=/bin/%ff")

    assert (binary["key"], binary["key_encoding"]) == ("L2Jpbi//AA==", "base64")
    assert (binary["value"], binary["encoding"]) == ("gIE=", "base64")
    assert (plus["key"], plus["value"]) == ("/bin/a b+c", "text")
    assert not {"key_encoding", "encoding"} & set(plus)
    assert (forced["key"], forced["value"]) == ("L2Jpbi9hIGIrYw==", "dGV4dA==")
    assert (forced["key_encoding"], forced["encoding"]) == ("base64", "base64")
    assert under["count"] == 1


@pytest.mark.parametrize("query", ["prefix=/start/", "key=/start/a", "prefix=/start/&encoding=base64"])
async def test_cursor_starts_a_watch(
    http: httpx.AsyncClient, server: GatewayProcess, etcd_kv: EtcdClient, query: str
) -> None:
    """A watch from a list's cursor needs no reset: it is synced there, and then gets the later events."""
    await etcd_kv.put("/start/a", "1")
    body = await read(http, query)
    async with await watch(server.base, f"{query}&last_event_id={body['cursor']}") as stream:
        first = await stream.next_event()
        await etcd_kv.put("/start/a", "2")
        (change,) = await stream.changes(1)

    assert first is not None
    assert (first.type, first.data["revision"], first.id) == ("synced", body["revision"], body["cursor"])
    assert change.data["mod_revision"] == body["revision"] + 1


async def test_cursor_of_another_question(http: httpx.AsyncClient, server: GatewayProcess, etcd_kv: EtcdClient) -> None:
    """A cursor of a list without values cannot start a mirror of values: the watch is reset, never silently wrong."""
    await etcd_kv.put("/asked/a", "1")
    body = await read(http, "prefix=/asked/&keys_only=1")
    async with await watch(server.base, f"prefix=/asked/&last_event_id={body['cursor']}") as stream:
        events = await stream.until("synced")

    assert events[0].data["reason"] == "cursor-lost"
    assert [event.data.get("value") for event in events[1:-1]] == ["1"]


async def ranges(http: httpx.AsyncClient, etcd: EmbeddedEtcd) -> tuple[float, float]:
    """The Ranges, as the gateway and as etcd count them."""
    text = (await http.get("/metrics")).text
    (ours,) = [float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{RANGES} ")]
    return ours, await etcd_metric(etcd.endpoint, "grpc_server_handled_total", grpc_method="Range")


async def test_identical_reads_share(
    http: httpx.AsyncClient, server: GatewayProcess, etcd: EmbeddedEtcd, etcd_kv: EtcdClient
) -> None:
    """200 equal reads share Ranges: the one under way, the next one for all the others, and no more."""
    await etcd_kv.put("/shared/a", "1")

    async def nobody_follows() -> bool:  # otherwise the read that proves feeds current would be counted
        return bool((await http.get("/v1/feeds")).json()["feeds"] == [])

    async def all_wait() -> bool:
        return await gateway_metric(http, "connections_busy") > 200

    await eventually(nobody_follows)
    lines = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", server.port) for _ in range(200)))
    before = await ranges(http, etcd)
    etcd.sigstop()
    try:
        for _reader, writer in lines:
            writer.write(b"GET /v1/kv?prefix=/shared/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await asyncio.gather(*(writer.drain() for _reader, writer in lines))
        await eventually(all_wait)
    finally:
        etcd.sigcont()
    answers = await asyncio.gather(*(reader.read() for reader, _writer in lines))
    after = await ranges(http, etcd)
    for _reader, writer in lines:
        writer.close()

    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert len({answer.rpartition(b"\r\n")[2] for answer in answers}) == 1
    assert after[0] - before[0] <= 3
    assert after[1] - before[1] <= 3


@pytest.mark.sized
async def test_a_shared_read_is_not_older_than_its_question(http: httpx.AsyncClient, etcd_kv: EtcdClient) -> None:
    """A shared read is not older than its request: among many equal reads, a client reads what it wrote before."""
    running = True

    async def keep_reading() -> None:
        while running:
            await http.get("/v1/kv?key=/linear")

    readers = [asyncio.create_task(keep_reading()) for _ in range(4)]
    try:
        for number in range(size(12, long=500)):
            await etcd_kv.put("/linear", str(number))

            assert (await read(http, "key=/linear"))["kv"]["value"] == str(number)
    finally:
        running = False
        await asyncio.gather(*readers)


async def test_long_poll_over_a_socket(http: httpx.AsyncClient, server: GatewayProcess, etcd_kv: EtcdClient) -> None:
    """A held request gets the change; a client that closes or resets its connection leaves no subscriber."""
    await etcd_kv.put("/held/a", "1")
    tag = (await http.get("/v1/kv?prefix=/held/")).headers["etag"]
    for source in ("feed", "linearizable"):
        target = f"/v1/kv?prefix=/held/&consistency={source}"
        head = f"GET {target} HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\nPrefer: wait=60\r\n\r\n"
        writers = []
        for _ in range(5):
            _reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(head.encode())
            writers.append(writer)

        async def subscribers(count: int) -> bool:
            feeds = (await http.get("/v1/feeds?prefix=/held/")).json()["feeds"]
            return [feed["subscribers"] for feed in feeds] == [count]

        await eventually(lambda: subscribers(5))
        for number, writer in enumerate(writers):
            writer.transport.abort() if number % 2 else writer.close()
        # Half of the wait: the end of the wait releases them, too.
        await eventually(lambda: subscribers(0), timeout=30)
        polling = asyncio.create_task(http.get(target, headers={"If-None-Match": tag, "Prefer": "wait=60"}))
        await eventually(lambda: subscribers(1))
        revision = await etcd_kv.put("/held/a", source)
        answer = await polling

        assert (answer.status_code, answer.json()["kvs"][0]["mod_revision"]) == (200, revision)
        tag = answer.headers["etag"]


async def test_revision_header(http: httpx.AsyncClient, server: GatewayProcess, etcd_kv: EtcdClient) -> None:
    """Every answer, good or bad, has the revision header, except streams, whose events carry the revision."""
    revision = await etcd_kv.put("/header", "1")
    await read(http, "key=/header")
    targets = [
        "/v1/kv?prefix=/&bogus=1",
        "/v1/kv?key=/never",
        "/v1/feeds",
        "/livez",
        "/readyz",
        "/metrics",
        "/",
        "/docs",
    ]
    for target in [*targets, "/openapi.json", "/nothing", "/v1/watch", "/v1/watch?prefix=/&limit=1"]:
        answer = await http.get(target)

        assert answer.headers.get_list("x-etcd-revision") == [str(revision)], target
    wrong_method = await http.post("/v1/kv")
    assert wrong_method.headers["x-etcd-revision"] == str(revision)
    async with await watch(server.base, "prefix=/header") as stream:
        assert "x-etcd-revision" not in stream.headers


async def test_etcd_away_and_back() -> None:
    """While etcd is away, reads get 503 with Retry-After at once; when etcd is back, reads work again by themselves."""
    async with (
        EmbeddedEtcd() as etcd,
        gateway(etcd.endpoint) as server,
        httpx.AsyncClient(base_url=server.base, timeout=HANG) as http,
    ):
        await read(http, "prefix=/")
        await etcd.kill()
        for _ in range(3):
            answer = await http.get("/v1/kv?prefix=/")

            assert answer.status_code == 503, answer.text
            assert answer.json()["code"] == "etcd-unavailable"
            assert answer.json()["detail"] == "etcd is out of reach"
            assert int(answer.headers["retry-after"]) >= 1
        await etcd.restart()

        async def back() -> bool:
            return (await http.get("/v1/kv?prefix=/")).status_code == 200

        await eventually(back)


async def test_etcd_mute() -> None:
    """When etcd keeps its connections but answers nothing, reads under way get a 503 while etcd is still mute."""
    async with (
        EmbeddedEtcd() as etcd,
        gateway(etcd.endpoint) as server,
        httpx.AsyncClient(base_url=server.base, timeout=HANG) as http,
    ):
        await read(http, "prefix=/")
        etcd.sigstop()
        try:
            answers = await asyncio.gather(*(http.get(f"/v1/kv?prefix=/{n % 5}") for n in range(20)))
        finally:
            etcd.sigcont()

    assert [answer.status_code for answer in answers] == [503] * 20
    assert {answer.json()["code"] for answer in answers} == {"etcd-unavailable"}


async def test_queue_of_ranges_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read over the bound of waiting reads gets a 429 at once: the queue does not grow."""
    monkeypatch.setattr(reads, "RANGE_TIMEOUT", HANG)  # or reads of a slow machine would fail before the last is asked
    async with FakeEtcd() as fake:
        server = Gateway(load({"etcd": fake.endpoint, "max_ranges": "1"}))
        transport = httpx.ASGITransport(create_app(gateway=server))
        async with server.running(), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            await read(http, "prefix=/")
            fake.hold_ranges()
            asking = [asyncio.create_task(http.get(f"/v1/kv?prefix=/{n}")) for n in range(80)]
            refused: set[asyncio.Task[httpx.Response]] = set()
            while len(refused) < 80 - 64:
                refused |= (await asyncio.wait(set(asking) - refused, return_when=asyncio.FIRST_COMPLETED))[0]
            fake.release_ranges()
            answers = await asyncio.gather(*asking)

    assert {task.result().json()["code"] for task in refused} == {"too-many-ranges"}
    assert all("retry-after" in task.result().headers for task in refused)
    assert sum(answer.status_code == 429 for answer in answers) == 80 - 64
    assert sum(answer.status_code == 200 for answer in answers) == 64
