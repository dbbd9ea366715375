"""Requests that schemathesis makes of the OpenAPI document, in this process: the short form of ``make matrix``."""

from __future__ import annotations

import asyncio
import contextlib
import json
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Message

from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.asgi_client import http_scope
from tests.support.fake_etcd import FakeEtcd
from tests.support.generated import Asked, Judge, Known, generate
from tests.support.waiting import HANG, eventually

REQUESTS, TOGETHER = 400, 20
TOKENS = ("reader", "tenant", "nothing", "operator")
POLICY = """
roles:
  reader: {read: ["/svc/", "key=/b"], keys_only: ["/audit/"]}
  tenant: {read: ["/t/{sub}/"]}
"""
KEYS = (b"/svc/a", b"/svc/b", b"/audit/1", b"/t/tenant/1", b"/t/tenants/1", b"/secret/1", b"/b", b"/svc/\xff\x00")
DENIED = (b"value-of-/secret", b"value-of-/t/tenants")
KNOWN = Known(
    {
        "prefix": (b"/svc/", b"/svc", b"", b"/audit/", b"/t/", b"/t/tenant/", b"/secret/", b"/svc/\xff", b"/none/"),
        "key": (b"/svc/a", b"/svc/none", b"/svc/\xff\x00", b"/b", b"/secret/1", b"/none"),
        "min_revision": (b"0", b"1", b"5"),
        "limit": (b"1", b"2"),
        "scope": (b"permitted",),
        "consistency": (b"feed", b"linearizable"),
        "keys_only": (b"1", b"0"),
        "count_only": (b"1",),
        "mode": (b"latest",),
        "page": (b"MDAwMDAwMDAtNS0vc3ZjL2FwaS0wAA", b"x.y", b"....", b"LS0t"),
        "last_event_id": (b"", b"00000000-5", b"00000000-0"),
        "If-None-Match": (b"*", b'W/"00000000-5-2"'),
    },
    (*TOKENS, "reader", "reader", "reader"),
)


@pytest.fixture(name="guarded")
async def _guarded(fake: FakeEtcd, tmp_path: Path) -> Gateway:
    for key in KEYS:
        fake.put(key, b"value-of-" + key)
    return Gateway(load({"etcd": fake.endpoint, "linger": "0s", "pin": "/svc/", **files_in(tmp_path)}))


def files_in(folder: Path) -> dict[str, str]:
    """The tokens and the policy, as settings."""
    entries = [f"  - {{name: {one}, sha256: {sha256(one.encode()).hexdigest()}, roles: [{one}]}}\n" for one in TOKENS]
    (folder / "tokens.yaml").write_text("tokens:\n" + "".join(entries))
    (folder / "policy.yaml").write_text(POLICY)
    return {"tokens_file": str(folder / "tokens.yaml"), "policy_file": str(folder / "policy.yaml")}


class Conversation:
    """One request to the app, until the answer is complete or, if it is a stream, ``synced``."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.head: Message = {}
        self.body = b""
        self.over = asyncio.Event()
        self._asked_for = False

    async def receive(self) -> Message:
        """The empty body of the request; later, that the client has gone."""
        if not self._asked_for:
            self._asked_for = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take a part of the answer."""
        if message["type"] == "http.response.start":
            self.head = message
            return
        self.body += message.get("body", b"")
        if b'"type":"synced"' in self.body or not message.get("more_body"):
            self.over.set()

    async def run(self, app: ASGIApp, judge: Judge) -> None:
        """Ask, and judge the answer."""
        asked = self.asked
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in asked.headers]
        scope = http_scope(asked.path, asked.query, method=asked.method, headers=[(b"host", b"x"), *headers])
        async with asyncio.timeout(HANG):
            await app(scope, self.receive, self.send)
        found = {name.decode(): value.decode("latin-1") for name, value in self.head["headers"]}
        judge.judge(asked, self.head["status"], found, self.body if asked.method != "HEAD" else b"")
        if self.head["status"] == 200 and asked.path == "/v1/watch" and asked.method == "GET":
            for event in events_in(self.body.decode()):
                judge.see(asked, event)


def events_in(text: str) -> list[dict[str, Any]]:
    """The complete events of a stream, in either format."""
    found = []
    for line in text.split("\n"):
        data = line.removeprefix("data: ")
        if data.startswith("{"):
            with contextlib.suppress(json.JSONDecodeError):  # the stream was left inside this event
                found.append(json.loads(data))
    return found


async def _ready(gateway: Gateway) -> bool:
    return all(pin.state == "held" for pin in gateway.registry.feeds.pin_statistics())


async def test_what_schemathesis_makes_of_the_document(guarded: Gateway) -> None:
    """Every answer is one that the document describes, and none has a denied value; streams included."""
    app = create_app(gateway=guarded)
    document = app.openapi()
    judge = Judge(document, denied=DENIED)
    # Before the gateway runs: for the time of this, nothing else would run.
    parts = [*generate(document, REQUESTS, known=KNOWN)]
    async with guarded.running():
        await eventually(lambda: _ready(guarded))
        requests = [*chain.from_iterable(parts)]
        for first in range(0, len(requests), TOGETHER):
            together = (Conversation(asked).run(app, judge) for asked in requests[first : first + TOGETHER])
            await asyncio.gather(*together)

    assert judge.faults == [], judge.report()
    assert {"reset", "put", "synced"} <= set(judge.events)
    assert {200, 400, 401, 403, 405} <= {status for _path, status in judge.statuses}, judge.report()
