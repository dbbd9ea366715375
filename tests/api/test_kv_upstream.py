"""Reads that are passed up: what the upstream is asked for, and what becomes of its answer."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.waiting import eventually
from tests.tier.scripted import Answered, Scripted, scripted

pytestmark = pytest.mark.usefixtures("clean_environment")

BODY = {"revision": 120, "cursor": "81e932e5-120", "kvs": [], "count": 0}


async def ask(root: Scripted, query: str, answered: Answered, **headers: str) -> httpx.Response:
    """The answer of an edge whose upstream answers so."""
    gateway = Gateway(load({"upstream": root.url}))
    root.answer = lambda asked: answered if asked.path == "/v1/kv" else root.usual(asked)

    async def connected() -> bool:
        return gateway.upstream.member_known

    transport = httpx.ASGITransport(create_app(gateway=gateway))
    async with gateway.running(), httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        await eventually(connected)
        return await http.get(f"/v1/kv?{query}", headers=headers)


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("prefix=/svc/", {"prefix": "/svc/", "limit": "10000"}),
        ("key=/a%ff", {}),
        ("prefix=/svc/&limit=7&keys_only=1", {"prefix": "/svc/", "limit": "7", "keys_only": "1"}),
        ("prefix=/svc/&count_only=1&encoding=base64",
         {"prefix": "/svc/", "limit": "10000", "count_only": "1", "encoding": "base64"}),
        ("prefix=/svc/&min_revision=9", {"prefix": "/svc/", "limit": "10000", "min_revision": "9"}),
        ("prefix=/svc/b/&prefix=/svc/", {"prefix": "/svc/", "limit": "10000"}),
    ],
)  # fmt: skip
async def test_the_upstream_is_asked_for_the_same(query: str, asked: dict[str, str]) -> None:
    """The canonical ranges, and all that changes the answer."""
    async with scripted() as root:
        answer = await ask(root, query, Answered.of(BODY, X_Etcd_Revision="120", ETag='W/"81e932e5-7-3"'))
        assert answer.status_code == 200
        assert answer.json() == BODY
        assert (answer.headers["etag"], answer.headers["x-etcd-revision"]) == ('W/"81e932e5-7-3"', "120")
        (passed,) = root.of("/v1/kv")
        defaults = {"encoding": "auto", "min_revision": "0"}
        found = passed.parameters
        assert {**defaults, **asked, **({"key": found["key"]} if "key" in found else {})} == found


async def test_a_known_answer_has_no_body() -> None:
    """The client's ``If-None-Match`` is compared here, so that equal reads share one answer of the upstream."""
    async with scripted() as root:
        answered = Answered.of(BODY, X_Etcd_Revision="120", ETag='W/"81e932e5-7-3"')
        answer = await ask(root, "prefix=/svc/", answered, **{"If-None-Match": '"81e932e5-7-3"'})
        assert answer.status_code == 304


async def test_an_absent_key() -> None:
    """The upstream's 404 is this gateway's 404."""
    async with scripted() as root:
        missing = Answered.of({"code": "key-not-found", "detail": ""}, 404, X_Etcd_Revision="120",
                              ETag='W/"81e932e5-0-0"')  # fmt: skip
        answer = await ask(root, "key=/svc/a", missing)
        assert (answer.status_code, answer.json()["code"]) == (404, "key-not-found")
        assert answer.headers["etag"] == 'W/"81e932e5-0-0"'


@pytest.mark.parametrize("headers", [{}, {"X_Etcd_Revision": "many"}])
async def test_an_answer_without_a_revision_is_foreign(headers: dict[str, Any]) -> None:
    """Nothing of it reaches the client."""
    async with scripted() as root:
        answer = await ask(root, "prefix=/svc/", Answered.of(BODY, **headers))
        assert (answer.status_code, answer.json()["code"]) == (503, "etcd-unavailable")


async def test_a_page_of_another_request_is_refused_here() -> None:
    """The page's epoch is compared before the upstream is asked."""
    async with scripted() as root:
        answer = await ask(root, "prefix=/svc/&page=ODFlOTMyZTUtMTUtL3N2Yy9hAA", Answered.of(BODY))
        assert answer.status_code == 410
        assert root.of("/v1/kv") == []
