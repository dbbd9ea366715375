"""The mirror: what it shows, what it asks for, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from etcd_watch_client import Change, DecodeError, Mirror, RefusedError
from etcd_watch_client.changes import MOST_WAITING
from playing import EPOCH, HANG, Gateway, delete, line, problem, put, scripted, state, synced

URL = "http://gateway.test"


def told(change: Change[Any, Any]) -> tuple[int, list[tuple[str, str]]]:
    """A change, short."""
    return change.revision, [(event.type, event.key) for event in change]


async def next_change(changes: Any) -> Any:
    """The next change, which comes."""
    async with asyncio.timeout(HANG):
        return await anext(changes)


async def test_it_is_a_mapping() -> None:
    """Keys and values are text; the mapping follows."""
    gateway = Gateway()
    async with Mirror(URL, "/c/", transport=gateway) as mirror:
        assert (mirror.state, mirror.age, len(mirror), bool(mirror)) == ("connecting", None, 0, True)
        body = await gateway.stream()
        body.send(state(10, a="1", b="2"))
        await mirror.synced(HANG)
        assert dict(mirror) == {"/c/a": "1", "/c/b": "2"}
        assert (mirror["/c/a"], mirror.get("/c/z"), "/c/b" in mirror, "/c/z" in mirror) == ("1", None, True, False)
        assert (mirror.state, mirror.revision, mirror.entry("/c/a").mod_revision) == ("live", 10, 10)
        assert mirror.age is not None
        assert mirror.age < HANG
        for missing in ("/c/z", b"/c/a"):
            with pytest.raises(KeyError):
                mirror.entry(missing)  # type: ignore[arg-type]
        body.send(put("/c/a", "one", 11), delete("/c/b", 12))
        await mirror.until(lambda found: found.revision == 12, HANG)
        assert dict(mirror) == {"/c/a": "one"}
    assert (mirror.state, mirror.reason, dict(mirror)) == ("closed", "closed", {"/c/a": "one"})
    assert body.closed
    assert str(gateway.requests[0].url) == f"{URL}/v1/watch?format=ndjson&prefix=%2Fc%2F"
    with pytest.raises(RuntimeError, match="closed"):
        await mirror.synced()


async def test_several_ranges_in_one_request() -> None:
    """One stream, one order, keys alone if wanted."""
    gateway = Gateway(scripted(line("reset", 0, reason="initial"), line("put", key="/k", mod_revision=3), synced(4)))
    async with Mirror(f"{URL}/gate/", "/a/", b"/\xff/", keys=["/k"], keys_only=True, transport=gateway) as mirror:
        await mirror.synced(HANG)
        assert dict(mirror) == {"/k": None}
    target = "/gate/v1/watch?format=ndjson&prefix=%2Fa%2F&prefix=%2F%FF%2F&key=%2Fk&keys_only=1"
    assert gateway.requests[0].url.raw_path == target.encode()


async def test_binary_and_decoded_values() -> None:
    """Bytes on request; values are decoded when they are read, once."""
    gateway = Gateway(*[scripted(state(10, a='{"x":1}', b="oops"))] * 3)
    async with Mirror(URL, "/c/", binary=True, transport=gateway) as raw:
        await raw.synced(HANG)
        assert dict(raw) == {b"/c/a": b'{"x":1}', b"/c/b": b"oops"}
    async with Mirror(URL, "/c/", decode=json.loads, transport=gateway) as decoded:
        await decoded.synced(HANG)
        assert decoded["/c/a"] == {"x": 1}
        assert decoded["/c/a"] is decoded["/c/a"]
        with pytest.raises(DecodeError, match=r"/c/b.*revision 10") as failed:
            decoded["/c/b"]
        assert failed.value.key == "/c/b"
        assert decoded.state == "live", "one bad value is not a reason to stop"


async def test_changes_by_revision() -> None:
    """A transaction is one change; a reset is one, with its reason and only the differences."""
    gateway = Gateway()
    async with Mirror(URL, "/c/", transport=gateway) as mirror:
        changes, body = mirror.changes(), await gateway.stream()
        body.send(state(10, a="1"), put("/c/a", "2", 11, live=False, more=True), put("/c/b", "x", 11))
        first, second = await next_change(changes), await next_change(changes)
        assert (told(first), first.reset) == ((10, [("put", "/c/a")]), "initial")
        assert (told(second), second.reset) == ((11, [("put", "/c/a"), ("put", "/c/b")]), None)
        assert "_view" not in repr(second)
        event = second.events[0]
        assert (event.previous_value, event.value, second.events[1].previous_value) == ("1", "2", None)
        body.send(state(20, "lagged", a="2"))
        third = await next_change(changes)
        assert (told(third), third.reset) == ((20, [("delete", "/c/b"), ("put", "/c/a")]), "lagged")
        assert third.events[0].value is None
    with pytest.raises(StopAsyncIteration):
        await next_change(changes)
    assert [one async for one in mirror.changes()] == []


async def test_a_slow_reader_of_changes_gets_merged_ones() -> None:
    """Its queue is bounded, and it ends with the same state."""
    number = MOST_WAITING + 500
    gateway = Gateway()
    async with Mirror(URL, "/c/", transport=gateway) as mirror:
        body = await gateway.stream()
        body.send(state(1))
        await mirror.synced(HANG)
        changes = mirror.changes()
        body.send(*(put(f"/c/{revision % 7}", str(revision), revision) for revision in range(2, number + 2)))
        await mirror.until(lambda found: found.revision == number + 1, HANG)
        seen: dict[str, str] = {}
        got = [await next_change(changes) for _ in range(MOST_WAITING)]
        for change in got:
            seen |= {event.key: event.value for event in change}
        assert [change.merged for change in got] == [False] * (MOST_WAITING - 1) + [True]
        assert seen == dict(mirror)


async def test_a_coroutine_holds_the_stream() -> None:
    """The next change waits until the last one is handled: none is lost, none is merged."""
    release, done, handled = asyncio.Event(), asyncio.Event(), []

    async def handle(change: Change[str, str]) -> None:
        await release.wait()
        handled.append(told(change))
        if len(handled) == 3:
            done.set()

    gateway = Gateway(scripted(state(10, a="1"), put("/c/a", "2", 11), put("/c/a", "3", 12)))
    async with Mirror(URL, "/c/", on_change=handle, transport=gateway) as mirror:
        await mirror.until(lambda found: found.revision == 10, HANG)
        await asyncio.sleep(0)
        assert (mirror.revision, handled) == (10, [])
        release.set()
        async with asyncio.timeout(HANG):
            await done.wait()
    assert [revision for revision, _ in handled] == [10, 11, 12]


async def test_it_is_not_live_when_nobody_feeds_it() -> None:
    """Also while code that blocks, or waits, keeps the mirror's task from noticing the silence."""
    now = 100.0
    gateway = Gateway()
    mirror = Mirror(URL, "/c/", transport=gateway)
    mirror._clock, mirror._draw = lambda: now, lambda: 0.0
    async with mirror:
        body = await gateway.stream()
        body.send(state(10, heartbeat=1))
        await mirror.synced(HANG)
        now += 2.9
        assert mirror.state == "live"
        assert mirror.age == pytest.approx(2.9)
        now += 0.2
        assert (str(mirror.state), mirror.reason) == ("stale", "silent")
        assert mirror.age == pytest.approx(3.1)
        body.send(line("bookmark", 11, revision=11, state="live"))  # may have waited for as long in a socket
        body = await gateway.stream()
        assert gateway.requests[-1].url.params["last_event_id"] == f"{EPOCH}-10"
        body.send(synced(11))
        await mirror.synced(HANG)
        assert mirror.age == 0
        body.send(line("bookmark", 12, revision=12, state="stale"))
        await mirror.until(lambda found: found.revision == 12, HANG)
        now += 1
        assert (mirror.state, mirror.age) == ("stale", 1)


async def test_a_mirror_that_is_left_at_once_is_closed() -> None:
    """Its task was cancelled before its first step. Nobody waits for ever."""
    async with Mirror(URL, "/c/", transport=Gateway()) as mirror:
        changes = mirror.changes()
    assert (mirror.state, mirror.reason) == ("closed", "closed")
    async with asyncio.timeout(HANG):
        assert [change async for change in changes] == []


async def test_another_gateway_takes_over() -> None:
    """The next gateway resumes the stream; the reason names the gateway that failed."""
    reasons = []
    gateway = Gateway(scripted(state(10, a="1"), b"oops\n"), httpx.ConnectError("refused"))
    urls = ["http://one.test", "http://two.test", "http://three.test"]
    mirror = Mirror(urls, "/c/", on_state=lambda found: reasons.append(found.reason), transport=gateway)
    mirror._draw = lambda: 0.0
    mirror._gateways._backoff.index = 0
    async with mirror:
        body = await gateway.stream()
        body.send(put("/c/b", "2", 11), synced(11))
        await mirror.until(lambda found: found.revision == 11 and found.state == "live", HANG)
        assert dict(mirror) == {"/c/a": "1", "/c/b": "2"}
    assert [request.url.host for request in gateway.requests] == ["one.test", "two.test", "three.test"]
    assert [request.url.params.get("last_event_id") for request in gateway.requests] == [None, *[f"{EPOCH}-10"] * 2]
    assert "http://one.test: not an event of the gateway: oops" in reasons
    assert "http://two.test: refused" in reasons


async def test_a_token_is_asked_for_each_connection() -> None:
    """A token that has just ended is replaced; one that was valid is asked for again for a while."""
    now, tokens = 0.0, iter("abcdefg")

    def much_later(_: httpx.Request) -> httpx.Response:
        nonlocal now
        now = 150
        return problem(401, "unauthorized")

    gateway = Gateway(
        scripted(state(10), b"oops\n"), problem(401, "unauthorized"), scripted(synced(11), b"oops\n"),
        problem(401, "unauthorized"), problem(401, "unauthorized"), problem(401, "unauthorized"), much_later,
    )  # fmt: skip

    async def token() -> str:
        return next(tokens) + "\n"

    mirror = Mirror(URL, "/c/", token=token, transport=gateway)
    mirror._clock, mirror._draw = lambda: now, lambda: -1 / 9  # no delay
    with pytest.raises(RefusedError, match="401 unauthorized: no"):
        async with mirror, asyncio.timeout(HANG):
            await mirror.until(lambda _: False)
    assert [request.headers["authorization"] for request in gateway.requests] == [f"Bearer {one}" for one in "abcdefg"]


async def test_a_source_of_tokens_that_fails() -> None:
    """At the start it is a mistake, which is raised. Later it is retried, and named."""

    def missing() -> str:
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        async with Mirror(URL, "/c/", token=missing, transport=Gateway()) as mirror:
            await mirror.synced(HANG)

    fails = False
    gateway = Gateway()

    def sometimes() -> str:
        if fails:
            raise OSError("issuer away")
        return "t"

    async with Mirror(URL, "/c/", token=sometimes, transport=gateway) as mirror:
        body = await gateway.stream()
        body.send(state(10))
        await mirror.synced(HANG)
        fails = True
        body.end()
        await mirror.until(lambda found: "issuer away" in found.reason, HANG)
        fails = False
        body = await gateway.stream()
        body.send(synced(11))
        await mirror.synced(HANG)


async def test_what_etcd_cannot_do_is_final_only_at_the_start() -> None:
    """A member of etcd that is too old for several ranges is a mistake at the start, and may pass later."""
    with pytest.raises(RefusedError, match="501 ranges-need-pin"):
        async with Mirror(URL, "/a/", "/b/", transport=Gateway(problem(501, "ranges-need-pin"))) as mirror:
            await mirror.synced(HANG)
    gateway = Gateway(scripted(state(10), b"oops\n"), problem(501, "ranges-need-pin"))
    mirror = Mirror(URL, "/a/", "/b/", transport=gateway)
    mirror._draw = lambda: 0.0
    async with mirror:
        (await gateway.stream()).send(synced(11))
        await mirror.until(lambda found: found.state == "live" and found.revision == 11, HANG)


async def test_a_file_of_certificates_that_is_missing_is_named(tmp_path: Path) -> None:
    """OpenSSL's own error does not say which file."""
    with pytest.raises(FileNotFoundError, match=r"none\.pem"):
        async with Mirror("https://gateway.test", "/c/", ca=tmp_path / "none.pem") as mirror:
            await mirror.synced(HANG)


@pytest.mark.parametrize("how", ["synced", "until", "changes", "nothing"])
async def test_a_fatal_error_is_raised(how: str) -> None:
    """Whatever the caller waits for; and at the end, if the caller waits for nothing."""
    closed = asyncio.Event()
    gateway = Gateway(problem(403, "forbidden"))
    mirror = Mirror(URL, "/c/", on_state=lambda _: closed.set(), transport=gateway)
    waits = {
        "synced": lambda: mirror.synced(HANG),
        "until": lambda: mirror.until(lambda found: len(found) == 3, HANG),
        "changes": lambda: next_change(mirror.changes()),
        "nothing": closed.wait,
    }
    with pytest.raises(RefusedError, match="HTTP 403 forbidden: no"):
        async with mirror:
            await waits[how]()
    assert (mirror.state, mirror.reason) == ("closed", "HTTP 403 forbidden: no")


async def test_a_callback_that_raises_ends_the_mirror() -> None:
    """Its error comes out, and is never taken for a fault of the connection."""

    def fail(_change: Change[str, str]) -> None:
        raise TimeoutError("mine")

    mirror = Mirror(URL, "/c/", on_change=fail, transport=Gateway(scripted(state(10, a="1"))))
    with pytest.raises(TimeoutError, match="mine"):
        async with mirror:
            await mirror.until(lambda _: False, HANG)
    assert mirror.state == "closed"


async def test_a_timeout_says_why() -> None:
    """The reason is that of the mirror; a condition's own error is its own."""
    gateway = Gateway(*[httpx.ConnectError("All connection attempts failed")] * 99)
    async with Mirror(URL, "/c/", transport=gateway) as mirror:
        with pytest.raises(TimeoutError, match=r"gave up after 0.05 s: the mirror is connecting \(All connection"):
            await mirror.synced(timeout=0.05)  # nothing comes, however long one waits
    gateway = Gateway()
    async with Mirror(URL, "/c/", transport=gateway) as mirror:
        waiting = asyncio.create_task(mirror.until(lambda found: 1 // len(found) if found.revision else 0, HANG))
        await asyncio.sleep(0)
        (await gateway.stream()).send(state(10))
        with pytest.raises(ZeroDivisionError):
            await waiting


async def test_until_sees_each_state() -> None:
    """Also one that has passed when the waiting task runs again."""
    gateway = Gateway()
    async with Mirror(URL, "/c/", transport=gateway) as mirror:
        (await gateway.stream()).send(state(10, a="1") + put("/c/a", "2", 11) + put("/c/a", "3", 12))
        await mirror.until(lambda found: found.get("/c/a") == "2", HANG)
        assert mirror["/c/a"] == "3"


async def test_sse_says_the_same() -> None:
    """For proxies that stream nothing else."""
    gateway = Gateway()
    async with Mirror(URL, "/c/", format="sse", transport=gateway) as mirror:
        body = await gateway.stream()
        body.send(b'retry: 10\n: hi\nevent: reset\ndata: {"type":"reset","reason":"initial"}\nid: e-0\n\n')
        body.send(b'event: synced\ndata: {"type":"synced","revision":3,"heartbeat":15}\nid: e-3\n\n')
        await mirror.synced(HANG)
        assert (mirror.cursor, gateway.requests[0].headers["accept"]) == ("e-3", "text/event-stream")


@pytest.mark.parametrize(
    ("args", "says"), [(([], "/c/"), "no gateway"), (("x", "/c/"), "http://HOST"), ((URL,), "nothing")]
)
def test_mistakes_are_named_at_once(args: tuple[Any, ...], says: str) -> None:
    """Not by a retry."""
    with pytest.raises(ValueError, match=says):
        Mirror(*args)


async def test_it_runs_once() -> None:
    """And only inside `async with`."""
    mirror = Mirror(URL, "/c/", transport=Gateway())
    with pytest.raises(RuntimeError, match="async with"):
        await mirror.synced()
    async with mirror:
        with pytest.raises(RuntimeError, match="once"):
            await mirror.__aenter__()


# --- resume from disk -------------------------------------------------------------------------------------------------


async def follow(file: Path, body_of: Gateway, *parts: bytes, until: int) -> Mirror[str, str]:
    """A process that follows up to a revision."""
    async with Mirror(URL, "/c/", resume=file, transport=body_of) as mirror:
        (await body_of.stream()).send(*parts)
        await mirror.until(lambda found: found.revision == until, HANG)
    return mirror


async def test_the_next_process_resumes(tmp_path: Path) -> None:
    """It has the state at once, stale, and asks for what it lacks."""
    file, gateway = tmp_path / "deep" / "mirror", Gateway()
    first = state(10, a="1").replace(b'"ranges": []', b'"ranges": ["prefix=/c/"]')
    await follow(file, gateway, first, put("/c/b", "2", 11), until=11)
    async with Mirror(URL, "/c/", resume=file, transport=gateway) as mirror:
        assert (mirror.state, mirror.age, dict(mirror)) == ("stale", None, {"/c/a": "1", "/c/b": "2"})
        body = await gateway.stream()
        assert gateway.requests[-1].url.params["last_event_id"] == f"{EPOCH}-11"
        body.send(delete("/c/a", 12), synced(13))
        await mirror.synced(HANG)
        assert (dict(mirror), mirror.ranges) == ({"/c/b": "2"}, ("prefix=/c/",))


async def test_a_file_of_another_cluster(tmp_path: Path) -> None:
    """The gateway does not know the cursor: the file's state is stale until then, and a change has the differences."""
    file, gateway = tmp_path / "mirror", Gateway()
    changes: list[Change[str, str]] = []
    await follow(file, gateway, state(10, a="1", b="2"), until=10)
    other = state(5, "cursor-lost", b="3").replace(EPOCH.encode(), b"00000000")
    async with Mirror(URL, "/c/", resume=file, on_change=changes.append, transport=gateway) as mirror:
        assert mirror.state == "stale"
        (await gateway.stream()).send(other)
        await mirror.synced(HANG)
        assert (dict(mirror), mirror.revision) == ({"/c/b": "3"}, 5)
    assert [(told(change), change.reset) for change in changes] == [
        ((5, [("delete", "/c/a"), ("put", "/c/b")]), "cursor-lost")
    ]
    assert json.loads(file.read_text())["cursor"] == "00000000-5"
    # A file of other ranges is not used at all.
    async with Mirror(URL, "/d/", resume=file, transport=gateway) as mirror:
        assert (len(mirror), mirror.state) == (0, "connecting")


async def test_a_cut_snapshot_is_not_kept(tmp_path: Path) -> None:
    """The file keeps the last exact state with its own cursor."""
    file, gateway = tmp_path / "mirror", Gateway()
    async with Mirror(URL, "/c/", resume=file, transport=gateway) as mirror:
        body = await gateway.stream()
        body.send(state(10, a="1"))
        await mirror.synced(HANG)
        body.send(line("reset", 0, reason="lagged"), put("/c/z", "half", 20, live=False))
        await mirror.until(lambda found: "lagged" in found.reason, HANG)
    assert json.loads(file.read_text())["cursor"] == f"{EPOCH}-10"


async def test_a_full_disk_does_not_end_the_mirror(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged. But a handler that relies on the file gets no further change."""
    file, gateway, handled = tmp_path / "mirror", Gateway(), []
    async with Mirror(URL, "/c/", resume=file, transport=gateway) as mirror:
        body = await gateway.stream()
        file.mkdir()  # cannot be replaced by a file, even by root
        body.send(state(10, a="1"), put("/c/a", "2", 11))
        await mirror.until(lambda found: found.revision == 11, HANG)
        await mirror.synced(HANG)
    assert f"the mirror is not kept in {file}" in caplog.text
    assert mirror.error is None

    async def handle(change: Change[str, str]) -> None:
        handled.append(change.revision)

    file.rmdir()
    async with Mirror(URL, "/c/", resume=file, on_change=handle, transport=gateway) as mirror:
        body = await gateway.stream()
        file.mkdir()
        body.send(state(10, a="1"), put("/c/a", "2", 11))
        with pytest.raises(IsADirectoryError):
            await mirror.until(lambda found: found.revision == 11, HANG)
    assert handled == [10]


@pytest.mark.parametrize("end", ["by time", "by closing"])
async def test_a_write_that_failed_is_tried_again(tmp_path: Path, end: str) -> None:
    """Also if the revision has not moved: after a minute, and when the mirror is closed."""
    now, file, gateway = 100.0, tmp_path / "mirror", Gateway()
    mirror = Mirror(URL, "/c/", resume=file, transport=gateway)
    mirror._clock = lambda: now
    async with mirror:
        body = await gateway.stream()
        file.mkdir()
        body.send(state(10, heartbeat=100, a="1"), line("bookmark", 10, revision=10, state="stale"))
        await mirror.until(lambda found: found.state == "stale", HANG)  # the first write has failed
        file.rmdir()
        if end == "by time":
            now += 61
            body.send(line("bookmark", 10, revision=10, state="live"), put("/c/b", "2", 11))
            await mirror.until(lambda found: found.revision == 11, HANG)
            assert json.loads(file.read_text())["cursor"] == f"{EPOCH}-10"
    assert json.loads(file.read_text())["cursor"] == f"{EPOCH}-{10 if end == 'by closing' else 11}"


async def test_a_connection_that_cannot_be_closed(tmp_path: Path) -> None:
    """Its error says nothing to anybody, and must not keep the file from being written."""
    file = tmp_path / "mirror"

    class Broken(Gateway):
        async def aclose(self) -> None:
            raise OSError("mine")

    gateway = Broken()
    async with Mirror(URL, "/c/", resume=file, transport=gateway) as mirror:
        (await gateway.stream()).send(state(10, a="1"), put("/c/b", "2", 11))
        await mirror.until(lambda found: found.revision == 11, HANG)
    assert json.loads(file.read_text())["cursor"] == f"{EPOCH}-11"


async def test_another_history_at_the_same_revision_is_kept(tmp_path: Path) -> None:
    """After a restore, etcd may have come to the revision of the file again; and an operator may change the epoch."""
    file, gateway = tmp_path / "mirror", Gateway()
    async with Mirror(URL, "/c/", resume=file, transport=gateway) as mirror:
        (await gateway.stream()).send(state(10, a="old"), state(10, "restored", a="new"))
        await mirror.until(lambda found: found.get("/c/a") == "new", HANG)
    async with Mirror(URL, "/c/", resume=file, transport=gateway) as mirror:
        assert dict(mirror) == {"/c/a": "new"}
        (await gateway.stream()).send(state(10, "cursor-lost", a="new").replace(EPOCH.encode(), b"00000000"))
        await mirror.synced(HANG)
    assert json.loads(file.read_text())["cursor"] == "00000000-10"


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_change_that_was_not_handled_comes_again(tmp_path: Path, how: str) -> None:
    """A handler that fails, or is stopped, gets its change from the next process; no handled change comes again."""
    file, handled, started = tmp_path / "mirror", [], asyncio.Event()

    async def handle(change: Change[str, str]) -> None:
        if change.revision == 12:
            started.set()
            if how == "fails":
                raise ValueError("mine")
            await asyncio.Event().wait()
        handled.append(change.revision)

    gateway = Gateway(scripted(state(10, a="1"), put("/c/a", "2", 11), put("/c/a", "3", 12), put("/c/a", "4", 13)))
    with contextlib.suppress(ValueError):
        async with Mirror(URL, "/c/", resume=file, on_change=handle, transport=gateway), asyncio.timeout(HANG):
            await started.wait()
    assert handled == [10, 11]
    await follow(file, gateway, put("/c/a", "3", 12), synced(12), until=12)
    assert gateway.requests[-1].url.params["last_event_id"] == f"{EPOCH}-11"
