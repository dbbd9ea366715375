"""Which stream is opened next: with which token, for what, at which gateway, and when."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from etcd_watch_client import Change, Mirror, RefusedError
from playing import EPOCH, HANG, Gateway, line, problem, put, scripted, state, synced

URL = "http://gateway.test"
ALL = "prefix=%2Fc%2F"


def close(reason: str, retry_ms: int = 0) -> bytes:
    """The last event of a stream."""
    return line("close", reason=reason, retry_ms=retry_ms)


def status(stream: str = "live", **members: Any) -> bytes:
    """A status."""
    return line("status", state=stream, ranges=[ALL], **members)


def tokens(gateway: Gateway) -> list[str]:
    """The tokens of the requests, in turn."""
    return [request.headers["authorization"].removeprefix("Bearer ") for request in gateway.requests]


async def test_an_expired_token_is_replaced_without_a_reset(tmp_path: Path) -> None:
    """The stream ends, and the next one brings the cursor and the file's new token, without a wait."""
    file, gateway = tmp_path / "token", Gateway()
    file.write_text("one\n")
    changes: list[Change[str, str]] = []
    mirror = Mirror(URL, "/c/", token=file, on_change=changes.append, transport=gateway)
    mirror._clock = iter(range(0, 10**6, 3)).__next__  # 3 s pass with each look at it
    async with mirror:
        body = await gateway.stream()
        body.send(state(10, a="1"))
        await mirror.synced(HANG)
        file.write_text("two\n")
        body.send(close("expired", retry_ms=10**9))
        (await gateway.stream()).send(synced(11))
        await mirror.until(lambda found: found.revision == 11 and found.state == "live", HANG)
    assert tokens(gateway) == ["one", "two"]
    assert gateway.requests[1].url.params["last_event_id"] == f"{EPOCH}-10"
    assert [change.reset for change in changes] == ["initial"]


async def test_a_new_token_is_used_before_the_old_one_ends(tmp_path: Path) -> None:
    """From the warning on, the source is asked at each sign of life. Without another token, the stream stays."""
    file, gateway = tmp_path / "token", Gateway()
    file.write_text("one")
    mirror = Mirror(URL, "/c/", token=file, transport=gateway)
    mirror._clock = iter(range(0, 10**6, 3)).__next__  # 3 s pass with each look at it
    async with mirror:
        body = await gateway.stream()
        body.send(state(10), status(expires="2027-01-01T00:00:00Z"), put("/c/a", "1", 11))
        await mirror.until(lambda found: found.revision == 11, HANG)
        assert (mirror.state, len(gateway.requests)) == ("live", 1)
        file.unlink()  # for a moment: it is being replaced
        body.send(put("/c/a", "2", 12))
        await mirror.until(lambda found: found.revision == 12, HANG)
        assert len(gateway.requests) == 1
        file.write_text("two")
        body.send(b"\n")
        (await gateway.stream()).send(synced(13))
        await mirror.until(lambda found: found.revision == 13 and found.state == "live", HANG)
    assert tokens(gateway) == ["one", "two"]


async def test_a_source_that_makes_a_token_for_each_question() -> None:
    """It is asked every two seconds, and not for each event; and a token that lives only briefly is no busy loop."""
    now, made = 0.0, 0

    def make() -> str:
        nonlocal made
        made += 1
        return str(made)

    gateway = Gateway()
    mirror = Mirror(URL, "/c/", token=make, transport=gateway)
    mirror._clock = lambda: now
    async with mirror:
        body = await gateway.stream()
        body.send(state(10), status(expires="2027-01-01T00:00:00Z"), *(put("/c/a", "1", 11 + at) for at in range(50)))
        await mirror.until(lambda found: found.revision == 60, HANG)
        assert (made, len(gateway.requests)) == (1, 1)
        now = 2
        body.send(b"\n")
        body = await gateway.stream()
        body.send(synced(61), status(expires="2027-01-01T00:00:00Z"), put("/c/a", "2", 62))
        await mirror.until(lambda found: found.revision == 62, HANG)
        assert (made, tokens(gateway)) == (3, ["1", "3"])


async def test_a_fixed_token_that_has_expired_is_final() -> None:
    """Nothing can replace it: the error says so, instead of a retry for ever."""
    gateway = Gateway(scripted(state(10), close("expired")), problem(401, "unauthorized"))
    with pytest.raises(RefusedError, match="401 unauthorized"):
        async with Mirror(URL, "/c/", token="t", transport=gateway) as mirror:  # noqa: S106 - not a secret
            await mirror.until(lambda _: False)


@pytest.mark.parametrize("late", [100, 200])
async def test_a_token_that_is_not_yet_replaced(late: int, tmp_path: Path) -> None:
    """The kubelet is late: the client waits for the file, named and stale, and not for ever."""
    file, now = tmp_path / "token", -3600.0
    file.write_text("one")

    def away(_: httpx.Request) -> httpx.Response:
        nonlocal now
        now = 0.0  # an hour later: the time for which no gateway answered is no part of the wait for the file
        return httpx.Response(502)

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal now
        if request.headers["authorization"] == "Bearer two":
            return scripted(synced(11))(request)
        now += 25  # each refusal is asked about twice
        if now > late:
            file.write_text("two")
        return problem(401, "unauthorized")

    gateway = Gateway(scripted(state(10), close("revoked")), away, *[answer] * 20)
    reasons = []
    mirror = Mirror(URL, "/c/", token=file, on_state=lambda found: reasons.append(found.reason), transport=gateway)
    mirror._clock, mirror._draw = lambda: now, lambda: -1 / 9  # no delay
    async with mirror:
        if late < 150:
            await mirror.until(lambda found: found.revision == 11 and found.state == "live", HANG)
            assert "HTTP 401 unauthorized: no" in reasons
        else:
            with pytest.raises(RefusedError, match="401 unauthorized"):
                await mirror.until(lambda _: False, HANG)
            assert (now, mirror.state) == (200, "closed")  # 150 s after the first answer to both questions


async def test_another_token_is_refused_too() -> None:
    """A new token may reach the gateway later than the client: the wait is as long as for a token that stays."""
    made = 0

    def make() -> str:
        nonlocal made
        made += 1
        return str(made)

    gateway = Gateway(scripted(state(10), close("revoked")), *[problem(401, "unauthorized") for _ in range(4)])
    mirror = Mirror(URL, "/c/", token=make, transport=gateway)
    mirror._clock, mirror._draw = lambda: 0.0, lambda: -1 / 9  # no delay
    async with mirror:
        (await gateway.stream()).send(synced(11))
        await mirror.until(lambda found: found.revision == 11 and found.state == "live", HANG)
    assert tokens(gateway) == ["1", "2", "3", "4", "5", "6"]


async def test_a_scope_that_shrinks() -> None:
    """The next stream says which ranges are left, and the keys that are gone are deletes."""
    first = [
        line("reset", 0, reason="initial", ranges=["prefix=/c/a", "prefix=/c/b"]),
        put("/c/a", "1", 5, live=False),
        put("/c/b", "2", 6, live=False),
        synced(10),
    ]
    gateway = Gateway(scripted(*first, close("scope-changed")))
    changes: list[Change[str, str]] = []
    async with Mirror(URL, "/c/", permitted=True, on_change=changes.append, transport=gateway) as mirror:
        assert list(mirror.ranges) == []
        body = await gateway.stream()
        assert list(mirror.ranges) == ["prefix=/c/a", "prefix=/c/b"]
        body.send(line("reset", 0, reason="cursor-lost", ranges=["prefix=/c/a"]), put("/c/a", "1", 5, live=False))
        body.send(synced(11))
        await mirror.until(lambda found: found.state == "live" and found.revision == 11, HANG)
        assert (dict(mirror), list(mirror.ranges)) == ({"/c/a": "1"}, ["prefix=/c/a"])
    assert [(event.type, event.key) for event in changes[-1]] == [("delete", "/c/b")]
    assert changes[-1].reset == "cursor-lost"
    assert all(request.url.params["scope"] == "permitted" for request in gateway.requests)


async def test_a_revision_is_demanded_until_it_is_reached() -> None:
    """After a restore, etcd may be below it: a stream that was once there is not kept from resuming."""
    gateway = Gateway(
        scripted(close("revision-not-reached")), scripted(state(70), state(30, "restored", a="1"), close("max-age"))
    )  # fmt: skip
    async with Mirror(URL, "/c/", min_revision=70, transport=gateway) as mirror:
        body = await gateway.stream()
        body.send(synced(31))
        await mirror.synced(HANG)
    assert [request.url.params.get("min_revision") for request in gateway.requests] == ["70", "70", None]


async def test_a_gateway_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts the connection, as a process that was stopped does. It is not waited for as for a silent stream."""
    monkeypatch.setattr("etcd_watch_client.connection._HEAD_TIMEOUT", 0.01)

    class Hangs(Gateway):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.host == "one.test":
                await asyncio.Event().wait()
            return await super().handle_async_request(request)

    gateway, reasons = Hangs(), []
    urls = ["http://one.test", "http://two.test"]
    mirror = Mirror(urls, "/c/", on_state=lambda found: reasons.append(found.reason), transport=gateway)
    mirror._draw, mirror._gateways._backoff.index = lambda: 0.0, 0
    async with mirror:
        async with asyncio.timeout(HANG):
            (await gateway.stream()).send(state(10))
        await mirror.synced(HANG)
    assert reasons[0] == "http://one.test: silent"


async def test_a_cursor_is_any_text() -> None:
    """It is opaque: what it has in it is no part of the request."""
    text = "e&scope=permitted#é %-10"
    opaque = state(10).replace(f"{EPOCH}-10".encode(), text.encode())
    gateway = Gateway(scripted(opaque, close("max-age")))
    async with Mirror(URL, "/c/", transport=gateway) as mirror:
        (await gateway.stream()).send(synced(11))
        await mirror.until(lambda found: found.revision == 11, HANG)
    assert gateway.requests[1].url.params["last_event_id"] == text
    assert "scope" not in gateway.requests[1].url.params


async def test_flushes() -> None:
    """A flush is one change, and says that it is merged of several revisions; a transaction in one revision is not."""
    gateway = Gateway()
    changes: list[Change[str, str]] = []
    async with Mirror(URL, "/c/", latest=0.5, on_change=changes.append, transport=gateway) as mirror:
        body = await gateway.stream()
        body.send(state(10), put("/c/a", "1", 12, live=False, more=True), put("/c/b", "2", 15))
        body.send(put("/c/a", "2", 16, live=False, more=True), put("/c/b", "3", 16))
        await mirror.until(lambda found: found.revision == 16, HANG)
        assert dict(mirror) == {"/c/a": "2", "/c/b": "3"}
    assert [(change.revision, change.merged) for change in changes[-2:]] == [(15, True), (16, False)]
    assert gateway.requests[0].url.query.decode() == f"format=ndjson&{ALL}&mode=latest&interval=500ms"
    for wrong in (0, 0.01, 61, float("nan")):
        with pytest.raises(ValueError, match=r"0\.05 to 60"):
            Mirror(URL, "/c/", latest=wrong)


@pytest.mark.parametrize("several", [True, False])
async def test_a_gateway_that_is_cut_off_from_etcd(several: bool) -> None:
    """After three heartbeats another gateway is asked, if there is one. A short outage is none."""
    now, gateway = 0.0, Gateway()
    urls = ["http://one.test", "http://two.test"] if several else ["http://one.test"]
    mirror = Mirror(urls, "/c/", transport=gateway)
    mirror._clock, mirror._draw = lambda: now, lambda: 0.0
    async with mirror:
        body = await gateway.stream()
        body.send(state(10), status("stale"))
        await mirror.until(lambda found: found.state == "stale", HANG)
        now = 40
        body.send(line("bookmark", 11, revision=11, state="stale"))
        await mirror.until(lambda found: found.revision == 11, HANG)
        now = 46
        body.send(line("bookmark", 12, revision=12, state="stale"))
        if several:
            (await gateway.stream()).send(synced(13))
            await mirror.until(lambda found: found.state == "live", HANG)
            assert {request.url.host for request in gateway.requests} == {"one.test", "two.test"}
        else:
            await mirror.until(lambda found: found.revision == 12, HANG)
            body.send(status(), line("bookmark", 13, revision=13, state="live"))
            await mirror.synced(HANG)
            assert len(gateway.requests) == 1


async def test_one_that_is_only_slow_to_read_is_not_left() -> None:
    """A client that is behind would be behind at every gateway, and would only lose its place."""
    now, gateway = 0.0, Gateway()
    mirror = Mirror(["http://one.test", "http://two.test"], "/c/", transport=gateway)
    mirror._clock = lambda: now
    async with mirror:
        body = await gateway.stream()
        body.send(state(10), line("bookmark", 11, revision=11, state="stale"))
        await mirror.until(lambda found: found.revision == 11, HANG)
        for revision, now in ((12, 40), (13, 80), (14, 120)):  # noqa: B007 - the mirror's clock reads it
            body.send(line("bookmark", revision, revision=revision, state="stale"))
            await mirror.until(lambda found, least=revision: found.revision == least, HANG)  # type: ignore[misc]
        await asyncio.sleep(0)
        assert len(gateway.requests) == 1
