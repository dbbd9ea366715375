"""The wire contract of /v1/watch, as a client sees it, with a real etcd."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from aetcd import rpc

from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess
from tests.support.size import size
from tests.support.streams import watch

pytestmark = pytest.mark.etcd


async def test_snapshot_then_live(server: GatewayProcess, kv: EtcdClient) -> None:
    """A stream has a reset with revision 0, the items, synced, and then the changes."""
    await kv.put("/svc/a", "1")
    last = await kv.put("/svc/b", "2")

    async with await watch(server.base, "prefix=/svc/") as stream:
        reset, *items, synced = await stream.until("synced")
        await kv.put("/svc/c", "3")
        (live,) = await stream.changes(1)

    cluster = reset.data.pop("cluster_id")
    assert int(cluster, 16) == (await kv.kv.Range(rpc.RangeRequest(key=b"a"))).header.cluster_id
    assert reset.data == {"type": "reset", "reason": "initial", "ranges": ["prefix=/svc/"]}
    epoch = (reset.id or "").removesuffix("-0")
    assert len(epoch) == 8
    assert [(item.type, item.data["key"], item.data["value"], item.id) for item in items] == [
        ("put", "/svc/a", "1", None),
        ("put", "/svc/b", "2", None),
    ]
    assert synced.data == {"type": "synced", "revision": last, "heartbeat": 1}
    assert synced.id == f"{epoch}-{last}"
    assert live.data == {
        "type": "put",
        "key": "/svc/c",
        "value": "3",
        "create_revision": last + 1,
        "mod_revision": last + 1,
        "version": 1,
    }
    assert live.id == f"{epoch}-{last + 1}"
    assert 1000 <= (stream.retry or 0) <= 5000
    assert stream.comments[0].startswith("connected ")


async def test_transaction_is_one_revision(server: GatewayProcess, kv: EtcdClient) -> None:
    """All events of a transaction but the last have ``more``, only the last has the id; deletes have key and
    revision.
    """
    await kv.put("/svc/a", "1")
    async with await watch(server.base, "prefix=/svc/") as stream:
        await stream.until("synced")
        revision = await kv.transact({"/svc/a": None, "/svc/b": "x", "/other": "y", "/svc/c": "z"})
        events = await stream.changes(3)

    assert [(e.type, e.data["key"], e.data.get("more"), e.id is not None) for e in events] == [
        ("delete", "/svc/a", True, False),
        ("put", "/svc/b", True, False),
        ("put", "/svc/c", None, True),
    ]
    assert events[0].data == {"type": "delete", "key": "/svc/a", "mod_revision": revision, "more": True}


async def test_resume_is_exact(server: GatewayProcess, kv: EtcdClient) -> None:
    """A cursor brings the events after it, then synced, and no reset."""
    async with await watch(server.base, "prefix=/svc/") as stream:
        synced = (await stream.until("synced"))[-1]
        revisions = [await kv.put("/svc/a", str(n)) for n in range(5)]
        await stream.changes(5)

        async with await watch(server.base, "prefix=/svc/", {"Last-Event-ID": synced.id or ""}) as again:
            events = await again.until("synced")

    assert [event.data.get("mod_revision") for event in events[:-1]] == revisions
    assert events[-1].data["revision"] >= revisions[-1]


@pytest.mark.trust
async def test_resume_in_a_new_process_needs_proof(server: GatewayProcess, kv: EtcdClient) -> None:
    """A feed that starts with a cursor reaches back; a later event of the range proves that the history is complete."""
    await kv.put("/svc/a", "0")
    async with httpx.AsyncClient(base_url=server.base) as client:
        answer = (await client.get("/v1/kv", params={"prefix": "/svc/"})).json()
    revisions = [await kv.put("/svc/a", str(n)) for n in range(5)]

    async with await watch(server.base, f"prefix=/svc/&last_event_id={answer['cursor']}") as stream:
        events = await stream.until("synced")

    assert [event.data.get("mod_revision") for event in events[:-1]] == revisions


@pytest.mark.one_etcd
@pytest.mark.parametrize(
    ("cursor", "reason"),
    [("", "initial"), ("nonsense", "cursor-lost"), ("00000000-5", "cursor-lost"), ("zzzz \u00e9", "cursor-lost")],
)
async def test_unusable_cursors_reset(server: GatewayProcess, cursor: str, reason: str) -> None:
    """A header that is present counts, even if it is empty or unreadable: the answer is a reset, never a 4xx."""
    async with await watch(server.base, "prefix=/svc/&last_event_id=00000000-1", {"Last-Event-ID": cursor}) as stream:
        (reset, synced) = await stream.until("synced")

    assert reset.data["reason"] == reason
    assert synced.type == "synced"


@pytest.mark.one_etcd
@pytest.mark.parametrize(
    ("cursor", "reason"),
    [("", "initial"), ("nonsense", "cursor-lost"), ("00000000-5", "cursor-lost"), ("%zz", "cursor-lost"),
     ("%", "cursor-lost"), ("%ff%00", "cursor-lost"), ("9" * 3000, "cursor-lost")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["last_event_id", "lastEventId"])
async def test_unusable_cursors_in_the_query_reset(server: GatewayProcess, name: str, cursor: str, reason: str) -> None:
    """An unusable cursor in the query is treated like one in the header: a 4xx would close an EventSource for good."""
    async with await watch(server.base, f"prefix=/svc/&{name}={cursor}") as stream:
        (reset, synced) = await stream.until("synced")

    assert reset.data["reason"] == reason
    assert synced.type == "synced"


@pytest.mark.one_etcd
async def test_the_newest_cursor_counts(server: GatewayProcess, kv: EtcdClient) -> None:
    """The header counts first, then what polyfills append, then what the URL had from the beginning.

    The queries are those that event-source-polyfill 1.0.31 and reconnecting-eventsource 1.6.5 were seen to send when
    they reconnect: the first drops an older ``lastEventId``, the second appends another.
    """
    async with await watch(server.base, "prefix=/svc/") as stream:
        old = (await stream.until("synced"))[-1].id
        for n in range(3):
            await kv.put("/svc/a", str(n))
        first, second, third = [change.id for change in await stream.changes(3)]
        for query, header, missing in [
            (f"prefix=/svc/&lastEventId={second}", None, [third]),
            (f"prefix=%2Fsvc%2F&lastEventId={second}&_=1767225600000", None, [third]),
            (f"prefix=/svc/&last_event_id={old}&lastEventId={second}", None, [third]),
            (f"prefix=/svc/&lastEventId={second}&last_event_id={old}", None, [third]),
            (f"prefix=/svc/&lastEventId={old}&lastEventId={first}", None, [second, third]),
            (f"lastEventId=x&prefix=/svc/&lastEventId=&lastEventId={third}", None, []),
            (f"prefix=/svc/&last_event_id={old}&lastEventId={first}", second, [third]),
            (f"prefix=/svc/&lastEventId={third}", first, [second, third]),
        ]:
            headers = {"Last-Event-ID": header} if header else None
            async with await watch(server.base, query, headers) as again:
                events = await again.until("synced")
            assert [event.id for event in events[:-1]] == missing, query


@pytest.mark.one_etcd
async def test_cursor_ahead_is_judged(server: GatewayProcess, kv: EtcdClient) -> None:
    """A forged cursor far ahead is above a linearizable read: the client gets a reset with `restored`."""
    await kv.put("/svc/a", "1")
    async with await watch(server.base, "prefix=/svc/") as stream:
        epoch = ((await stream.until("synced"))[-1].id or "").partition("-")[0]
    async with await watch(server.base, "prefix=/svc/", {"Last-Event-ID": f"{epoch}-999999"}) as stream:
        events = await stream.until("synced")

    assert events[0].data["reason"] == "restored"
    assert [event.data["key"] for event in events[1:-1]] == ["/svc/a"]


@pytest.mark.one_etcd
async def test_without_snapshot(server: GatewayProcess, kv: EtcdClient) -> None:
    """With snapshot=0 the stream is synced at once, and then has only the changes."""
    await kv.put("/svc/a", "1")
    async with await watch(server.base, "prefix=/svc/&snapshot=0") as stream:
        first = await stream.next_event()
        await kv.put("/svc/b", "2")
        (change,) = await stream.changes(1)

    assert first is not None
    assert first.type == "synced"
    assert change.data["key"] == "/svc/b"


@pytest.mark.one_etcd
async def test_ndjson_is_the_same_objects(server: GatewayProcess, kv: EtcdClient) -> None:
    """NDJSON, by Accept or by parameter, has the same objects; the cursor replaces SSE's id."""
    await kv.put("/svc/a", "1")
    async with (
        await watch(server.base, "prefix=/svc/") as sse,
        await watch(server.base, "prefix=/svc/", {"Accept": "application/x-ndjson"}) as by_accept,
        await watch(server.base, "prefix=/svc/&format=ndjson") as by_parameter,
    ):
        await asyncio.gather(*(stream.until("synced") for stream in (sse, by_accept, by_parameter)))
        await kv.transact({"/svc/a": "2", "/svc/b": "3"})
        expected = await sse.changes(2)

        assert await by_accept.changes(2) == expected
        assert await by_parameter.changes(2) == expected
    assert by_accept.headers["content-type"].startswith("application/x-ndjson")


@pytest.mark.one_etcd
async def test_bytes_survive(server: GatewayProcess, kv: EtcdClient) -> None:
    """Keys and values that are not text are base64, and marked as such; text and encoding identify a key."""
    await kv.put(b"/b/\xff\x00\n", b"\x80\x81")
    await kv.put(b"/b/L2IvAA==", "a\r\n\u2028b")
    async with await watch(server.base, "prefix=/b/") as stream:
        _reset, text, binary, _synced = await stream.until("synced")
    async with await watch(server.base, "prefix=/b/%ff") as narrow:
        narrow_events = await narrow.until("synced")
    async with await watch(server.base, "prefix=/b/&encoding=base64") as forced:
        _reset, first, _second, _synced = await forced.until("synced")

    assert (text.data["key"], text.data["value"]) == ("/b/L2IvAA==", "a\r\n\u2028b")
    assert "encoding" not in text.data
    assert (binary.data["key"], binary.data["key_encoding"]) == ("L2Iv/wAK", "base64")
    assert (binary.data["value"], binary.data["encoding"]) == ("gIE=", "base64")
    assert [event.data.get("key") for event in narrow_events] == [None, "L2Iv/wAK", None]
    assert (first.data["key"], first.data["key_encoding"]) == ("L2IvTDJJdkFBPT0=", "base64")


@pytest.mark.trust
async def test_bookmarks_are_the_heartbeat(server: GatewayProcess) -> None:
    """A quiet stream still shows that it is alive, and its revision."""
    async with await watch(server.base, "prefix=/quiet/") as stream:
        synced = (await stream.until("synced"))[-1]
        bookmark = (await stream.until("bookmark"))[-1]

    assert bookmark.data == {"type": "bookmark", "revision": synced.data["revision"], "state": "live"}
    assert bookmark.id == synced.id


@pytest.mark.one_etcd
async def test_single_key(server: GatewayProcess, kv: EtcdClient) -> None:
    """key= follows that key and no other."""
    await kv.put("/svc/a", "1")
    await kv.put("/svc/ab", "2")
    async with await watch(server.base, "key=/svc/a") as stream:
        _reset, item, _synced = await stream.until("synced")
        await kv.put("/svc/ab", "3")
        await kv.put("/svc/a", "4")
        (change,) = await stream.changes(1)

    assert item.data["key"] == "/svc/a"
    assert change.data["value"] == "4"


async def test_a_key_written_twice_in_a_revision(server: GatewayProcess, kv: EtcdClient) -> None:
    """All changes are sent, and the repeated revision is not taken for another history."""
    await kv.put("/svc/a", "1")
    put = rpc.RequestOp(request_put=rpc.PutRequest(key=b"/svc/a", value=b"2"))
    delete = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=b"/svc/a"))
    delete_on = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=b"/svc/a", range_end=b"\0"))
    nested = [rpc.RequestOp(request_txn=rpc.TxnRequest(success=[operation])) for operation in (put, delete)]
    async with await watch(server.base, "prefix=/svc/") as stream:
        await stream.until("synced")
        await kv.kv.Txn(rpc.TxnRequest(success=nested))
        await kv.put("/svc/a", "1")
        await kv.kv.Txn(rpc.TxnRequest(success=[delete_on, put]))
        await kv.put("/svc/a", "3")
        changes = await stream.changes(6)

    told = [(change.data["type"], change.data.get("version"), change.data.get("more", False)) for change in changes]
    assert told == [
        *[("put", 2, True), ("delete", None, False)],
        ("put", 1, False),
        *[("delete", None, True), ("put", 1, False)],
        ("put", 2, False),
    ]


@pytest.mark.one_etcd
async def test_headers(server: GatewayProcess) -> None:
    """The headers have what proxies and caches must know."""
    async with await watch(server.base, "prefix=/x/") as stream:
        assert stream.headers["cache-control"] == "no-store, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        assert stream.headers["vary"] == "Last-Event-ID, Accept, Origin"
        assert stream.headers["x-gateway-instance"]
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert "x-etcd-revision" not in stream.headers
        assert stream.headers["connection"] == "close"  # sse-starlette has "keep-alive"


@pytest.mark.slow
@pytest.mark.sized
async def test_a_large_snapshot(server: GatewayProcess, kv: EtcdClient) -> None:
    """A large snapshot is complete, in pages of one revision, while the range changes."""
    count = size(25_000, long=100_000)
    for start in range(0, count, 125):
        await kv.transact({f"/big/{n:06}": "x" * 20 for n in range(start, start + 125)})
    async with await watch(server.base, "prefix=/big/") as stream:
        await kv.put("/big/zzz", "late")
        events = await stream.until("synced")
        keys = {event.data["key"] for event in events[1:-1]}
        if "/big/zzz" not in keys:
            keys |= {event.data["key"] for event in await stream.changes(1)}

    assert len(keys) == count + 1
    assert len(events) - 2 in (count, count + 1)
