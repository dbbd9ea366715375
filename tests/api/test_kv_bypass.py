"""Both ways of a read from memory, the bypass and FastAPI's route, give the same answer in every respect."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from app.access.identity import Identity
from app.api.kv_bypass import KvBypass
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import HANG

PAGE = "https://page.example"
FEED = "consistency=feed"
GZIP = {"Accept-Encoding": "gzip"}


@pytest.fixture(name="gateway")
async def _gateway(fake: FakeEtcd) -> AsyncIterator[Gateway]:
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": HANG, "cors_origins": PAGE, "gzip_prefixes": "/svc/"}))
    async with gateway.running():
        yield gateway


def without_bypass(app: FastAPI) -> FastAPI:
    """Return the app as it would be without the bypass."""
    (bypass,) = [each for each in app.user_middleware if cast("Any", each.cls) is KvBypass]
    app.user_middleware.remove(bypass)
    return app


async def outcome(app: FastAPI, target: str, method: str, headers: dict[str, str]) -> tuple[object, ...]:
    """What the client and the operators see of one request."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        before = (await http.get("/metrics")).text
        answer = await http.request(method, target, headers=headers)
        after = (await http.get("/metrics")).text
    counted = [re.findall(r'(?m)^etcd_watch_gateway_http\S+_count.*"/v1/kv".*$|^\S+requests_total.*kv.*$', text)
               for text in (before, after)]  # fmt: skip
    known = dict(line.rsplit(" ", 1) for line in counted[0])
    more = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) - float(known.get(line.rsplit(" ", 1)[0], 0))
            for line in counted[1]}  # fmt: skip
    kept = {name: value for name, value in answer.headers.items() if name != "retry-after"}
    return answer.status_code, kept, answer.content, {name: value for name, value in more.items() if value}


@pytest.mark.parametrize(
    "query",
    [
        f"prefix=/svc/&{FEED}",
        f"{FEED}&prefix=/svc/&keys_only=1",
        f"key=/svc/a&{FEED}",
        f"key=/svc/none&{FEED}",
        f"prefix=/svc/&count_only=1&{FEED}",
        f"prefix=/svc/&{FEED}&bogus=1",
        f"prefix=/svc/&{FEED}&{FEED}",
        f"prefix=/svc/&{FEED}x",
        f"{FEED}",
        f"prefix=/svc/&_={FEED}",
        "prefix=/svc/&consistency=%66eed",
    ],
)
async def test_the_same_answer(gateway: Gateway, query: str) -> None:
    """Status, headers, body and metrics are the same, for each method and each header that changes the answer."""
    requests = [
        (method, headers)
        for method in ("GET", "HEAD")
        for headers in ({}, {"Origin": PAGE}, {"If-None-Match": "*"}, {"Prefer": "wait=9"}, GZIP)
    ]
    with_it, without = create_app(gateway=gateway), without_bypass(create_app(gateway=gateway))
    for app in (with_it, without):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            await http.get(f"/v1/kv?{query}")  # the channel is there
    for method, headers in requests:
        ours, theirs = [await outcome(app, f"/v1/kv?{query}", method, headers) for app in (with_it, without)]

        assert ours == theirs, (method, headers)
        assert ours[3], "the request is counted"


async def test_credentials_are_checked_once(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that the bypass leaves to the route is not authenticated again."""
    checks = 0
    authenticate = gateway.access.authenticate

    async def count(headers: Any, peer: str | None) -> Identity:
        nonlocal checks
        checks += 1
        return await authenticate(headers, peer)

    monkeypatch.setattr(gateway.access, "authenticate", count)
    app = create_app(gateway=gateway)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        assert (await http.get(f"/v1/kv?prefix=/svc/&{FEED}")).status_code == 200

    assert checks == 1


async def test_access_is_checked_before_memory(fake: FakeEtcd) -> None:
    """A range that the client may not read is refused, also when its channel is there."""
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": HANG, "allow_prefixes": "/svc/"}))
    async with gateway.running():
        app = create_app(gateway=gateway)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            assert (await http.get(f"/v1/kv?prefix=/svc/&{FEED}")).status_code == 200
            for query in ("prefix=/", "prefix=/svc/&key=/other", "key=/svc"):
                for wait in ({}, {"If-None-Match": "*", "Prefer": "wait=60"}):
                    answer = await http.get(f"/v1/kv?{query}&{FEED}", headers=wait)
                    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert [feed.range.name for feed in gateway.registry.feeds] == [b"/svc/"]
