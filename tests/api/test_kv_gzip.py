"""``/v1/kv`` with gzip: the same answers, in whole gzip files that are smaller."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import AsyncIterator

import httpx
import pytest

from app.api.kv_gzip import SLICE, coded, deflate
from app.api.kv_response import KvBody
from app.core.budget import Budget, Use
from app.core.deflate import DeflatedPart
from app.core.page_token import PageToken
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import HANG, eventually

GZIP = {"Accept-Encoding": "gzip"}
PLAIN = {"Accept-Encoding": "identity"}


@pytest.fixture(name="fake")
async def _fake() -> AsyncIterator[FakeEtcd]:
    async with FakeEtcd() as fake:
        for number in range(600):
            fake.put(b"/svc/%03d" % number, b'{"address":"10.0.0.%d","text":"%s"}' % (number % 250, b"text " * 40))
        fake.put(b"/svc/random", random.Random(1).randbytes(3000))
        fake.put(b"/tiny/a", b"1")
        fake.put(b"/secret/a", b"text " * 400)
        yield fake


@pytest.fixture(name="gateway")
async def _gateway(fake: FakeEtcd) -> AsyncIterator[Gateway]:
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": HANG, "gzip_prefixes": "/svc/,/tiny/"}))

    async def connected() -> bool:
        return gateway.upstream.member_known

    async with gateway.running():
        await eventually(connected)  # until then, a merge is refused
        yield gateway


@pytest.fixture(name="http")
async def _http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(gateway=gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=HANG) as client:
        yield client


async def raw(http: httpx.AsyncClient, query: str) -> tuple[httpx.Response, bytes]:
    """An answer to a client that asks for gzip, and its bytes as they were sent."""
    async with http.stream("GET", f"/v1/kv?{query}", headers=GZIP) as answer:
        return answer, b"".join([chunk async for chunk in answer.aiter_raw()])


@pytest.mark.parametrize("consistency", ["linearizable", "feed"])
@pytest.mark.parametrize(
    ("query", "smaller"),
    [
        ("prefix=/svc/", 10),
        ("prefix=/svc/&encoding=base64", 5),
        ("prefix=/svc/&keys_only=1", 6),
        ("prefix=/svc/&limit=100", 5),
        ("prefix=/svc/0&key=/svc/random", 5),
        ("key=/svc/001", 1.1),
        ("key=/svc/random&encoding=base64", 1.1),
        ("prefix=/svc/&count_only=1", None),
        ("prefix=/tiny/", None),
        ("key=/tiny/a", None),
        ("prefix=/svc/none/", None),
    ],
)
async def test_the_same_answer_smaller(
    http: httpx.AsyncClient, query: str, smaller: float | None, consistency: str
) -> None:
    """A whole gzip file with the right checksum and length, or plain if that is smaller; otherwise nothing differs."""
    query += f"&consistency={consistency}"
    plain = await http.get(f"/v1/kv?{query}", headers=PLAIN)
    ours, sent = await raw(http, query)

    assert (plain.status_code, ours.status_code) == (200, 200)
    assert "content-encoding" not in plain.headers
    assert (ours.headers.get("content-encoding") == "gzip") == (smaller is not None)
    assert ours.headers["content-length"] == str(len(sent))
    for answer in (plain, ours):
        assert answer.headers["vary"] == "Accept-Encoding"
    said = [
        {name: value for name, value in answer.headers.items() if name not in ("content-length", "content-encoding")}
        for answer in (plain, ours)
    ]
    assert said[0] == said[1]
    if smaller is None:
        assert sent == plain.content
    else:
        assert gzip.decompress(sent) == plain.content
        assert len(sent) < len(plain.content) / smaller
    head = await http.head(f"/v1/kv?{query}", headers=GZIP)
    assert {**head.headers} == {**ours.headers}


@pytest.mark.parametrize("consistency", ["linearizable", "feed"])
async def test_pages(http: httpx.AsyncClient, consistency: str) -> None:
    """The token of the next page is in the end of the file, which is made for each reader. All pages are the list."""
    found, page = [], ""
    while True:
        _, sent = await raw(http, f"prefix=/svc/&limit=150&consistency={consistency}{page}")
        answer = json.loads(gzip.decompress(sent))
        found += answer["kvs"]
        if "next_page" not in answer:
            break
        page = f"&page={answer['next_page']}"
    whole = (await http.get("/v1/kv?prefix=/svc/", headers=PLAIN)).json()

    assert found == whole["kvs"]
    assert len(found) == 601


@pytest.mark.parametrize("query", ["prefix=/svc/", "key=/svc/001"])
async def test_a_known_state(http: httpx.AsyncClient, query: str) -> None:
    """The ``ETag`` is weak: who has the state in one coding has it in the other. A 304 says what it depends on."""
    tag = (await http.get(f"/v1/kv?{query}", headers=GZIP)).headers["etag"]
    assert tag == (await http.get(f"/v1/kv?{query}", headers=PLAIN)).headers["etag"]
    for asked in (GZIP, PLAIN):
        answer = await http.get(f"/v1/kv?{query}", headers={**asked, "If-None-Match": tag})

        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["vary"] == "Accept-Encoding"
        assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    "query", ["prefix=/secret/", "prefix=/svc/&prefix=/secret/", "prefix=/", "prefix=/svc", "prefix="]
)
@pytest.mark.parametrize("consistency", ["linearizable", "feed"])
async def test_what_is_not_listed_is_plain(http: httpx.AsyncClient, query: str, consistency: str) -> None:
    """One key that is not listed is enough: its value would be compressed together with what is. It does not vary."""
    answer = await http.get(f"/v1/kv?{query}&consistency={consistency}", headers=GZIP)

    assert b"text text" in answer.content
    assert "content-encoding" not in answer.headers
    assert "vary" not in answer.headers


async def test_a_second_read_deflates_nothing(
    http: httpx.AsyncClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is deflated of a state is kept for lists of any length, and counts while the state is held."""
    _, first = await raw(http, "prefix=/svc/&consistency=feed")
    held = gateway.budget.held

    def deflated(_data: bytes) -> DeflatedPart:
        raise AssertionError("deflated again")

    monkeypatch.setattr(DeflatedPart, "of", deflated)
    _, second = await raw(http, "prefix=/svc/&consistency=feed&limit=50000")
    assert gzip.decompress(second) == gzip.decompress(first)
    assert gateway.budget.held == held


async def test_deflating_takes_turns() -> None:
    """A slice at a time, so that streams are not delayed."""
    encoded = b"text " * SLICE
    parts = await deflate(encoded)

    assert [part.size for part in parts] == [SLICE] * 5
    assert b"".join(part.plain for part in parts) == encoded
    assert await deflate(b"") == []


def test_a_body_that_gzip_would_make_larger() -> None:
    """It is plain, from the same parts."""
    assert coded([b"{", DeflatedPart.of(b"small"), b"}"]) == ([b"{", b"small", b"}"], None)
    assert coded([b"{", b"}"]) == ([b"{", b"}"], None)


def test_a_body_counts_what_is_sent() -> None:
    """A body with gzip counts its compressed bytes, once; its end is made for each reader."""
    budget = Budget(1 << 20)
    hold = budget.hold(Use.ANSWER)
    body = KvBody(7, [b"head ", DeflatedPart.of(b"text " * 1000)], hold, page=PageToken("16214fff", 7, b"/a"))

    assert body.gzip
    assert budget.of(Use.ANSWER) == hold.size == body.size < 200
    whole = gzip.decompress(b"".join(body.parts or ()) + body.tail(""))
    assert whole.startswith(b"head " + b"text " * 1000 + b',"next_page":"')
    del body
    assert budget.of(Use.ANSWER) == 0
