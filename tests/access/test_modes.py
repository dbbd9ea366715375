"""The modes of authentication and the policy over HTTP, attacked from outside, in front of a real etcd."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio

from tests.access.issuer import (
    AUDIENCE,
    ISSUER,
    JwksServer,
    SigningKey,
    claims,
    ec_key,
    jwks,
    rsa_key,
    serving,
    unsigned,
)
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, etcd_client
from tests.support.gateway import GatewayProcess, gateway
from tests.support.metrics import etcd_metric
from tests.support.nginx import Nginx, nginx
from tests.support.streams import Stream, request, watch
from tests.support.waiting import HANG, eventually, soon

pytestmark = [
    pytest.mark.etcd, pytest.mark.one_etcd, pytest.mark.wall_clock, pytest.mark.asyncio(loop_scope="module"),
]  # fmt: skip

DASH, OPS, OLD = "dash-token-0123456789", "ops-token-0123456789", "old-token-0123456789"
KEY = ec_key("first")
POLICY = """
roles:
  reader: {read: ["/svc/"], keys_only: ["/audit/"]}
  tenant: {read: ["/tenants/{sub}/"]}
  operator: {}
bindings:
  - {identity: "jwt:https://id.example#*", roles: [tenant]}
  - {identity: "proxy:pam", roles: [reader]}
anonymous: []
"""


def entry(name: str, token: str, more: str) -> str:
    """An entry of the tokens file."""
    return f"  - {{name: {name}, sha256: {sha256(token.encode()).hexdigest()}, {more}}}\n"


TOKENS = (
    "tokens:\n"
    + entry("dash", DASH, "roles: [reader]")
    + entry("ops", OPS, "roles: [operator]")
    + entry("old", OLD, "roles: [reader, operator], expires: 2020-01-01T00:00:00Z")
)


@pytest_asyncio.fixture(name="etcd", scope="module", loop_scope="module")
async def _etcd() -> AsyncIterator[EmbeddedEtcd]:
    """One etcd for all tests of this module."""
    async with EmbeddedEtcd(args=ALONE) as etcd, etcd_client(etcd.endpoint) as client:
        for key in ("/svc/a", "/svcx", "/audit/1", "/tenants/alice/x", "/tenants/alicex/x", "/tenants/bob/x", "/b"):
            await client.put(key, f"value-of-{key}")
        yield etcd


@pytest_asyncio.fixture(name="issuer", scope="module", loop_scope="module")
async def _issuer() -> AsyncIterator[JwksServer]:
    async with serving(jwks(KEY)) as server:
        yield server


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("access")
    (folder / "tokens.yaml").write_text(TOKENS)
    (folder / "policy.yaml").write_text(POLICY)
    return folder


@pytest_asyncio.fixture(name="server", scope="module", loop_scope="module")
async def _server(etcd: EmbeddedEtcd, issuer: JwksServer, folder: Path) -> AsyncIterator[GatewayProcess]:
    """A gateway with all modes at once, on every address: with a policy it needs no fence."""
    settings = {
        "GATEWAY_HOST": "0.0.0.0",
        "GATEWAY_TOKENS_FILE": str(folder / "tokens.yaml"),
        "GATEWAY_POLICY_FILE": str(folder / "policy.yaml"),
        "GATEWAY_JWT_ISSUER": ISSUER,
        "GATEWAY_JWT_AUDIENCE": AUDIENCE,
        "GATEWAY_JWT_JWKS": issuer.url,
        "GATEWAY_AUTH_PROXY_HEADER": "X-Forwarded-User",
        "GATEWAY_AUTH_ROLES_HEADER": "X-Forwarded-Groups",
        "GATEWAY_AUTH_PROXIES": "127.0.0.1",
    }
    async with gateway(etcd.endpoint, settings=settings) as running:
        yield running
    said = json.dumps(running.lines, ensure_ascii=False) + "".join(running.other)
    for secret in (DASH, OPS, OLD, *SENT):
        assert secret not in said, "a token is in the log"
        assert sha256(secret.encode()).hexdigest() not in said


SENT: set[str] = set()  # every bearer token that a test has sent


async def ask(server: GatewayProcess, target: str, token: str | None = None, **headers: str) -> Stream:
    """Send one request on its own connection; a stream is left after its first byte."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if token is not None:
        SENT.add(token)
        sent["Authorization"] = f"Bearer {token}"
    answer = await request(server.base + target, sent)
    await answer.close()
    if token is not None:
        assert token.encode() not in answer.body
        assert token not in str(answer.headers)
    return answer


def code(answer: Stream) -> tuple[int, str]:
    """The status and the code of a problem."""
    return answer.status, json.loads(answer.body)["code"]


def jwt(key: SigningKey = KEY, **changed: Any) -> str:
    """A token of the issuer, good now."""
    return key.sign(claims(time.time(), **changed)).decode()


PATHS = ("/v1/kv", "/v1/watch")


# --- who may read what ------------------------------------------------------------------------------------------------


async def test_each_identity_reads_its_own(server: GatewayProcess) -> None:
    """Each mode's identity reads what the policy permits, and is told so."""
    for path in PATHS:
        assert (await ask(server, f"{path}?prefix=/svc/", DASH)).status == 200
        assert (await ask(server, f"{path}?prefix=/tenants/alice/", jwt())).status == 200
        assert (await ask(server, f"{path}?prefix=/svc/", x_forwarded_user="pam")).status == 200
        roles = {"x_forwarded_user": "sue", "x_forwarded_groups": "reader, x"}
        assert (await ask(server, f"{path}?prefix=/svc/", **roles)).status == 200
    told = json.loads((await ask(server, "/v1/access", jwt())).body)

    assert (told["identity"], told["read"]) == (f"jwt:{ISSUER}#alice", ["prefix=/tenants/alice/"])


DENIED = [
    *("prefix=", "prefix=/", "prefix=/svc", "prefix=/svcx", "prefix=/svc0", "key=/svc", "key=/svcx", "prefix=/SVC/"),
    *("prefix=/other/../svc/", "prefix=/svc%2F../", "prefix=//svc/", "prefix=%2fsvc", "prefix=/svc%00", "prefix=%00"),
    *("prefix=%ff", "prefix=/svc%c0%af", "key=%00", "prefix=/tenants/", "prefix=/tenants/alice", "key=/tenants/bob/x"),
    *("prefix=/tenants/alicex/", "prefix=/tenants/alice%2e%2e/", "prefix=/tenants/*/", "prefix=/tenants/%7Bsub%7D/"),
]


@pytest.mark.parametrize("query", [query for query in DENIED if not query.startswith("prefix=/svc%2F")])
async def test_what_is_denied(server: GatewayProcess, query: str) -> None:
    """No spelling reaches a denied key: 403 with RFC 6750's error, and a text that names the range alone, the same
    for ranges that exist and that do not.
    """
    for path in PATHS:
        for token in (DASH, jwt()):
            flags = [flag for flag in ("&keys_only=1", "&count_only=1") if path == "/v1/kv" or flag == "&keys_only=1"]
            beside = ["&prefix=/svc/", "&prefix=/tenants/alice/"] if path == "/v1/watch" else []
            for more in ["", *beside, *(flags if "prefix=" in query else ())]:
                answer = await ask(server, f"{path}?{query}{more}", token)
                told = json.loads(answer.body)

                assert code(answer) == (403, "forbidden"), (path, query)
                assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope"'
                assert told["parameter"] in ("key", "prefix")
                assert b"value-of" not in answer.body
                assert told["detail"].endswith("; GET /v1/access lists what may be read")


async def test_a_prefix_inside_is_bytes(server: GatewayProcess) -> None:
    """``/svc/../`` is a name like any other: it lies inside ``/svc/``, and holds no key of another folder."""
    answer = await ask(server, "/v1/kv?prefix=/svc%2F../", DASH)

    assert json.loads(answer.body)["kvs"] == []


async def test_no_oracle(server: GatewayProcess) -> None:
    """A refusal for keys that exist and for keys that do not differ in the range alone."""
    there, absent = [await ask(server, f"/v1/kv?key=/tenants/{name}/x", jwt()) for name in ("bob", "eve")]

    assert there.body.replace(b"bob", b"eve") == absent.body


async def test_keys_only(server: GatewayProcess) -> None:
    """Keys and their number, without values, once and as a stream."""
    keys = await ask(server, "/v1/kv?prefix=/audit/&keys_only=1", DASH)
    count = await ask(server, "/v1/kv?prefix=/audit/&count_only=1", DASH)

    assert json.loads(keys.body)["kvs"][0]["key"] == "/audit/1"
    assert b"value-of" not in keys.body
    assert json.loads(count.body)["count"] == 1
    async with await watch(server.base, "prefix=/audit/&keys_only=1", {"Authorization": f"Bearer {DASH}"}) as stream:
        assert [
            event.data for event in await stream.until("synced") if event.type == "put" and "value" in event.data
        ] == []
    for target in ("/v1/kv?prefix=/audit/", "/v1/kv?key=/audit/1", "/v1/watch?prefix=/audit/"):
        assert code(await ask(server, target, DASH)) == (403, "forbidden")


async def test_a_page_of_another_range(server: GatewayProcess) -> None:
    """A page token does not lead out of a permitted range."""
    async with gateway_of(server) as http:
        first = await http.get(
            "/v1/kv?prefix=/svc/&limit=1&encoding=base64", headers={"Authorization": f"Bearer {DASH}"}
        )
    assert first.status_code == 200
    for token in ("AAAA", "a" * 400):
        answer = await ask(server, f"/v1/kv?prefix=/svc/&page={token}", DASH)
        assert answer.status in (400, 410)
        assert b"value-of" not in answer.body


def gateway_of(server: GatewayProcess) -> httpx.AsyncClient:
    """A client of the gateway."""
    return httpx.AsyncClient(base_url=server.base)


# --- bad credentials --------------------------------------------------------------------------------------------------


def bad_tokens() -> list[str]:
    """Tokens that must not be accepted; ``test_jwt.py`` has many more."""
    alice = claims(time.time())
    return [
        *(
            "wr0ng-token-9876543210",
            DASH[:-1],
            DASH + "x",
            DASH.upper(),
            sha256(DASH.encode()).hexdigest(),
            OLD,
            "x" * 60_000,
        ),
        unsigned({"alg": "none", "kid": "first"}, alice).decode(),
        rsa_key("first").sign(alice).decode(),
        ec_key("first").sign(alice).decode(),
        ec_key("../../etc/passwd").sign(alice).decode(),
        jwt(aud="another"),
        jwt(iss="https://id.example.evil"),
        jwt(exp=int(time.time()) - 60),
        jwt(exp=None),
        jwt(sub=""),
        KEY.sign(alice, crit=["x"], x=1).decode(),
    ]


async def test_bad_tokens(server: GatewayProcess) -> None:
    """A bad token is a 401 with RFC 6750's error on every path, before any other check of the request."""
    for token in bad_tokens():
        for target in (
            "/v1/kv?prefix=/svc/",
            "/v1/watch?prefix=/svc/",
            "/v1/watch",
            "/v1/access",
            "/v1/feeds",
            "/metrics",
        ):
            answer = await ask(server, target, token, Accept="text/event-stream")

            assert code(answer) == (401, "unauthorized"), (target, token[:20])
            assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'


async def test_a_token_of_a_megabyte(server: GatewayProcess) -> None:
    """A head of that size is not read to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /v1/access HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"A" * 1_000_000 + b"\r\n\r\n")
    answer = await reader.readline()
    writer.close()

    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_no_credentials(server: GatewayProcess) -> None:
    """Without credentials: 401, without RFC 6750's error; probes and pages stay open."""
    for target in ("/v1/kv?prefix=/svc/", "/v1/watch?prefix=/svc/", "/v1/access", "/v1/feeds", "/metrics"):
        answer = await ask(server, target)
        assert code(answer) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    for target in ("/livez", "/readyz", "/", "/docs", "/openapi.json", "/.well-known/oauth-protected-resource"):
        assert (await ask(server, target)).status == 200


async def test_operators(server: GatewayProcess) -> None:
    """Metrics and feeds need the role ``operator``, which alone permits to read no key."""
    for target in ("/metrics", "/v1/feeds", "/v1/feeds?prefix=/svc/"):
        assert (await ask(server, target, OPS)).status == 200
        assert code(await ask(server, target, DASH)) == (403, "forbidden")
        assert code(await ask(server, target, jwt())) == (403, "forbidden")
    assert (await ask(server, "/metrics", jwt(roles=["operator"]))).status == 200
    assert (await ask(server, "/metrics", x_forwarded_user="x", x_forwarded_groups="operator")).status == 200
    assert code(await ask(server, "/v1/kv?prefix=/svc/", OPS)) == (403, "forbidden")


# --- the trusted proxy ------------------------------------------------------------------------------------------------


async def test_a_user_of_an_untrusted_address(server: GatewayProcess) -> None:
    """From another address the proxy's headers are dropped, whatever X-Forwarded-For and Forwarded say: the peer
    counts, although the gateway trusts 127.0.0.1 for addresses.
    """
    headers = {"X-Forwarded-User": "pam", "X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1"}
    transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
    async with httpx.AsyncClient(transport=transport, base_url=server.base) as http:
        alone = await http.get("/v1/access", headers=headers)
        beside = await http.get("/v1/access", headers={**headers, "Authorization": f"Bearer {DASH}"})

    assert alone.status_code == 401
    assert beside.json()["identity"] == "token:dash"


async def test_the_peer_counts(server: GatewayProcess) -> None:
    """The trusted proxy stays trusted when it reports its client's address in X-Forwarded-For."""
    answer = await ask(server, "/v1/access", x_forwarded_user="pam", x_forwarded_for="192.0.2.1")

    assert json.loads(answer.body)["identity"] == "proxy:pam"


async def test_smuggled_headers(server: GatewayProcess) -> None:
    """A bearer beside a proxy's user, and headers that stand twice, are 400; other spellings of a header's name are
    other headers.
    """
    assert code(await ask(server, "/v1/access", DASH, x_forwarded_user="pam")) == (400, "conflicting-credentials")
    for lines in (
        "X-Forwarded-User: eve\r\nX-Forwarded-User: pam\r\n",
        "x-forwarded-user: eve\r\nX-FORWARDED-USER: pam\r\n",
        "X-Forwarded-User: pam\r\nX-Forwarded-Groups: a\r\nX-Forwarded-Groups: operator\r\n",
        f"Authorization: Bearer {DASH}\r\nAuthorization: Bearer {OPS}\r\n",
    ):
        assert (await raw(server, lines))[0] == 400, lines
    for lines in ("X_Forwarded_User: pam\r\n", "X-Forwarded-User : pam\r\n", "X-Forwarded-Users: pam\r\n"):
        assert (await raw(server, lines))[0] in (400, 401), lines
    status, body = await raw(server, "X-Forwarded-User: eve, pam\r\n")
    assert (status, body["identity"]) == (200, "proxy:eve, pam")


async def test_trailers_are_no_headers(server: GatewayProcess) -> None:
    """What comes after the body names no user, no roles and no token: a proxy that replaces headers may pass it on."""
    for trailer in ("X-Forwarded-User: pam", f"Authorization: Bearer {OPS}"):
        assert (await raw(server, f"Transfer-Encoding: chunked\r\n\r\n0\r\n{trailer}\r\n"))[0] == 401, trailer
    lines = "X-Forwarded-User: eve\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Forwarded-Groups: operator\r\n"
    status, body = await raw(server, lines)
    assert (status, body["identity"], body["roles"]) == (200, "proxy:eve", [])


# As docs/access.md asks: the proxy replaces all three headers, whatever the client sent.
NGINX = """
map $http_x_ticket $user { default ""; "ticket-of-pam" "pam"; }
server {
    listen 80;
    location / {
        proxy_pass http://gateway-0:8080;
        proxy_set_header X-Forwarded-User $user;
        proxy_set_header X-Forwarded-Groups "";
        proxy_set_header Authorization "";
    }
}
"""


async def test_smuggling_through_nginx(server: GatewayProcess, tmp_path: Path) -> None:
    """Behind a real nginx, nothing that a client sends becomes another user or a role."""
    async with nginx(tmp_path / "nginx", [server.base], NGINX) as front:
        ticket = "X-Ticket: ticket-of-pam\r\n"
        status, told = await raw(front, ticket)
        assert (status, told["identity"], told["roles"]) == (200, "proxy:pam", ["reader"])
        for lines in (
            "X-Forwarded-User: eve\r\n",
            "X-Forwarded-User: eve\r\nX-Forwarded-User: pam\r\n",
            "X-Forwarded-Groups: operator\r\n",
            "X_Forwarded_User: eve\r\nX_Forwarded_Groups: operator\r\n",
            "X-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\n",
            f"Authorization: Bearer {OPS}\r\n",
            "Connection: X-Forwarded-User\r\n",
        ):
            assert await raw(front, ticket + lines) == (status, told), lines
            assert (await raw(front, lines))[0] == 401, lines
        for lines in ("X-Ticket: wrong\r\n", "X-Forwarded-User : pam\r\n", "X-A: b\r\n X-Forwarded-User: pam\r\n"):
            assert (await raw(front, lines))[0] in (400, 401), lines


# With connections to the gateway that are kept, so that what one client sends could become another's request.
KEPT = "upstream gateways { server gateway-0:8080; keepalive 2; }" + NGINX.replace(
    "http://gateway-0:8080", "http://gateways"
).replace("proxy_pass", 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass')
INNER = (
    "GET /v1/access HTTP/1.1\r\nHost: x\r\nX-Forwarded-User: root\r\nX-Forwarded-Groups: operator\r\n"
    f"Authorization: Bearer {OPS}\r\n\r\n"
)
CHUNK = f"{len(INNER):x}\r\n{INNER}\r\n0\r\n\r\n"


async def test_a_request_inside_a_request_through_nginx(server: GatewayProcess, tmp_path: Path) -> None:
    """Whatever length a client states for its body, the gateway takes no part of the body for a request."""
    async with nginx(tmp_path / "nginx", [server.base], KEPT) as front:
        status, told = await raw(front, "X-Ticket: ticket-of-pam\r\n")
        assert (status, told["identity"]) == (200, "proxy:pam")
        for lines in (
            f"Content-Length: {len(INNER)}\r\n\r\n{INNER}",
            f"Content-Length: 0\r\n\r\n{INNER}",
            f"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNK}",
            f"Transfer-Encoding: chunked\r\n\r\n{CHUNK}",
            f"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{INNER}",
            f"Transfer-Encoding: xchunked\r\nContent-Length: {len(INNER)}\r\n\r\n{INNER}",
            f"Transfer-Encoding: chunked, identity\r\n\r\n{CHUNK}",
            f"Transfer-Encoding:\x0bchunked\r\nContent-Length: {len(INNER)}\r\n\r\n{INNER}",
            f"Content-Length: {len(INNER)}\r\nContent-Length: 0\r\n\r\n{INNER}",
            f"Content-Length: +{len(INNER)}\r\n\r\n{INNER}",
            f"X: y\rTransfer-Encoding: chunked\r\nContent-Length: {len(INNER)}\r\n\r\n{INNER}",
            f"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAAA\r\n\r\n{INNER}",
        ):
            received = await all_answers(front, f"GET /v1/access HTTP/1.1\r\nHost: x\r\n{lines}")
            assert b"root" not in received, lines
            assert b"operator" not in received, lines
            for _ in range(3):  # the connections that nginx has kept
                assert (await raw(front, ""))[0] == 401, lines
                assert await raw(front, "X-Ticket: ticket-of-pam\r\n") == (200, told), lines


async def all_answers(server: Nginx, request_: str) -> bytes:
    """Everything that one connection receives, whose client has nothing more to send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(server.base).port)
    writer.write(request_.encode())
    writer.write_eof()
    async with asyncio.timeout(HANG):
        received = await reader.read()
    writer.close()
    return received


async def raw(server: GatewayProcess | Nginx, lines: str) -> tuple[int, Any]:
    """The status and the body that these header lines get. A body that is not JSON comes from nginx itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(server.base).port)
    writer.write(f"GET /v1/access HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else body


# --- what a refusal costs ---------------------------------------------------------------------------------------------


async def test_nothing_starts_for_the_refused(etcd: EmbeddedEtcd, server: GatewayProcess) -> None:
    """A refused request starts no feed, no watcher and no Range, and a token appears in no metric."""

    async def value(name: str) -> str:
        text = (await ask(server, "/metrics", OPS)).body.decode()
        assert not any(secret in text for secret in SENT)
        return next(line for line in text.splitlines() if line.startswith(f"etcd_watch_gateway_{name} "))

    async def no_watcher() -> bool:
        return await etcd_metric(etcd.endpoint, "etcd_debugging_mvcc_watcher_total") == 0

    await eventually(no_watcher)
    before = await value("feeds_started_total"), await value("etcd_ranges_total")
    for query in DENIED:
        for path in PATHS:
            await ask(server, f"{path}?{query}", jwt(sub="nobody"))
            await ask(server, f"{path}?{query}", "wr0ng-token-9876543210")

    assert (await value("feeds_started_total"), await value("etcd_ranges_total")) == before
    assert await no_watcher()


# --- files and keys change --------------------------------------------------------------------------------------------


async def status_of(server: GatewayProcess, token: str, target: str = "/v1/kv?prefix=/svc/") -> int:
    """The status that a token gets."""
    return (await ask(server, target, token)).status


async def test_tokens_are_rotated(server: GatewayProcess, folder: Path) -> None:
    """A token is rotated without a restart and without an outage: both are accepted meanwhile."""
    new = "new-token-0123456789"

    def write(*entries: str) -> None:
        (folder / "next").write_text("tokens:\n" + "".join(entries) + entry("ops", OPS, "roles: [operator]"))
        (folder / "next").rename(folder / "tokens.yaml")

    async def accepted() -> bool:
        return await status_of(server, new) == 200

    async def gone() -> bool:
        return await status_of(server, DASH) == 401

    old_entry, new_entry = entry("dash", DASH, "roles: [reader]"), entry("dash", new, "roles: [reader]")
    async with await watch(server.base, "prefix=/svc/", {"Authorization": f"Bearer {DASH}"}) as stream:
        await stream.until("synced")
        write(old_entry, new_entry)
        await eventually(accepted)
        assert await status_of(server, DASH) == 200
        write(new_entry)
        await eventually(gone)
        write(old_entry)
        await eventually(accepted_again(server))
        await stream.until("bookmark")


def accepted_again(server: GatewayProcess) -> Any:
    """Whether the first token is accepted."""

    async def accepted() -> bool:
        return await status_of(server, DASH) == 200

    return accepted


async def test_a_policy_that_does_not_parse(server: GatewayProcess, folder: Path) -> None:
    """It changes nothing and is loud: in the log, the metrics and /readyz, which stays 200; then it is mended."""
    path, metric = folder / "policy.yaml", 'etcd_watch_gateway_access_file_unusable{file="policy"}'

    async def unusable() -> bool:
        return f"{metric} 1.0" in (await ask(server, "/metrics", OPS)).body.decode()

    async def usable() -> bool:
        return f"{metric} 0.0" in (await ask(server, "/metrics", OPS)).body.decode()

    assert await usable()
    path.write_text(POLICY.replace("reader:", "reader: {read: ['*']} #"))
    await eventually(unusable)
    assert await status_of(server, DASH) == 200
    ready = await ask(server, "/readyz")
    path.write_text(POLICY)
    await eventually(usable)

    def said() -> list[str]:
        return [line["message"] for line in server.lines_so_far if line.get("setting") == "policy_file"]

    await soon(lambda: len(said()) >= 2)
    assert ready.status == 200
    assert "ends with '*'" in json.loads(ready.body)["access"]["policy_file"]
    assert "access" not in json.loads((await ask(server, "/readyz")).body)
    assert said() == [
        "a file of the access control cannot be used: what was read before stays valid",
        "a file of the access control can be used again",
    ]


async def test_a_policy_changes(server: GatewayProcess, folder: Path) -> None:
    """A right that is taken away is gone at once after a signal, and given back by the file alone."""
    path = folder / "policy.yaml"
    path.write_text(POLICY.replace('"/svc/"', '"/svc/b/"'))
    server.process.send_signal(signal.SIGHUP)

    async def gone() -> bool:
        return await status_of(server, DASH) == 403

    await eventually(gone)
    path.write_text(POLICY)
    await eventually(accepted_again(server))


async def test_keys_are_rotated(etcd: EmbeddedEtcd) -> None:
    """The first token with a new key is accepted; while the issuer is away, the keys that are known stay valid; and
    unknown keys cause no further fetches.
    """
    second, target = ec_key("second"), "/v1/kv?prefix=/tenants/alice/"
    async with serving(jwks(KEY)) as issuer, gateway(etcd.endpoint, settings=by_jwt(issuer)) as server:
        assert await status_of(server, jwt(), target) == 200
        issuer.body = jwks(KEY, second)
        assert await status_of(server, jwt(second), target) == 200
        fetches = len(issuer.requests)
        issuer.status = "500 Internal"
        for number in range(20):
            assert await status_of(server, jwt(ec_key(f"unknown-{number}")), target) == 401
        assert await status_of(server, jwt(), target) == 200
        assert await status_of(server, jwt(second, sub="bob"), target) == 200

        assert fetches == 2
        assert len(issuer.requests) <= 3  # perhaps the regular one


def by_jwt(issuer: JwksServer) -> dict[str, str]:
    """The settings of a gateway that accepts JWTs alone, without a policy."""
    return {"GATEWAY_JWT_ISSUER": ISSUER, "GATEWAY_JWT_AUDIENCE": AUDIENCE, "GATEWAY_JWT_JWKS": issuer.url}


# --- other ways to run ------------------------------------------------------------------------------------------------


async def test_the_admin_port(etcd: EmbeddedEtcd, folder: Path) -> None:
    """On a port of their own, metrics and feeds need no role; with a static token beside, feeds still need one."""
    (folder / "static").write_text("static-0123456789")
    settings = {"GATEWAY_TOKENS_FILE": str(folder / "tokens.yaml"), "GATEWAY_ADMIN_PORT": "0"}
    for more, status in (({}, 200), ({"GATEWAY_TOKEN_FILE": str(folder / "static")}, 401)):
        async with gateway(etcd.endpoint, settings=settings | more) as server:
            admin = f"http://127.0.0.1:{server.admin_port}"
            async with httpx.AsyncClient(base_url=admin) as http:
                assert (await http.get("/metrics")).status_code == 200
                assert (await http.get("/v1/feeds")).status_code == status
                assert (await http.get("/v1/feeds", headers={"Authorization": f"Bearer {OPS}"})).status_code == 200


async def test_without_the_issuer(etcd: EmbeddedEtcd) -> None:
    """Before the keys were fetched once, a token is neither good nor bad: 503, and /readyz says what is missing."""
    async with serving(jwks(KEY)) as issuer:
        issuer.status = "404 Not Found"
        async with gateway(etcd.endpoint, settings=by_jwt(issuer)) as server:

            async def reached() -> bool:
                return bool(json.loads((await ask(server, "/readyz")).body)["etcd"]["state"] == "ready")

            await eventually(reached)
            ready = await ask(server, "/readyz")
            refused = await ask(server, "/v1/kv?prefix=/svc/", jwt())
            issuer.status = "200 OK"

            async def accepted() -> bool:
                return await status_of(server, jwt()) == 200

            await eventually(accepted)
            assert (await ask(server, "/readyz")).status == 200

    assert code(refused) == (503, "issuer-unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    assert issuer.url.encode() not in refused.body
    assert ready.status == 503
    assert json.loads(ready.body)["status"] == "waiting for the issuer's keys"
    assert "404" in json.loads(ready.body)["access"]["jwt_jwks"]


async def test_a_file_that_is_wrong_at_the_start(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """The gateway does not start with a policy that it cannot use."""
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"roles: [")
    with pytest.raises(AssertionError, match=r"GATEWAY_POLICY_FILE \(--policy-file\)"):
        async with gateway(etcd.endpoint, settings={"GATEWAY_POLICY_FILE": str(path)}):
            pass
