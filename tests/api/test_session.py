"""``/v1/session`` over HTTP, without a server: who gets a cookie, which pages may use it, and what its end ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.access.cookie import COOKIE, set_cookie
from app.access.sessions import LIFETIME
from app.gateway import Gateway
from app.main import create_app
from app.metrics import NAMESPACE, make_registry
from app.ports import Clock
from app.settings import load
from tests.support.asgi_client import Client, released, swallow, synced
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("clean_environment")

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
BEARER = {"Authorization": "Bearer dash-token"}
PAGE = "https://page.example"
HERE = "https://gateway.example"
READ = "/v1/kv?prefix=/svc/"


class World:
    """A gateway with sessions, whose wall clock stands still until a test moves it.

    *clock*: the gateway's other clock, if not the machine's.
    """

    def __init__(self, folder: Path, etcd: str, *, clock: Clock | None = None, **settings: Any) -> None:
        self.tokens, self.keys = folder / "tokens.yaml", folder / "keys"
        self.list_tokens("dash-token")
        self.keys.write_text("k" * 32)
        files = {"tokens_file": self.tokens, "session_key_file": self.keys}
        self.ahead = 0.0
        loaded = load({"etcd": etcd, "linger": 0, **files, **settings})
        given: dict[str, Any] = {} if clock is None else {"clock": clock}
        self.gateway = Gateway(loaded, **given, wall=lambda: NOW + self.ahead)
        self.app = create_app(gateway=self.gateway)

    def list_tokens(self, *tokens: str) -> None:
        """Write the tokens file. The name of ``dash-token`` is ``dash``."""
        lines = [
            f"{{name: {token.removesuffix('-token')}, sha256: {sha256(token.encode()).hexdigest()}, roles: [r]}}"
            for token in tokens
        ]
        self.tokens.write_text(f"tokens: [{', '.join(lines)}]")

    def http(self, base: str = HERE, client: str = "192.0.2.7") -> httpx.AsyncClient:
        """A browser: it keeps cookies. *base*: the scheme and the host that the gateway sees."""
        transport = httpx.ASGITransport(self.app, client=(client, 4711))
        return httpx.AsyncClient(transport=transport, base_url=base)

    async def cookie(self) -> str:
        """The value of a new session's cookie."""
        async with self.http() as http:
            answer = await http.post("/v1/session", headers=BEARER)
        return str(answer.cookies[COOKIE])

    def stream(self, cookie: str, **more: Any) -> Client:
        """A stream that a cookie opens."""
        headers = [(b"host", b"gateway.example"), (b"cookie", f"{COOKIE}={cookie}".encode())]
        return Client(self.gateway, swallow, app=self.app, headers=headers, scheme="https", **more)


@pytest.fixture(name="world")
async def _world(tmp_path: Path, fake: FakeEtcd) -> AsyncIterator[World]:
    world = World(tmp_path, fake.endpoint, cors_origins=f"{PAGE},https://other.example")
    async with world.gateway.running():
        yield world
        await released(world.gateway, fake)


def problem(answer: httpx.Response) -> tuple[int, str]:
    """The status and the code."""
    return answer.status_code, answer.json()["code"]


# --- a session --------------------------------------------------------------------------------------------------------


async def test_a_session(world: World) -> None:
    """POST with a bearer sets the cookie and says who it is; the cookie alone reads; DELETE ends it."""
    async with world.http() as http:
        begun = await http.post("/v1/session", headers=BEARER)
        me, read = await http.get("/v1/access"), await http.get(READ)
        value = http.cookies[COOKIE]
        ended = await http.delete("/v1/session")
        assert COOKIE not in http.cookies, "the browser has removed the cookie"
        after = await http.get(READ)
        http.cookies.set(COOKIE, value, domain="gateway.example")
        replayed = await http.get(READ)

    assert (begun.status_code, begun.json()) == (201, me.json())
    assert me.json() == {
        "identity": "token:dash",
        "roles": ["r"],
        "read": ["prefix="],
        "keys_only": [],
        "expires": "2027-01-15T08:15:00Z",
    }
    assert begun.headers["set-cookie"] == set_cookie(value, int(LIFETIME))
    assert begun.headers["cache-control"] == "no-store"
    assert (read.status_code, read.json()["count"]) == (200, 1)
    assert (ended.status_code, ended.content, ended.headers["set-cookie"]) == (204, b"", set_cookie("", 0))
    assert problem(after) == problem(replayed) == (401, "unauthorized")
    assert "session has ended" in replayed.json()["detail"]
    assert "dash-token" not in value


async def test_what_begins_no_session(world: World) -> None:
    """No credentials, wrong ones, a session itself, and a parameter."""
    async with world.http() as http:
        assert problem(await http.post("/v1/session")) == (401, "unauthorized")
        assert problem(await http.post("/v1/session", headers={"Authorization": "Bearer x"})) == (401, "unauthorized")
        assert problem(await http.post("/v1/session?a=1", headers=BEARER)) == (400, "unknown-parameter")
        await http.post("/v1/session", headers=BEARER)
        assert problem(await http.post("/v1/session")) == (401, "unauthorized")
        assert "begins with a bearer token" in (await http.post("/v1/session")).json()["detail"]


async def test_the_methods(world: World) -> None:
    """There is nothing to GET; the answer names what there is. Elsewhere GET and HEAD are allowed."""
    async with world.http() as http:
        for method in ("GET", "HEAD", "PUT"):
            answer = await http.request(method, "/v1/session", headers=BEARER)
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST, DELETE")
        detail = (await http.get("/v1/session")).json()["detail"]
        read = await http.post(READ, headers=BEARER)

    assert detail == "GET is not allowed here; use POST or DELETE"
    assert (read.status_code, read.headers["allow"]) == (405, "GET, HEAD")
    assert read.json()["detail"] == "POST is not allowed here; use GET or HEAD"


async def test_without_the_setting(tmp_path: Path) -> None:
    """There is no endpoint, and a cookie means nothing."""
    (tmp_path / "tokens").write_text("tokens: []")
    app = create_app(gateway=Gateway(load({"etcd": "http://127.0.0.1:1", "tokens_file": tmp_path / "tokens"})))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HERE) as http:
        assert problem(await http.post("/v1/session", headers=BEARER)) == (404, "no-such-path")
        answer = await http.get(READ, headers={"Cookie": f"{COOKIE}=a; {COOKIE}=b"})

    assert "has no credentials" in answer.json()["detail"]


async def test_any_cookie_can_be_removed(world: World) -> None:
    """A page cannot remove a cookie that no script can read: DELETE does, also if the cookie is not good any more."""
    async with world.http() as http:
        for headers in ({}, {"Cookie": f"{COOKIE}=forged"}, {"Cookie": "other=1"}, BEARER):
            answer = await http.delete("/v1/session", headers=headers)
            assert (answer.status_code, answer.headers["set-cookie"]) == (204, set_cookie("", 0))
    assert world.gateway.access.session_counts() == (0, 0)


async def test_a_bad_cookie_is_never_anonymous(tmp_path: Path, fake: FakeEtcd) -> None:
    """Where requests without credentials may read, one with a bad cookie may not; two cookies are 400."""
    (tmp_path / "policy").write_text("roles: {all: {read: ['']}}\nanonymous: [all]")
    world = World(tmp_path, fake.endpoint, policy_file=tmp_path / "policy")
    async with world.gateway.running(), world.http() as http:
        for header, expected in ((f"{COOKIE}=x", 401), (f"{COOKIE}=", 401), (f"{COOKIE}=a; {COOKIE}=b", 400)):
            assert (await http.get(READ, headers={"Cookie": header})).status_code == expected
        assert (await http.get(READ, headers={"Cookie": "a=b"})).status_code == 200


# --- HTTPS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "client", "origin", "kept"),
    [
        ("https://gateway.example", "192.0.2.7", None, True),
        ("http://localhost:8080", "127.0.0.1", None, True),
        ("http://127.0.0.1:8080", "127.0.0.1", "http://127.0.0.1:8080", True),
        ("http://[::1]:8080", "::1", None, True),
        ("http://gateway.example", "127.0.0.1", None, False),
        ("http://gateway.example", "192.0.2.7", None, False),
        ("http://localhost", "192.0.2.7", None, False),  # a proxy has replaced the host, and reports its client
        ("http://127.0.0.1", "127.0.0.1", "http://gateway.example", False),  # a proxy that does not report its client
        ("http://localhost.example", "127.0.0.1", None, False),
        ("http://127.0.0.1", "127.0.0.1", "http://[", False),  # not a browser
        ("http://127.0.0.1", "127.0.0.1", "null", False),
    ],
)
async def test_where_browsers_keep_the_cookie(
    tmp_path: Path, base: str, client: str, origin: str | None, kept: bool
) -> None:
    """By HTTPS and from loopback. Elsewhere the browser would drop it without a word, so the answer says so."""
    world = World(tmp_path, "http://127.0.0.1:1")
    headers = BEARER | ({} if origin is None else {"Origin": origin, "Sec-Fetch-Site": "same-origin"})
    async with world.http(base, client) as http:
        answer = await http.post("/v1/session", headers=headers)

    if kept:
        assert answer.status_code == 201
    else:
        assert problem(answer) == (400, "https-required")
        assert "set-cookie" not in answer.headers
        assert "X-Forwarded-Proto" in answer.json()["detail"]


# --- pages of other origins -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),  # not a browser
        ({"Origin": HERE}, True),  # a browser without Sec-Fetch-Site
        ({"Origin": HERE, "Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "https://outside.example", "Sec-Fetch-Site": "same-origin"}, True),  # a proxy replaces the host
        ({"Sec-Fetch-Site": "none"}, True),  # a user who types the URL
        ({"Origin": PAGE, "Sec-Fetch-Site": "same-site"}, True),
        ({"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}, True),
        ({"Origin": PAGE}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "http://gateway.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "null", "Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "https://blog.gateway.example", "Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),  # an <img> on another host of the domain
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": f"{PAGE}.evil.example", "Sec-Fetch-Site": "cross-site"}, False),
    ],
)
async def test_which_pages_may_use_the_cookie(world: World, headers: dict[str, str], allowed: bool) -> None:
    """SameSite=Strict lets every page of the site send the cookie: only pages of this origin and of the list may use
    it, to read, to stream, to begin and to end. A bearer token needs no such check.
    """
    value = await world.cookie()
    async with world.http() as http:
        http.cookies.set(COOKIE, value, domain="gateway.example")
        if not allowed:
            for method, target in (("GET", READ), ("GET", "/v1/watch?prefix=/svc/"), ("DELETE", "/v1/session")):
                answer = await http.request(method, target, headers=headers)
                assert problem(answer) == (403, "cross-origin")
                assert "set-cookie" not in answer.headers
            assert problem(await http.post("/v1/session", headers=headers | BEARER)) == (403, "cross-origin")
            assert (await http.get(READ, headers=headers | BEARER)).status_code == 200
        assert (await http.get(READ, headers=headers if allowed else {})).status_code == 200
        if allowed:
            assert (await http.delete("/v1/session", headers=headers)).status_code == 204
            assert (await http.post("/v1/session", headers=headers | BEARER)).status_code == 201


@pytest.mark.parametrize(
    "lines",
    [
        [("Origin", "https://evil.example"), ("Origin", PAGE)],
        [("Origin", PAGE), ("Origin", "https://evil.example")],
        [("Origin", "https://evil.example"), ("Origin", HERE)],
        [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Site", "same-origin")],
        [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")],
    ],
)
async def test_a_header_in_two_lines(world: World, lines: list[tuple[str, str]]) -> None:
    """Each line must permit the page: a line that something has added does not hide the other one."""
    value = await world.cookie()
    async with world.http() as http:
        http.cookies.set(COOKIE, value, domain="gateway.example")
        for target in (READ, "/v1/watch?prefix=/svc/"):
            assert problem(await http.get(target, headers=lines)) == (403, "cross-origin")
        assert (await http.get(READ, headers=[("Origin", PAGE), ("Origin", PAGE)])).status_code == 200


async def test_cors(world: World) -> None:
    """Named origins may send POST, DELETE and the cookie; no other origin is told anything."""
    for origin, status in ((PAGE, 200), ("https://evil.example", 400), ("null", 400)):
        for method in ("POST", "DELETE", "GET"):
            asked = {"Origin": origin, "Access-Control-Request-Method": method}
            async with world.http() as http:
                answer = await http.options("/v1/session", headers=asked)
                shown = await http.get(READ, headers=BEARER | {"Origin": origin})
            assert answer.status_code == status
            for told in (answer, shown):
                named = told.headers.get("access-control-allow-origin")
                assert named == (PAGE if origin == PAGE else None)
            if origin == PAGE:
                assert method in answer.headers["access-control-allow-methods"]
                assert answer.headers["access-control-allow-credentials"] == "true"
                assert shown.headers["access-control-allow-credentials"] == "true"


async def test_every_origin_gets_no_credentials(tmp_path: Path) -> None:
    """With ``*`` no page of another origin may use a cookie, and no origin is ever reflected beside one."""
    world = World(tmp_path, "http://127.0.0.1:1", cors_origins="*")
    value = await world.cookie()
    async with world.http() as http:
        http.cookies.set(COOKIE, value, domain="gateway.example")
        asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
        assert (await http.options("/v1/session", headers=asked)).status_code == 400
        answer = await http.get("/v1/access", headers={"Origin": PAGE})
        fine = await http.options("/v1/kv", headers={"Origin": PAGE, "Access-Control-Request-Method": "GET"})

    assert problem(answer) == (403, "cross-origin")
    assert fine.headers["access-control-allow-methods"] == "GET, HEAD"
    for told in (answer, fine):
        assert told.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in told.headers


# --- streams ----------------------------------------------------------------------------------------------------------


async def test_the_end_of_a_session_ends_its_streams(
    world: World, fake: FakeEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    """Exactly those that it has opened here; others on the same feed go on. The audit log says who and why."""
    caplog.set_level(logging.INFO, "gateway.audit")
    first, second = await world.cookie(), await world.cookie()
    streams = [world.stream(first), world.stream(first), world.stream(second)]
    for stream in streams:
        await synced(stream)
    async with world.http() as http:
        assert (await http.delete("/v1/session", headers={"Cookie": f"{COOKIE}={first}"})).status_code == 204
    for stream in streams[:2]:
        await stream.until('"reason":"revoked"')
        await stream.task
    fake.put(b"/svc/a", b"2")
    await streams[2].until('"value":"2"')
    assert '"revoked"' not in streams[2].text
    told = [[vars(record).get(name) for name in ("decision", "identity", "rule")] for record in caplog.records]

    assert told.count(["joined", "token:dash", "fence"]) == 3
    assert told.count(["revoked", "token:dash", "credentials"]) == 2
    assert first not in caplog.text
    metrics = make_registry(world.gateway)
    counts = [metrics.get_sample_value(f"{NAMESPACE}_sessions_{name}_total") for name in ("started", "ended")]
    assert counts == [2, 1]
    await streams[2].leave()


async def test_a_session_is_all_that_the_browser_has_opened(world: World) -> None:
    """A page gets a new cookie before the present one expires. DELETE used to end the streams of the last one alone."""
    async with world.http() as http:
        cookies = []
        for ahead in (0, 600, 1200):
            world.ahead = ahead
            await http.post("/v1/session", headers=BEARER)
            cookies.append(http.cookies[COOKIE])
        streams = [world.stream(cookie) for cookie in cookies[1:]]
        for stream in streams:
            await synced(stream)
        await http.delete("/v1/session")
        for stream in streams:
            await stream.until('"reason":"revoked"')
            await stream.task
        for cookie in cookies:
            http.cookies.set(COOKIE, cookie, domain="gateway.example")
            assert (await http.get(READ)).status_code == 401
        world.ahead = 1200 + LIFETIME - 1
        http.cookies.set(COOKIE, cookies[2], domain="gateway.example")
        assert "session has ended" in (await http.get(READ)).json()["detail"]

    assert world.gateway.access.session_counts() == (1, 1)


async def test_one_token_begins_many_sessions(world: World) -> None:
    """Two browsers may have the same token, and one of them must not log out the other. From one browser without a
    cookie, two POSTs at the same time look the same. Such a page begins its session once, before it opens streams.
    """
    async with world.http() as one, world.http() as other:
        await asyncio.gather(*(http.post("/v1/session", headers=BEARER) for http in (one, other)))
        await one.delete("/v1/session")
        assert (await other.get(READ)).status_code == 200

    assert world.gateway.access.session_counts() == (2, 1)


async def test_another_user_of_the_browser(world: World) -> None:
    """The browser forgets the first user's cookie, so what the first user has opened ends. The second user's session is
    another one: whoever plants a cookie of their own in a browser cannot end, or share, the session that begins there.
    """
    world.list_tokens("dash-token", "other-token")
    await world.gateway.reload()
    async with world.http() as http:
        await http.post("/v1/session", headers=BEARER)
        planted = http.cookies[COOKIE]
        first = world.stream(planted)
        await synced(first)
        begun = await http.post("/v1/session", headers={"Authorization": "Bearer other-token"})
        await first.until('"reason":"revoked"')
        await first.task
        second = world.stream(http.cookies[COOKIE])
        await synced(second)
        async with world.http() as outside:
            await outside.delete("/v1/session", headers={"Cookie": f"{COOKIE}={planted}"})
        me = await http.get("/v1/access")

    assert begun.json()["identity"] == me.json()["identity"] == "token:other"
    assert '"revoked"' not in second.text
    assert world.gateway.access.session_counts() == (2, 1)
    await second.leave()


@pytest.mark.parametrize("cookie", [f"{COOKIE}=forged", f"{COOKIE}=a; {COOKIE}=b", f"{COOKIE}="])
async def test_a_bad_cookie_does_not_keep_a_session_from_its_beginning(world: World, cookie: str) -> None:
    """The bearer token counts."""
    async with world.http() as http:
        assert (await http.post("/v1/session", headers=BEARER | {"Cookie": cookie})).status_code == 201


async def test_a_stream_lives_as_long_as_its_session(world: World) -> None:
    """30 s before the end a `status` says so, then the stream ends with `expired`; a new cookie resumes it."""
    stream = world.stream(await world.cookie())
    await synced(stream)
    world.ahead = LIFETIME - 29
    await world.gateway.reload()
    later = world.stream(await world.cookie())
    await synced(later)
    assert '"expires"' not in later.text
    short = Client(
        world.gateway,
        app=world.app,
        headers=[(b"cookie", f"{COOKIE}={await _old(world)}".encode())],
    )
    await short.until('"expires":"2027-01-15T08:15:00Z"')
    for one in (stream, later, short):
        await one.leave()


async def _old(world: World) -> str:
    """A cookie that was made at the beginning."""
    ahead, world.ahead = world.ahead, 0.0
    cookie = await world.cookie()
    world.ahead = ahead
    return cookie


async def test_a_reload_ends_what_the_keys_no_longer_open(world: World) -> None:
    """The streams of a key that was removed end; so do those of a token that was removed."""
    by_key = world.stream(await world.cookie())
    await synced(by_key)
    world.keys.write_text("n" * 32)
    await world.gateway.reload()
    await by_key.until('"reason":"revoked"')
    await by_key.task
    by_token = world.stream(await world.cookie())
    await synced(by_token)
    world.list_tokens("another")
    await world.gateway.reload()
    await by_token.until('"reason":"revoked"')
    await by_token.task


@pytest.mark.parametrize("end", ["session", "token"])
@pytest.mark.parametrize("readable", [True, False])
async def test_a_held_read_ends_with_its_session(tmp_path: Path, fake: FakeEtcd, end: str, readable: bool) -> None:
    """A request that waits, for a change or for etcd, gets the 401 that it would get if it began now: at DELETE, and
    when a token is removed.
    """
    world = World(tmp_path, fake.endpoint if readable else "http://127.0.0.1:1", linger=60)
    cookie = await world.cookie()
    async with world.gateway.running(), world.http() as http:
        http.cookies.set(COOKIE, cookie, domain="gateway.example")
        tag = (await http.get(f"{READ}&consistency=feed")).headers["etag"] if readable else '"a"'
        headers = {"If-None-Match": tag, "Prefer": "wait=50"}
        held = asyncio.create_task(http.get(f"{READ}&consistency=feed", headers=headers))

        async def waits() -> bool:
            return len(world.gateway.registry) == 1

        await eventually(waits)
        if end == "session":
            async with world.http() as other:
                await other.delete("/v1/session", headers={"Cookie": f"{COOKIE}={cookie}"})
        else:
            world.list_tokens("another")
            await world.gateway.reload()
        answer = await held

    assert problem(answer) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_wrong_cookies_are_limited_by_address(tmp_path: Path) -> None:
    """As wrong tokens are: 429 before a cookie is looked at. Cookies of other programs are not wrong ones."""
    # The clock stands still: a slow machine would earn new attempts between two requests.
    world = World(tmp_path, "http://127.0.0.1:1", address_joins="3", clock=lambda: 100.0)
    async with world.http() as http:
        for _ in range(5):
            assert (await http.get("/v1/access", headers={"Cookie": "other=1"})).status_code == 401
        for _ in range(3):
            assert (await http.get("/v1/access", headers={"Cookie": f"{COOKIE}=x"})).status_code == 401
        for method, target in (("GET", "/v1/access"), ("DELETE", "/v1/session"), ("POST", "/v1/session")):
            answer = await http.request(method, target, headers={"Cookie": f"{COOKIE}=x"})
            assert problem(answer) == (429, "address-joins")
    async with world.http(client="192.0.2.8") as http:
        for _ in range(3):
            assert (await http.delete("/v1/session", headers={"Cookie": f"{COOKIE}=x"})).status_code == 204
        assert problem(await http.delete("/v1/session", headers={"Cookie": f"{COOKIE}=x"})) == (429, "address-joins")
