"""Reads that are passed up: what the upstream is asked for, and what becomes of its answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api import kv_memory
from app.api.kv_request import parse
from app.api.kv_response import KvBody
from app.api.kv_upstream import UpstreamReads
from app.core.budget import PAGE_BYTES, Use
from app.core.encoding import list_head, list_tail, page_tail
from app.core.errors import OverCapacityError
from app.core.keys import KeyRange
from app.core.page_token import PageToken, reader_of
from app.core.selection import Selection
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.waiting import eventually, soon
from tests.tier.scripted import CLUSTER, Answered, Scripted, epoch_of, scripted

pytestmark = pytest.mark.usefixtures("clean_environment")

BODY = {"revision": 120, "cursor": "81e932e5-120", "kvs": [], "count": 0}


async def ask(
    root: Scripted, query: str, answered: Answered, *, policy: Path | None = None, gzip: str = "", **headers: str
) -> httpx.Response:
    """The answer of an edge whose upstream answers so."""
    more = {"policy_file": policy} if policy is not None else {}
    gateway = Gateway(load({"upstream": root.url, "gzip_prefixes": gzip, **more}))
    root.answer = lambda asked: answered if asked.path == "/v1/kv" else root.usual(asked)

    async def connected() -> bool:
        return gateway.upstream.member_known

    transport = httpx.ASGITransport(create_app(gateway=gateway))
    async with gateway.running(), httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        await eventually(connected)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await http.get(f"/v1/kv?{query}", headers=sent)


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
        answer = await ask(root, "prefix=/svc/", answered, if_none_match='"81e932e5-7-3"')
        assert answer.status_code == 304


async def test_an_absent_key() -> None:
    """The upstream's 404 is this gateway's 404."""
    async with scripted() as root:
        missing = Answered.of({"code": "key-not-found", "detail": ""}, 404, X_Etcd_Revision="120",
                              ETag='W/"81e932e5-0-0"')  # fmt: skip
        answer = await ask(root, "key=/svc/a", missing)
        assert (answer.status_code, answer.json()["code"]) == (404, "key-not-found")
        assert answer.headers["etag"] == 'W/"81e932e5-0-0"'


@pytest.mark.parametrize(("more", "status"), [("", 200), ("&keys_only=1", 200), ("", 404), ("&count_only=1", 200)])
async def test_a_list_of_one_key(tmp_path: Path, more: str, status: int) -> None:
    """Of a prefix, a single key is permitted. The upstream answers for the key, and the client gets a list."""
    item = {
        "key": "/svc/a",
        "value": "/wA=",
        "encoding": "base64",
        "create_revision": 5,
        "mod_revision": 9,
        "version": 2,
    }
    body: dict[str, Any] = {"revision": 120, "cursor": "81e932e5-120", "kv": item}
    missing: dict[str, Any] = {"code": "key-not-found", "detail": ""}
    (tmp_path / "policy").write_text("roles: {r: {read: ['key=/svc/a']}}\nanonymous: [r]")
    async with scripted() as root:
        answered = Answered.of(body if status == 200 else missing, status, X_Etcd_Revision="120")
        answer = await ask(root, f"prefix=/svc/&scope=permitted{more}", answered, policy=tmp_path / "policy")
        assert root.of("/v1/kv")[0].parameters["key"] == "/svc/a"
    hidden = ("value", "encoding") if "keys_only" in more else ()
    shown = [{name: value for name, value in item.items() if name not in hidden}]
    found = answer.json()

    assert answer.status_code == 200
    assert found["kvs"] == ([] if status == 404 or "count_only" in more else shown)
    assert (found["count"], found["revision"]) == (int(status == 200), 120)
    assert ("etag" in answer.headers) == ("count_only" not in more)


@pytest.mark.parametrize("key", [b"/svc/a", b"/svc/" + b"a" * 40_000], ids=["short", "long"])
async def test_the_token_of_a_page_is_for_both_tiers(tmp_path: Path, key: bytes) -> None:
    """The token that the upstream has made for this gateway comes back to it unchanged, however long the key is."""
    (tmp_path / "policy").write_text("roles: {r: {read: ['/svc/']}}\nanonymous: [r]")
    epoch = epoch_of(CLUSTER, Selection((KeyRange("prefix", b"/svc/"),)))
    token = PageToken(epoch, 120, key + b"\0").token(reader_of("token:edge"))
    async with scripted() as root:
        for policy, own in ((None, ""), (tmp_path / "policy", reader_of("anonymous"))):
            paged = Answered.of(BODY, X_Etcd_Revision="120")
            paged = replace(paged, body=list_head(120, "81e932e5-120") + list_tail(3, more=True) + page_tail(token))
            answer = await ask(root, "prefix=/svc/&limit=1", paged, policy=policy)
            given = answer.json()["next_page"]
            assert given == ".".join(filter(None, (token, own)))
            last = Answered.of(BODY, X_Etcd_Revision="120")
            answer = await ask(root, f"prefix=/svc/&limit=1&page={given}", last, policy=policy)
            assert answer.json() == BODY
            assert root.of("/v1/kv")[-1].parameters["page"] == token


async def test_an_answer_is_counted_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of 16 MiB of which each had reserved 1 MiB could be 16 times as large as what answers may have."""
    monkeypatch.setattr(kv_memory, "RESERVE_TIMEOUT", 0.0)
    quarter = 8 * PAGE_BYTES
    large = Answered(b" " * (3 * PAGE_BYTES), headers={"X-Gateway-Tier": "0", "X-Etcd-Revision": "120"})
    async with scripted() as root:
        gateway = Gateway(load({"upstream": root.url, "max_feed_bytes": 4 * quarter}))
        root.answer = lambda asked: large if asked.path == "/v1/kv" else root.usual(asked)

        async def connected() -> bool:
            return gateway.upstream.member_known

        async with gateway.running():
            await eventually(connected)
            reads = UpstreamReads(gateway)
            asked = [parse(f"prefix=/svc/&limit={limit}".encode()) for limit in range(1, 9)]
            found = await asyncio.gather(*map(reads.read, asked), return_exceptions=True)
            bodies = [one for one in found if isinstance(one, KvBody)]
            refused = [one.code for one in found if isinstance(one, OverCapacityError)]
            assert (len(bodies), refused) == (2, ["too-many-reads"] * 6)
            assert gateway.budget.of(Use.ANSWER) == 2 * 3 * PAGE_BYTES
            del bodies, found
            await soon(lambda: gateway.budget.of(Use.ANSWER) == 0)


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


@pytest.mark.parametrize("more", [False, True])
async def test_an_edge_compresses_what_its_root_sends_plain(*, more: bool) -> None:
    """The edge asks its root for plain bytes, and compresses them for its own clients, also before a next page."""
    selection = Selection((KeyRange("prefix", b"/svc/"),))
    kvs = b",".join(b'{"key":"/svc/%d","value":"%s"}' % (number, b"text " * 20) for number in range(900))
    encoded = list_head(120, "81e932e5-120") + kvs + list_tail(900, more=more)
    whole = encoded + (page_tail(PageToken(epoch_of(CLUSTER, selection), 120, b"/svc/b").token("")) if more else b"")
    async with scripted() as root:
        plain = replace(Answered.of(BODY, X_Etcd_Revision="120"), body=whole)
        answer = await ask(root, "prefix=/svc/", plain, gzip="/svc/", accept_encoding="gzip")
        (passed,) = root.of("/v1/kv")

    headers = {name.lower(): value for name, value in passed.headers.items()}
    assert headers["accept-encoding"] == "identity"
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) < len(whole) / 10
    assert answer.content == whole


async def test_a_list_of_one_key_has_no_next_page(tmp_path: Path) -> None:
    """Who forges the token of one gets a refusal, and not the upstream's 400 as a 503."""
    (tmp_path / "policy").write_text("roles: {r: {read: ['key=/svc/a']}}\nanonymous: [r]")
    epoch = epoch_of(CLUSTER, Selection((KeyRange("key", b"/svc/a"),)))
    token = PageToken(epoch, 120, b"/svc/a").token(reader_of("anonymous"))
    async with scripted() as root:
        query = f"prefix=/svc/&scope=permitted&page={token}"
        answer = await ask(root, query, Answered.of({"code": "x"}, 400), policy=tmp_path / "policy")
        assert (answer.status_code, answer.json()["code"]) == (410, "page-expired")
        assert root.of("/v1/kv") == []
