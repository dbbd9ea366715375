"""``scope=permitted`` on ``/v1/kv``: the answer is that of a request for the permitted parts, in every form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.asgi_client import released
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import HANG, eventually

NAMES = ("ann", "ben", "eve", "root")
POLICY = """
roles:
  ann: {read: ["/t/a/", "key=/t/b/1"], keys_only: ["/audit/"]}
  ben: {read: ["/t/a/", "key=/t/b/1"], keys_only: ["/audit/"]}
  eve: {read: ["/e/"]}
  root: {read: [""]}
"""
KEYS = ("/t/a/1", "/t/a/2", "/t/a/3", "/t/ab/1", "/t/b/1", "/t/b/2", "/audit/1", "/secret/1")
# What ann asks for, and the parts that are left of it.
CUTS = {
    "prefix=": "prefix=/t/a/&key=/t/b/1",
    "prefix=/t/": "prefix=/t/a/&key=/t/b/1",
    "prefix=/t/a": "prefix=/t/a/",
    "prefix=/t/a/&prefix=/secret/": "prefix=/t/a/",
    "key=/t/a/1&key=/secret/1&key=/t/b/1": "key=/t/a/1&key=/t/b/1",
    "prefix=&keys_only=1": "prefix=/audit/&prefix=/t/a/&key=/t/b/1&keys_only=1",
    "prefix=&count_only=1": "prefix=/audit/&prefix=/t/a/&key=/t/b/1&count_only=1",
    "prefix=/&encoding=base64": "prefix=/t/a/&key=/t/b/1&encoding=base64",
    "key=/t/a/1": "key=/t/a/1",
    "key=/t/a/none": "key=/t/a/none",
}
FROM = ("", "&consistency=feed")


@pytest.fixture(name="policy")
def _policy(tmp_path: Path) -> Path:
    entries = [
        f"  - {{name: {name}, sha256: {sha256(name.encode()).hexdigest()}, roles: [{name}]}}\n" for name in NAMES
    ]
    (tmp_path / "tokens.yaml").write_text("tokens:\n" + "".join(entries))
    (tmp_path / "policy.yaml").write_text(POLICY)
    return tmp_path / "policy.yaml"


@pytest.fixture(name="guarded")
async def _guarded(fake: FakeEtcd, policy: Path) -> AsyncIterator[Gateway]:
    """A gateway where every request needs a token. Everything is pinned, so that several ranges may be followed."""
    for key in KEYS:
        fake.put(key.encode(), f"value-of-{key}".encode())
    files = {"tokens_file": policy.parent / "tokens.yaml", "policy_file": policy}
    gateway = Gateway(load({"etcd": fake.endpoint, "pin": "/", "linger": "0s", **files}))
    async with gateway.running():
        # A read waits 2 s for the first connection, and a busy machine may take longer.
        await eventually(lambda: ready(gateway))
        yield gateway


async def ready(gateway: Gateway) -> bool:
    """Whether the gateway has reached etcd."""
    return gateway.upstream.condition.state == "ready"


@pytest.fixture(name="http")
async def _http(guarded: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(gateway=guarded))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=HANG) as client:
        yield client


async def get(http: httpx.AsyncClient, name: str, query: str, **headers: str) -> httpx.Response:
    """The answer to one identity."""
    sent = [(key.replace("_", "-").encode(), value.encode("latin-1")) for key, value in headers.items()]
    return await http.get(f"/v1/kv?{query}", headers=[(b"Authorization", f"Bearer {name}".encode()), *sent])


async def change(gateway: Gateway, policy: Path, text: str) -> None:
    """Put another policy in force."""
    policy.write_text(text)  # noqa: ASYNC240  # a small file
    await gateway.access.reload()
    # The gateway may have seen the change just before by itself.
    assert gateway.access.contents["policy_file"] == text.encode(), gateway.access.troubles()


async def pages(http: httpx.AsyncClient, name: str, query: str) -> list[dict[str, Any]]:
    """All pages of a list, each without the token of the next one."""
    found: list[dict[str, Any]] = []
    page: str | None = ""
    while page is not None:
        answer = await get(http, name, query + (f"&page={page}" if page else ""))
        assert answer.status_code == 200, answer.text
        found.append(answer.json())
        page = found[-1].pop("next_page", None)
    return found


@pytest.mark.parametrize("source", FROM)
@pytest.mark.parametrize("asked", CUTS)
async def test_the_answer_is_that_of_the_parts(http: httpx.AsyncClient, asked: str, source: str) -> None:
    """Body, status, ETag, revision and cursor are those that somebody gets who may read all, and asks for the parts."""
    cut = await get(http, "ann", f"{asked}&scope=permitted{source}")
    whole = await get(http, "root", CUTS[asked] + source)

    assert cut.status_code == whole.status_code == (404 if "none" in asked else 200), cut.text
    assert cut.headers.get("etag") == whole.headers.get("etag")
    assert cut.headers["x-etcd-revision"] == whole.headers["x-etcd-revision"]
    if cut.status_code == 200:
        assert cut.content == whole.content
        assert cut.headers["content-length"] == str(len(cut.content))
    for key in ("/t/ab/1", "/t/b/2", "/secret/1"):
        assert f"value-of-{key}" not in cut.text
    # Without the scope, it is all or nothing.
    plain = await get(http, "ann", asked + source)
    assert plain.status_code == (cut.status_code if asked == CUTS[asked] else 403)


@pytest.mark.parametrize("source", FROM)
async def test_a_list_stays_a_list(http: httpx.AsyncClient, source: str) -> None:
    """If a single key is left of a prefix, the answer is a list, also when the key does not exist."""
    answer = await get(http, "ann", f"prefix=/t/b/&scope=permitted{source}")
    body = answer.json()

    assert ([item["key"] for item in body["kvs"]], body["count"]) == (["/t/b/1"], 1)
    limited = await get(http, "ann", f"prefix=/t/b/&limit=1&keys_only=1&scope=permitted{source}")
    assert limited.json()["kvs"][0].keys() == {"key", "create_revision", "mod_revision", "version"}
    tag = answer.headers["etag"]
    assert (await get(http, "ann", f"prefix=/t/b/&scope=permitted{source}", If_None_Match=tag)).status_code == 304


async def test_an_absent_key_of_a_list(http: httpx.AsyncClient, fake: FakeEtcd) -> None:
    """A list of which nothing exists is an empty list, and its ETag is good for a 304."""
    fake.delete(b"/t/b/1")
    answer = await get(http, "ann", "prefix=/t/b/&scope=permitted")

    assert (answer.status_code, answer.json()["kvs"], answer.json()["count"]) == (200, [], 0)
    again = await get(http, "ann", "prefix=/t/b/&scope=permitted", If_None_Match=answer.headers["etag"])
    assert again.status_code == 304


@pytest.mark.parametrize("source", FROM)
@pytest.mark.parametrize("asked", ["prefix=", "prefix=&keys_only=1", "prefix=/t/&prefix=/secret/"])
async def test_pages(http: httpx.AsyncClient, asked: str, source: str) -> None:
    """The pages are those of the parts, each with the count of the parts."""
    parts = CUTS.get(asked, "prefix=/t/a/&key=/t/b/1")
    cut = await pages(http, "ann", f"{asked}&limit=2&scope=permitted{source}")

    assert len(cut) > 1
    assert cut == await pages(http, "root", f"{parts}&limit=2{source}")


async def test_a_page_is_for_one_identity(http: httpx.AsyncClient, policy: Path, guarded: Gateway) -> None:
    """Another identity cannot use the token, though it may read the same, or everything."""
    for query in ("prefix=/t/&limit=1&scope=permitted", "prefix=/t/a/&limit=1"):
        token = (await get(http, "ann", query)).json()["next_page"]
        assert (await get(http, "ann", f"{query}&page={token}")).status_code == 200
        for name, page in (("ben", token), ("root", token), ("ann", token.partition(".")[0]), ("ann", token + "x")):
            answer = await get(http, name, f"{query}&page={page}")
            assert (answer.status_code, answer.json()["code"]) == (410, "page-expired")
        # Who may not read the range learns nothing of the token.
        assert (await get(http, "eve", f"{query}&page={token}")).status_code == 403
    await change(
        guarded, policy, POLICY.replace('ann: {read: ["/t/a/", "key=/t/b/1"]', 'ann: {read: ["/t/a/1", "key=/t/b/1"]')
    )
    answer = await get(http, "ann", f"prefix=/t/&limit=1&scope=permitted&page={token}")
    assert (answer.status_code, answer.json()["code"]) == (410, "page-expired")


async def test_equal_parts_share_one_read(http: httpx.AsyncClient) -> None:
    """Identities that may read the same parts share the answer, and each has a token of its own."""
    query = "prefix=&limit=2&scope=permitted"
    first = await asyncio.gather(*(get(http, name, query) for name in ("ann", "ben", "ann", "ben")))
    bodies = [answer.json() for answer in first]
    tokens = [body.pop("next_page") for body in bodies]

    assert all(body == bodies[0] for body in bodies)
    assert tokens[0] == tokens[2] != tokens[1] == tokens[3]
    assert [len(answer.content) for answer in first] == [int(answer.headers["content-length"]) for answer in first]


@pytest.mark.parametrize("source", FROM)
async def test_nothing_says_what_else_exists(http: httpx.AsyncClient, fake: FakeEtcd, source: str) -> None:
    """Denied keys that come and go change neither ETag, count, pages nor refusals; a 304 stays a 304."""
    query = f"prefix=&limit=2&scope=permitted{source}"
    whole = f"prefix=/t/&scope=permitted{source}"
    tag = (await get(http, "ann", whole)).headers["etag"]
    before = [[item["kvs"] for item in await pages(http, "ann", query)], await refusals(http)]
    for key in (b"/t/a", b"/t/aa", b"/t/ab/2", b"/t/b/11", b"/t/b/2", b"/secret/1", b"/zzz"):
        revision = fake.put(key, b"denied")
    fake.delete(b"/secret/1")
    after = f"&min_revision={revision}"

    assert [[item["kvs"] for item in await pages(http, "ann", query + after)], await refusals(http)] == before
    unchanged = await get(http, "ann", whole + after, If_None_Match=tag)
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    count = await get(http, "ann", f"prefix=/t/&count_only=1&scope=permitted{source}{after}")
    assert count.json()["count"] == 4


async def refusals(http: httpx.AsyncClient) -> list[tuple[int, dict[str, str], bytes]]:
    """What an identity is told that may read nothing of what it asks for: without the range that it named itself."""
    found = []
    for key in ("/secret/1", "/secret/2", "/t/ab/1"):
        for query in (f"key={key}", f"prefix={key}", f"key={key}&count_only=1"):
            for more in ("", "&consistency=feed", "&min_revision=1"):
                answer = await get(http, "ann", f"{query}&scope=permitted{more}", If_None_Match="*")
                headers = {name: value for name, value in answer.headers.items() if name != "x-etcd-revision"}
                found.append((answer.status_code, headers, answer.content))
                assert answer.status_code == (400 if "count_only" in query else 403)
    return found


@pytest.mark.parametrize("source", FROM)
async def test_a_held_read(http: httpx.AsyncClient, fake: FakeEtcd, guarded: Gateway, source: str) -> None:
    """A denied key does not wake a held read; a permitted one does."""
    query = f"prefix=/t/&scope=permitted{source}"
    tag = (await get(http, "ann", query)).headers["etag"]
    held = asyncio.create_task(get(http, "ann", query, If_None_Match=tag, Prefer="wait=60"))
    await eventually(lambda: _holds(guarded))
    fake.put(b"/t/b/2", b"denied")
    revision = fake.put(b"/t/a/1", b"new")
    answer = await held

    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=60"
    changed = [item["key"] for item in answer.json()["kvs"] if item["mod_revision"] == revision]
    assert changed == ["/t/a/1"]
    assert "denied" not in answer.text


@pytest.mark.parametrize("source", FROM)
@pytest.mark.parametrize(
    ("left", "status", "code"),
    [('"/t/a/1"', 503, "scope-changed"), ('"/other/"', 403, "forbidden"), ('"/t/", "/u/"', 304, None)],
)
async def test_a_held_read_while_the_policy_changes(
    http: httpx.AsyncClient, guarded: Gateway, policy: Path, left: str, status: int, code: str | None, source: str
) -> None:
    """A part that is lost ends the wait, and the client comes back for the rest; nothing left is 403."""
    query, wait = f"prefix=/t/&scope=permitted{source}", "wait=60" if code else "wait=1"
    tag = (await get(http, "ann", query)).headers["etag"]
    held = asyncio.create_task(get(http, "ann", query, If_None_Match=tag, Prefer=wait))
    await eventually(lambda: _holds(guarded))
    await change(guarded, policy, POLICY.replace('ann: {read: ["/t/a/", "key=/t/b/1"]', f"ann: {{read: [{left}]"))
    answer = await held

    assert answer.status_code == status, answer.text
    if code is not None:
        assert answer.json()["code"] == code
        assert ("retry-after" in answer.headers) == (status == 503)


async def _holds(guarded: Gateway) -> bool:
    return len(guarded.registry) == 1


async def test_what_is_wrong(http: httpx.AsyncClient) -> None:
    """Another scope, or a scope twice, is a wrong request; too many parts are, too."""
    for query in ("prefix=&scope=all", "prefix=&scope=", "prefix=&scope=permitted&scope=permitted"):
        answer = await get(http, "ann", query)
        assert (answer.status_code, answer.json()["parameter"]) == (400, "scope")
    denied = await get(http, "eve", "prefix=/t/&prefix=/secret/&scope=permitted")
    assert (denied.status_code, denied.json()["code"]) == (403, "forbidden")
    assert denied.headers["www-authenticate"] == 'Bearer error="insufficient_scope"'


async def test_too_many_parts(http: httpx.AsyncClient, guarded: Gateway, policy: Path) -> None:
    """More parts than a request may have are refused, and not cut off."""
    items = json.dumps([f"/t/{number}/" for number in range(33)])
    await change(guarded, policy, f"roles:\n  ann: {{read: {items}}}\n")
    answer = await get(http, "ann", "prefix=&scope=permitted")

    assert (answer.status_code, answer.json()["code"]) == (400, "selection-too-wide")


async def test_the_audit_log_names_the_parts(http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    """What was read is what is logged, with the role that permits it."""
    with caplog.at_level("INFO", "gateway.audit"):
        await get(http, "ann", "prefix=/t/&scope=permitted")
    (line,) = [record for record in caplog.records if record.name == "gateway.audit"]

    assert (vars(line)["selection"], vars(line)["rule"]) == ("prefix=/t/a/ key=/t/b/1", "ann")
    assert vars(line)["decision"] == "permitted"


async def test_without_access_control(fake: FakeEtcd) -> None:
    """Without a policy, the parts are those inside the fence; a page is for everybody."""
    for key in KEYS:
        fake.put(key.encode(), b"v")
    gateway = Gateway(load({"etcd": fake.endpoint, "allow_prefixes": "/t/a/,/audit/", "linger": "0s"}))
    async with gateway.running():
        transport = httpx.ASGITransport(create_app(gateway=gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=HANG) as http:
            answer = await http.get("/v1/kv?prefix=&limit=2&scope=permitted")
            assert [item["key"] for item in answer.json()["kvs"]] == ["/audit/1", "/t/a/1"]
            assert "." not in answer.json()["next_page"]
            assert (await http.get("/v1/kv?prefix=")).status_code == 403
        await released(gateway, fake)


@pytest.mark.parametrize(
    "asked", ["bytes=0-5", "bytes=5-1", "bytes=-1,0-0", "items=1-2", "bytes=" + "0-0," * 500, "\xff"]
)
async def test_ranges_of_bytes_are_ignored(http: httpx.AsyncClient, asked: str) -> None:
    """A part of a body could be of another state than the rest of it: the answer is always whole (RFC 9110, 14.2)."""
    whole = await get(http, "ann", "prefix=/t/a/")
    answer = await get(http, "ann", "prefix=/t/a/", Range=asked, If_Range=whole.headers["etag"])

    assert (answer.status_code, answer.content) == (200, whole.content)
    assert "content-range" not in answer.headers
