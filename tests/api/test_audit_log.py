"""One line for each request that is not a stream; none for a stream, a probe or a page."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.audit_log import ranges_in
from app.core.keys import KeyRange
from app.core.selection import MOST_RANGES
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.asgi_client import Client, released, synced
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import HANG

POLICY = "roles: {reader: {read: [/svc/], keys_only: [/audit/]}, operator: {}}"
TOKEN = "dash-token"


@pytest.fixture(name="guarded")
async def _guarded(fake: FakeEtcd, tmp_path: Path) -> AsyncIterator[Gateway]:
    (tmp_path / "tokens").write_text(
        f"tokens: [{{name: dash, sha256: {sha256(TOKEN.encode()).hexdigest()}, roles: [reader]}}]"
    )
    (tmp_path / "policy").write_text(POLICY)
    files = {"tokens_file": tmp_path / "tokens", "policy_file": tmp_path / "policy"}
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": 0, "address_joins": 1, **files}))
    async with gateway.running():
        yield gateway


@pytest.fixture(name="lines")
def _lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "gateway.audit")
    return caplog


def said(lines: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The lines of the audit log."""
    return [vars(record) for record in lines.records if record.name == "gateway.audit"]


async def ask(gateway: Gateway, target: str, token: str | None = TOKEN) -> int:
    """The status of a GET."""
    transport = httpx.ASGITransport(create_app(gateway=gateway))
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return (await http.get(target, headers=headers)).status_code


@pytest.mark.parametrize(
    ("method", "target"),
    [("OPTIONS", "/v1/kv?prefix=/secret/"), ("GET", "/.well-known/oauth-protected-resource?prefix=/secret/")],
)
async def test_what_reads_nothing_is_not_permitted(
    guarded: Gateway, lines: pytest.LogCaptureFixture, method: str, target: str
) -> None:
    """Anybody may ask these. A line would say that a range was read which nobody may read."""
    transport = httpx.ASGITransport(create_app(gateway=guarded))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        await http.request(method, target)
    assert said(lines) == []


async def test_a_head_of_a_stream_has_a_line(guarded: Gateway, lines: pytest.LogCaptureFixture) -> None:
    """It is answered as the stream would be, and there is no stream that has lines of its own."""
    transport = httpx.ASGITransport(create_app(gateway=guarded))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        await http.head("/v1/watch?prefix=/svc/", headers={"Authorization": f"Bearer {TOKEN}"})
    assert [(one["decision"], one["method"], one["status"]) for one in said(lines)] == [("permitted", "HEAD", 200)]


@pytest.mark.parametrize(
    ("target", "token", "line"),
    [
        ("/v1/kv?prefix=/svc/&limit=1", TOKEN, ("permitted", "token:dash", "prefix=/svc/", "reader", 200)),
        ("/v1/kv?prefix=/audit/&keys_only=1", TOKEN, ("permitted", "token:dash", "prefix=/audit/", "reader", 200)),
        ("/v1/kv?key=/svc/none", TOKEN, ("failed", "token:dash", "key=/svc/none", "reader", 404)),
        ("/v1/kv?prefix=/b%0a", TOKEN, ("refused", "token:dash", "prefix=/b%0A", "", 403)),
        ("/v1/watch?prefix=/b", TOKEN, ("refused", "token:dash", "prefix=/b", "", 403)),
        ("/v1/watch?prefix=/svc/", "wrong", ("refused", "unknown", "prefix=/svc/", "credentials", 401)),
        ("/v1/kv?prefix=/svc/&access_token=s3cret", None, ("refused", "unknown", "prefix=/svc/", "credentials", 401)),
        ("/v1/keys?prefix=/svc/", TOKEN, ("failed", "unknown", "prefix=/svc/", "", 404)),
        ("/v1/session", TOKEN, ("failed", "unknown", "", "", 404)),
        ("/v1/access", TOKEN, ("permitted", "token:dash", "", "", 200)),
        ("/metrics", TOKEN, ("refused", "token:dash", "", "", 403)),
    ],
)
async def test_a_line_for_each_request(
    guarded: Gateway, lines: pytest.LogCaptureFixture, target: str, token: str | None, line: tuple[object, ...]
) -> None:
    """The line says who, what, the status and the rule, and holds no value, no token and no other parameter."""
    status = await ask(guarded, target, token)
    (found,) = said(lines)

    assert (found["decision"], found["identity"], found["selection"], found["rule"], found["status"]) == line
    assert found["status"] == status
    assert found["path"] == target.partition("?")[0]
    assert not any(secret in str(found) for secret in (TOKEN, "s3cret", "wrong"))


async def test_a_stream_has_its_own_lines(guarded: Gateway, fake: FakeEtcd, lines: pytest.LogCaptureFixture) -> None:
    """A stream writes a line when it joins, and no second one as a request. Probes and pages write none."""
    client = Client(guarded, headers=[(b"authorization", f"Bearer {TOKEN}".encode())])
    await synced(client)
    for path in ("/livez", "/readyz", "/", "/page/x/page.js", "/docs/swagger-ui.css", "/openapi.json"):
        assert await ask(guarded, path, None) == 200
    await client.leave()
    await released(guarded, fake)

    assert [(line["decision"], line["rule"], line["address"]) for line in said(lines)] == [
        ("joined", "reader", "127.0.0.1:1")
    ]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("token", "line"),
    [
        ("wrong", ("refused", "unknown", "prefix=/", "credentials", 200, "address-joins")),
        (TOKEN, ("failed", "token:dash", "prefix=/svc/", "reader", 200, "draining")),
    ],
)
async def test_a_refusal_in_the_stream_has_a_line(
    guarded: Gateway, lines: pytest.LogCaptureFixture, method: str, token: str, line: tuple[object, ...]
) -> None:
    """An EventSource is refused with status 200 and ``close``: the line has what a problem's code would be."""
    if token == TOKEN:
        guarded.registry.drain()
    else:
        assert guarded.quotas is not None
        guarded.streams.retry_ms = lambda factor=1: factor  # type: ignore[method-assign]  # held so many ms
        guarded.quotas.failed("127.0.0.1", guarded.clock() + HANG)
    headers = [(b"authorization", f"Bearer {token}".encode()), (b"accept", b"text/event-stream")]
    client = Client(guarded, query=b"prefix=/&scope=permitted", headers=headers, method=method)
    await client.task
    (found,) = said(lines)

    assert client.status == found["status"]
    names = ("decision", "identity", "selection", "rule", "status", "code")
    assert tuple(found[name] for name in names) == line


async def test_the_parts_of_a_head_of_a_stream(guarded: Gateway, lines: pytest.LogCaptureFixture) -> None:
    """With ``scope=permitted`` the line has the parts that are left, and the role that permits them."""
    headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
    await Client(guarded, query=b"prefix=&scope=permitted", headers=headers, method="HEAD").task

    assert [(one["selection"], one["rule"]) for one in said(lines)] == [("prefix=/svc/", "reader")]


async def test_the_port_of_operators_looks_at_no_credentials(guarded: Gateway, lines: pytest.LogCaptureFixture) -> None:
    """Without a static token, nothing there is decided by credentials."""
    gateway = Gateway(guarded.settings.model_copy(update={"admin_port": 1}))
    transport = httpx.ASGITransport(create_app(gateway=gateway).state.admin)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        for target in ("/metrics", "/v1/feeds", "/v1/feeds?x=1"):
            await http.get(target)

    found = [(one["decision"], one["identity"], one["rule"], one["status"]) for one in said(lines)]
    assert found == [("permitted", "unknown", "", 200)] * 2 + [("failed", "unknown", "", 400)]


async def test_without_an_access_mode_the_log_is_off(gateway: Gateway, lines: pytest.LogCaptureFixture) -> None:
    """Without a mode, nobody has a name."""
    assert await ask(gateway, "/v1/kv?prefix=/svc/", None) == 200
    assert said(lines) == []


def test_ranges_in_a_query() -> None:
    """Of any query only the ranges are taken: bounded, and in bytes that a log can hold."""
    assert ranges_in(b"prefix=/a%ff&key=b+c&token=x&prefix") == [
        KeyRange("prefix", b"/a\xff"), KeyRange("key", b"b c"), KeyRange("prefix", b""),
    ]  # fmt: skip
    assert len(ranges_in(b"&".join([b"key=" + b"k" * 5000] * 500))) == 32


parts = st.one_of(
    st.binary(max_size=20), st.sampled_from([b"prefix=", b"key=%0a", b"%70refix=/x", b"key=" + b"k" * 500])
)


@given(st.lists(parts, max_size=50).map(b"&".join))
def test_any_query_can_be_logged(raw: bytes) -> None:
    """A query that no parser accepts is logged, too: a bounded number of ranges, each on one line."""
    found = ranges_in(raw)

    assert len(found) <= MOST_RANGES
    assert all(str(one).isprintable() for one in found)
