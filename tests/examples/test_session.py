"""Sessions as browsers have them: the page of docs/access.md in Chromium, other pages, HTTPS, and two replicas."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Page

from app.access.cookie import COOKIE
from tests.support.certificates import Ca
from tests.support.connections import serving
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, EtcdClient, etcd_client
from tests.support.gateway import GatewayProcess, gateway
from tests.support.streams import watch
from tests.support.waiting import eventually, soon

# A step of the gateway's clock by an hour ends every session, because a cookie is good for a quarter of an hour.
pytestmark = [pytest.mark.etcd, pytest.mark.wall_clock, pytest.mark.asyncio(loop_scope="module")]

TOKEN = "dash-token-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ACCESS = (Path(__file__).parents[2] / "docs" / "access.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```js\n(.*?)```", ACCESS, re.DOTALL)


@dataclass
class Replicas:
    """Two gateways with the same keys: one on plain HTTP on loopback, one with HTTPS."""

    plain: GatewayProcess
    secured: GatewayProcess
    trust: ssl.SSLContext
    client: EtcdClient

    def http(self, server: GatewayProcess) -> httpx.AsyncClient:
        """A client of one of them."""
        return httpx.AsyncClient(base_url=server.base, verify=self.trust)


@pytest_asyncio.fixture(name="replicas", scope="module", loop_scope="module")
async def _replicas(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replicas]:
    folder = tmp_path_factory.mktemp("session")
    digest = sha256(TOKEN.encode()).hexdigest()
    (folder / "tokens").write_text(f"tokens: [{{name: dash, sha256: {digest}, roles: [reader]}}]")
    (folder / "policy").write_text("roles: {reader: {read: [/svc/]}}")
    (folder / "keys").write_text("a key that both replicas have, and that nobody else has\n")
    ca = Ca(folder)
    pair = ca.sign("gateway")
    settings = {
        "GATEWAY_TOKENS_FILE": str(folder / "tokens"),
        "GATEWAY_POLICY_FILE": str(folder / "policy"),
        "GATEWAY_SESSION_KEY_FILE": str(folder / "keys"),
    }
    tls = {"GATEWAY_TLS_CERT": str(pair.cert), "GATEWAY_TLS_KEY": str(pair.key)}
    trust = ssl.create_default_context(cafile=str(ca.cert))
    async with (
        EmbeddedEtcd(args=ALONE) as etcd,
        etcd_client(etcd.endpoint) as client,
        gateway(etcd.endpoint, settings=settings) as plain,
        gateway(etcd.endpoint, settings=settings | tls) as secured,
    ):
        await client.put("/svc/a", "1")
        yield Replicas(plain, secured, trust, client)
    for server in (plain, secured):
        said = str(server.lines) + "".join(server.other)
        assert TOKEN not in said
        assert COOKIE not in said


def audited(server: GatewayProcess, **wanted: object) -> list[dict[str, object]]:
    """The lines of the audit log that have all these fields."""
    lines = [line for line in server.lines_so_far if line["message"] == "audit"]
    return [line for line in lines if all(line.get(name) == value for name, value in wanted.items())]


# Notes every EventSource of the page, and what it receives.
WATCHED = """() => {
  window.sources = [];
  window.seen = [];
  window.EventSource = class extends EventSource {
    constructor(url) {
      super(url);
      window.sources.push(this);
      for (const type of ['reset', 'put', 'close'])
        this.addEventListener(type, (event) => window.seen.push(JSON.parse(event.data)));
    }
  };
}"""


async def shown(tab: Page, **wanted: str) -> None:
    """Wait until the page has seen such an event. The page's CSP forbids playwright's own way to wait."""

    async def seen() -> bool:
        return any(wanted.items() <= event.items() for event in await tab.evaluate("seen"))

    await eventually(seen)


async def test_the_page_of_the_docs(tab: Page, replicas: Replicas) -> None:
    """It follows by EventSource through the cookie, which no script sees; after the logout the stream ends."""
    await tab.goto(replicas.plain.base)
    await tab.evaluate(WATCHED)
    await tab.evaluate(f"async (token) => {{ {EXAMPLE} }}", TOKEN)
    await shown(tab, value="1")
    await replicas.client.put("/svc/a", "2")
    await shown(tab, value="2")
    assert await tab.evaluate("document.cookie") == ""
    (cookie,) = await tab.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["secure"]) == (COOKIE, True, True)
    assert (cookie["sameSite"], cookie["path"]) == ("Strict", "/")

    # As after a sleep: the cookie is gone, and the EventSource has given up. The page begins again, and resumes.
    await tab.context.clear_cookies()
    await tab.evaluate("sources[0].close(); sources[0].dispatchEvent(new Event('error'));")
    await replicas.client.put("/svc/a", "3")
    await shown(tab, value="3")
    assert await tab.evaluate("seen.filter((event) => event.type === 'reset').length") == 1

    assert await tab.evaluate("fetch('/v1/session', {method: 'DELETE'}).then((answer) => answer.status)") == 204
    await shown(tab, reason="revoked")
    assert await tab.evaluate("sources.map((source) => source.readyState)") == [2, 2]
    assert await tab.context.cookies() == []
    assert await tab.evaluate("fetch('/v1/kv?prefix=/svc/').then((answer) => answer.status)") == 401
    # The lines are written a moment later.
    await soon(lambda: audited(replicas.plain, decision="joined", identity="token:dash") != [])
    await soon(lambda: audited(replicas.plain, decision="revoked", identity="token:dash", rule="credentials") != [])


async def test_a_page_of_another_origin(tab: Page, replicas: Replicas) -> None:
    """On another port it is of the same site, so the browser sends the cookie: the gateway refuses it."""
    base = replicas.plain.base
    await tab.goto(base)
    await tab.evaluate(
        "(token) => fetch('/v1/session', {method: 'POST', headers: {Authorization: token}})", BEARER["Authorization"]
    )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline():
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<body>")
        writer.close()

    async with serving(answer) as port:
        await tab.goto(f"http://127.0.0.1:{port}/")
        joined = len(audited(replicas.plain, decision="joined"))
        ends = await tab.evaluate(
            """(base) => Promise.all([
              new Promise((done) => {
                const source = new EventSource(base + '/v1/watch?prefix=/svc/', {withCredentials: true});
                source.onerror = () => { source.close(); done('error'); };
                source.onopen = () => { source.close(); done('open'); };
              }),
              new Promise((done) => {
                const image = new Image();
                image.onerror = () => done('error');
                image.src = base + '/v1/watch?prefix=/svc/&_=image';
              }),
              ...[
                ['/v1/session', {method: 'DELETE', credentials: 'include'}],
                ['/v1/kv?prefix=/svc/', {mode: 'no-cors', credentials: 'include'}],
              ].map(([path, options]) => fetch(base + path, options).then(() => 'sent', () => 'error')),
            ])""",
            base,
        )

        async def refused() -> bool:
            return len(audited(replicas.plain, status=403, identity="token:dash")) == 3

        await eventually(refused)
    assert ends == ["error", "error", "error", "sent"], "the last answer is opaque to the page"
    assert len(audited(replicas.plain, decision="joined")) == joined
    await tab.goto(base)
    assert await tab.evaluate("fetch('/v1/kv?prefix=/svc/').then((answer) => answer.status)") == 200


async def test_two_replicas(replicas: Replicas) -> None:
    """Each accepts the other's cookie. A DELETE ends the session's streams where it arrives, and refuses a replay
    there. The other replica cannot know: there the session lives to its end.
    """
    plain, secured = replicas.http(replicas.plain), replicas.http(replicas.secured)
    async with plain, secured:
        begun = await secured.post("/v1/session", headers=BEARER)
        assert begun.status_code == 201
        headers = {"Cookie": f"{COOKIE}={begun.cookies[COOKIE]}"}
        here = await watch(replicas.secured.base, "prefix=/svc/", headers, tls=replicas.trust)
        there = await watch(replicas.plain.base, "prefix=/svc/", headers)
        for stream in (here, there):
            await stream.until("synced")
        assert (await secured.delete("/v1/session", headers=headers)).status_code == 204
        assert (await here.until("close"))[-1].data["reason"] == "revoked"
        await replicas.client.put("/svc/a", "4")
        assert [event.data["value"] for event in await there.changes(1)] == ["4"]
        secured.cookies.clear()
        assert (await secured.get("/v1/access", headers=headers)).status_code == 401
        assert (await plain.get("/v1/access", headers=headers)).json()["identity"] == "token:dash"
        for stream in (here, there):
            await stream.close()


async def test_behind_a_proxy(replicas: Replicas) -> None:
    """A trusted proxy says by which scheme its client has come. Without that, there is no session."""
    host = {"Host": "gateway.example"}
    async with replicas.http(replicas.plain) as http:
        refused = await http.post("/v1/session", headers=BEARER | host)
        # The body means nothing, and does not disturb the next request of the connection.
        https = host | {"X-Forwarded-Proto": "https"}
        begun = await http.post("/v1/session", headers=BEARER | https, content=b"GET / HTTP/1.1\r\n\r\n" * 50_000)
        overheard = await http.post("/v1/session", headers=BEARER | host | {"X-Forwarded-Proto": "http"})
    outside = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
    assert (refused.status_code, refused.json()["code"]) == (400, "https-required")
    assert (begun.status_code, overheard.status_code) == (201, 400)
    async with httpx.AsyncClient(transport=outside, base_url=replicas.plain.base) as http:
        loopback = await http.post("/v1/session", headers=BEARER | {"X-Forwarded-For": "192.0.2.7"})
    assert loopback.status_code == 400
