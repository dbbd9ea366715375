"""Reading once: what is not an answer of the gateway is tried again, whatever its form. No socket."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from etcd_watch_client.cli.get import Reader
from etcd_watch_client.credentials import Bearer
from etcd_watch_client.selection import Selection

ITEM = {"key": "/a", "value": "1", "mod_revision": 3}
FOREIGN = [
    "{}", "[]", "null", '"login"', '{"error":"login_required"}', '{"kv":null,"kvs":null,"count":null}', "[" * 100_000,
    '{"kv":{"key":1,"mod_revision":1},"kvs":[{"key":"/a"}]}', '{"kv":[],"kvs":{"a":1}}', '{"kvs":[],"next_page":5}',
    "{", json.dumps({"kv": ITEM | {"value": "\ud800"}, "kvs": [ITEM | {"mod_revision": -1}]}),
]  # fmt: skip


def reader(*bodies: str | dict[str, Any]) -> Reader:
    """A reader of several gateways, so that none is waited for long. Together they give these answers."""
    answers = iter(bodies)

    def answer(_request: httpx.Request) -> httpx.Response:
        body = next(answers)
        content = body if isinstance(body, str) else json.dumps(body)
        return httpx.Response(200, content=content, headers={"content-type": "application/json"})

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return Reader(client, [f"http://{name}" for name in "abcdef"], Bearer(None), 60.0, 0)


@pytest.mark.parametrize("foreign", FOREIGN, ids=range(len(FOREIGN)))
async def test_a_foreign_answer_is_not_the_end(foreign: str) -> None:
    """A proxy's login page may be JSON with a 200. It was a traceback."""
    found = await reader(foreign, {"kv": ITEM}).key(b"/a")
    assert found is not None
    assert found.value == b"1"
    pages = reader(foreign, {"kvs": [ITEM], "next_page": "p"}, foreign, {"kvs": []})
    assert [one.key for one in await pages.all_of(Selection.of(["/a"]))] == [b"/a"]


async def test_it_is_named() -> None:
    """What the last gateway said is in the message, if the time is over."""
    waiting = reader("{}", {"kv": ITEM})
    await waiting.key(b"/a")
    assert waiting.why.endswith(": not an answer of the gateway")


@pytest.mark.parametrize("foreign", FOREIGN, ids=range(len(FOREIGN)))
async def test_a_hint_is_only_a_hint(foreign: str) -> None:
    """Whether there are keys under a prefix is asked once."""
    assert await reader(foreign).has_keys_under(b"/a/") is False
    assert await reader({"count": 2}).has_keys_under(b"/a/") is True
