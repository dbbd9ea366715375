"""No byte of a denied key reaches anybody, while streams of several identities share feeds, channels and bytes.

Random walks: clients join with random selections, leave, and resume with their cursors; they read lists, pages and
counts; keys and the policy change. Each event that a client has received is compared with the policy of the moment at
which it was put, or at which the client joined, whichever is later. Each list is compared with the policy of its
moment, and with the keys that there are. ``make matrix`` walks until a million events are checked.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from app.access.policy import Grants
from app.core.keys import KeyRange
from app.core.query import parse_query, parse_ranges
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.asgi_client import Client, swallow
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import HANG, eventually

STEPS = 40
PARAMETERS = ("key", "prefix", "scope", "limit", "keys_only", "count_only", "consistency")
NAMES = ("ann", "ben", "cyd")
ITEMS = ("", "/t/", "/t/a", "/t/a/", "/t/ab/", "/t/b/", "key=/t/a/1", "key=/t/ab/1", "key=/t/b/2")
KEYS = tuple(f"/t/{tenant}/{number}" for tenant in ("a", "ab", "b", "c") for number in (1, 2))


def query_of(item: str) -> str:
    """An item of the policy as it stands in a query."""
    return item if item.startswith("key=") else f"prefix={item}"


def range_of(item: str) -> KeyRange:
    """The range of an item."""
    return parse_ranges(parse_query(query_of(item).encode(), {"key", "prefix"}))[0]


@dataclass
class Visit:
    """A stream of one identity."""

    name: str
    query: str
    client: Client
    policy: int  # the number of the policy by which it joined
    checked: int = 0  # lines

    def events(self) -> list[dict[str, Any]]:
        """The events that have arrived since the last call."""
        lines = self.client.text.split("\n")[:-1]
        new, self.checked = lines[self.checked :], len(lines)
        return [json.loads(line) for line in new if line]


class Walk:
    """One random walk.

    *joins*, *puts*, *reads*: the most of them in one step.
    """

    def __init__(
        self,
        seed: int,
        gateway: Gateway,
        fake: FakeEtcd,
        policy: Path,
        *,
        joins: int = 3,
        puts: int = 20,
        reads: int = 3,
    ) -> None:
        self.random = random.Random(seed)  # a walk that can be repeated
        self.joins, self.puts, self.reads = joins, puts, reads
        self.gateway = gateway
        self.fake = fake
        self.policy = policy
        self.app: ASGIApp = create_app(gateway=gateway)
        self.grants: list[dict[str, Grants]] = []  # by the number of the policy
        self.policy_at: list[tuple[int, int]] = []  # revisions, and the policies from there on
        self.visits: list[Visit] = []
        self.cursors: list[tuple[str, str, str]] = []
        self.pages: list[tuple[str, str]] = []  # queries, and the tokens of their next pages
        self.tags: list[str] = []
        self.events = self.values = self.refused = self.closed = self.listed = self.unchanged = 0

    async def change_policy(self) -> None:
        """Give every identity other grants, and wait until all streams are checked."""
        roles, grants = [], {}
        for name in NAMES:
            read, keys = self.items(3), self.items(2)
            roles.append(f"  {name}: {{read: {json.dumps(read)}, keys_only: {json.dumps(keys)}}}\n")
            grants[name] = Grants(tuple(map(range_of, read)), tuple(map(range_of, keys)))
        self.policy.write_text("roles:\n" + "".join(roles) + f"# {len(self.grants)}\n")
        await self.gateway.access.reload()
        # The gateway may have seen the change just before by itself.
        assert self.gateway.access.contents["policy_file"] == self.policy.read_bytes(), self.gateway.access.troubles()

        async def checked() -> bool:
            return not self.gateway.streams.recheck.running

        await eventually(checked)
        self.grants.append(grants)
        self.policy_at.append((self.fake.put(b"/other", b""), len(self.grants) - 1))

    def items(self, most: int) -> list[str]:
        """Items of a role. The policy refuses an empty prefix among others."""
        found = self.random.sample(ITEMS, self.random.randint(0, most))
        return [""] if "" in found else found

    def put(self) -> None:
        """Change a key. Its value names the key."""
        key = self.random.choice(KEYS)
        self.fake.put(key.encode(), f"value-of-{key}".encode())

    def join(self) -> None:
        """Open a stream: a new one, or one that resumes another's cursor, perhaps another identity's."""
        draw = self.random
        name = draw.choice(NAMES)
        ranges = "&".join(query_of(item) for item in draw.sample(ITEMS, draw.choice((1, 1, 1, 2))))
        more = draw.choice(("", "", "&keys_only=1", "&scope=permitted", "&scope=permitted&keys_only=1"))
        more += draw.choice(("", "", "&mode=latest&interval=50ms"))
        query, cursor = ranges + more, ""
        if self.cursors and draw.random() < 0.5:
            _owner, query, cursor = draw.choice(self.cursors)
        headers = [(b"authorization", f"Bearer {name}".encode()), (b"accept", b"application/x-ndjson")]
        if cursor:
            headers.append((b"last-event-id", cursor.encode()))
        client = Client(self.gateway, swallow, query.encode(), app=self.app, headers=headers)
        self.visits.append(Visit(name, query, client, len(self.grants) - 1))

    async def read(self, http: httpx.AsyncClient) -> None:
        """Read a list: a new one, or a page of one that perhaps another identity has begun."""
        draw = self.random
        name = draw.choice(NAMES)
        query = "&".join(query_of(item) for item in draw.sample(ITEMS, draw.choice((1, 1, 2))))
        query += draw.choice(("", "&scope=permitted", "&scope=permitted&limit=2"))
        query += draw.choice(("", "", "&keys_only=1", "&count_only=1")) + draw.choice(("", "&consistency=feed"))
        headers = {"Authorization": f"Bearer {name}"}
        if self.pages and draw.random() < 0.3:
            query, token = draw.choice(self.pages)
            query += f"&page={token}"
        elif self.tags and draw.random() < 0.3:
            headers["If-None-Match"] = ", ".join(draw.sample(self.tags, min(3, len(self.tags))))
        answer = await http.get(f"/v1/kv?{query}", headers=headers)
        self.compare(name, query, answer)

    def compare(self, name: str, query: str, answer: httpx.Response) -> None:
        """Compare a list with what the identity may read now, and with the keys that there are."""
        assert answer.status_code in (200, 304, 400, 403, 404, 410, 503), answer.text
        asked = parse_ranges(parse_query(query.partition("&page=")[0].encode(), {*PARAMETERS}))
        grants, bare = self.grants[-1][name], "keys_only" in query or "count_only" in query
        left = grants.permitted(asked, keys_only=bare)
        if "scope=permitted" not in query and not all(grants.permit(one, keys_only=bare) for one in asked):
            left = ()
        assert bool(left) or answer.status_code in (400, 403), (name, query, answer.text)
        if answer.status_code == 304:
            self.unchanged += 1
        if answer.status_code != 200:
            assert "value-of" not in answer.text
            return
        body = answer.json()
        for item in [body["kv"]] if "kv" in body else body["kvs"]:
            key = KeyRange("key", item["key"].encode())
            assert any(one.covers(key) for one in left), (name, query, item)
            assert "value" not in item or not bare
            self.events += 1
            self.values += "value" in item
        if "count" in body:
            there = [key for key in (*KEYS, "/other", "/svc/a") if self.fake.store.get(key.encode(), body["revision"])]
            inside = [key for key in there if any(one.contains(key.encode()) for one in left)]
            assert body["count"] == len(inside), (name, query, body)
            self.listed += 1
        if "next_page" in body:
            self.pages.append((query.partition("&page=")[0], body["next_page"]))
        if "etag" in answer.headers:
            self.tags.append(answer.headers["etag"])

    def check(self, visit: Visit) -> None:
        """Compare all that a client has received with what it may read."""
        if visit.client.sent and visit.client.status != 200:
            self.refused += 1
            assert b"value-of" not in b"".join(message.get("body", b"") for message in visit.client.sent)
            return
        for event in visit.events():
            if cursor := event.get("cursor"):
                self.cursors.append((visit.name, visit.query, cursor))
            if event["type"] == "close":
                self.closed += 1
            if "key" not in event:
                assert "value-of" not in json.dumps(event)
                continue
            then = max((number for since, number in self.policy_at if since <= event["mod_revision"]), default=0)
            grants = self.grants[max(then, visit.policy)][visit.name]
            key = KeyRange("key", event["key"].encode())
            with_value = "value" in event
            assert grants.permit(key, keys_only=not with_value and "keys_only" in visit.query), (visit, event)
            self.events += 1
            self.values += with_value

    async def leave(self, visit: Visit) -> None:
        """End a stream, and look at all that it has received."""
        await visit.client.leave()
        self.check(visit)
        self.visits.remove(visit)

    async def run(self, steps: int) -> None:
        """Walk."""
        await self.change_policy()
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=HANG) as http:
            await self.walk(http, steps)

    async def walk(self, http: httpx.AsyncClient, steps: int) -> None:
        """Take the steps. In the end everybody leaves."""
        for _ in range(steps):
            for _ in range(self.random.randint(0, self.joins)):
                self.join()
            for _ in range(self.random.randint(0, self.puts)):
                self.put()
            for _ in range(self.random.randint(0, self.reads)):
                await self.read(http)
            await self.settle()
            if self.random.random() < 0.3:
                await self.change_policy()
            for visit in list(self.visits):
                if visit.client.task.done() or self.random.random() < 0.15:
                    await self.leave(visit)
            del self.cursors[:-50], self.pages[:-20], self.tags[:-20]
        for visit in list(self.visits):
            await self.leave(visit)

    async def settle(self) -> None:
        """Wait until every stream has joined or ended, and every feed has seen the last change."""
        revision = self.fake.put(b"/other", b"")

        async def done() -> bool:
            feeds = [feed for feed in self.gateway.registry.feeds if feed.range.contains(b"/other")]
            joined = all(visit.client.sent for visit in self.visits)
            return joined and all(feed.history.log.tip >= revision for feed in feeds)

        await eventually(done)


@pytest.fixture(name="policy")
def _policy(tmp_path: Path) -> Path:
    entries = [
        f"  - {{name: {name}, sha256: {sha256(name.encode()).hexdigest()}, roles: [{name}]}}\n" for name in NAMES
    ]
    (tmp_path / "tokens.yaml").write_text("tokens:\n" + "".join(entries))
    (tmp_path / "policy.yaml").write_text("roles: {}")
    return tmp_path / "policy.yaml"


@pytest.fixture(name="guarded", params=["", "/t/"], ids=["feeds", "pin"])
async def _guarded(fake: FakeEtcd, policy: Path, request: pytest.FixtureRequest) -> AsyncIterator[Gateway]:
    """A gateway whose ranges have feeds of their own, and one in which all are served from one pin."""
    files = {"tokens_file": policy.parent / "tokens.yaml", "policy_file": policy}
    # On a slow machine, etcd may be silent for longer than it is in production.
    patient = {"sync_timeout": HANG, "stale_after": HANG}
    settings = {"etcd": fake.endpoint, "linger": "1s", "log_batches": 20, "pin": request.param, **files, **patient}
    gateway = Gateway(load(settings))
    async with gateway.running():
        yield gateway


@pytest.mark.parametrize("seed", range(3))
async def test_no_denied_byte(seed: int, guarded: Gateway, fake: FakeEtcd, policy: Path) -> None:
    """See the module. The walk must have seen events with and without values, refusals, and revocations."""
    walk = Walk(seed, guarded, fake, policy)
    await walk.run(STEPS)

    assert min(walk.events - walk.values, walk.values, walk.refused, walk.closed, walk.listed) > 0
