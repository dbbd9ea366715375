"""Keys and values are bytes: any bytes, in any range, in any kind of request."""

from __future__ import annotations

import base64
import itertools
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote_from_bytes

import httpx
import pytest

from tests.cases.clients import Client, exact, joined
from tests.consistency.judge import change_of
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess

pytestmark = pytest.mark.etcd

# A text key that is the base64 of another key.
TWIN = base64.b64encode(b"/b/\xff\x00")
KEYS = [
    b"\x00",
    b"\x00\x00",
    b"\n",
    b"\r\ndata: x\n\nevent: delete\n",
    b"/b/",
    b"/b/line\nline",
    b"/b/\r",
    b"/b/\x00",
    b"/b/\x00\x00",
    b"/b/\xe2\x80\xa8\xc2\x85\xef\xbb\xbf",  # U+2028, U+0085 and a byte order mark are text
    b"/b/\xed\xa0\x80",  # a surrogate is not text
    b"/b/\xff",
    b"/b/\xff\x00",
    b"/b/\xff\xff",
    b"/b/\xff\xffz",
    b"/b0",  # the range_end of /b/
    b"/c",
    TWIN,
    b"\xff",
    b"\xff\x00",
    b"\xff\xff",
    b"\xff\xff\xff\x01",
]
PREFIXES = [b"", b"\x00", b"\n", b"/b/", b"/b/\xff", b"/b/\xff\xff", TWIN, b"\xff", b"\xff\xff"]
VALUES = [b"", b"\x00", b"text\r\n\ndata: \xe2\x80\xa9", b"\xff\xfe", TWIN]


@pytest.mark.one_etcd
async def test_every_key_in_every_range(server: GatewayProcess, kv: EtcdClient) -> None:
    """A naive gateway decodes with replacement, splits lines at a key's newline, and ends a range of ff wrongly."""
    values = itertools.cycle(VALUES)
    for key in KEYS:
        await kv.put(key, next(values))
    async with AsyncExitStack() as stack, httpx.AsyncClient(base_url=server.base, trust_env=False) as http:
        clients: list[tuple[bytes, Client]] = []
        for prefix, form, encoding in itertools.product(PREFIXES, ("sse", "ndjson"), ("auto", "base64")):
            query = f"prefix={quote_from_bytes(prefix, safe='')}&format={form}&encoding={encoding}"
            (client,) = await stack.enter_async_context(joined(server.base, query))
            clients.append((prefix, client))
        for prefix, client in clients:
            await exact([client], kv, prefix)
        # First all keys at once, with deletes among them; then each key by itself.
        await kv.transact({key: None if n % 3 == 0 else next(values) for n, key in enumerate(KEYS)})
        for key in KEYS[::2]:
            await kv.put(key, next(values))
        await kv.delete(TWIN)
        for prefix, client in clients:
            await exact([client], kv, prefix)
            assert client.resets == ["initial"]
        for prefix, encoding in itertools.product(PREFIXES, ("auto", "base64")):
            query = f"prefix={quote_from_bytes(prefix, safe='')}&encoding={encoding}"
            body = (await http.get(f"/v1/kv?{query}")).json()
            state = (await kv.state(b""))[1]
            wanted = [item for key, item in sorted(state.items()) if key.startswith(prefix)]
            assert [fields_of(item) for item in body["kvs"]] == [
                (item.key, item.value, item.create_revision, item.mod_revision, item.version) for item in wanted
            ]
            for item in wanted:
                single = (
                    await http.get(f"/v1/kv?key={quote_from_bytes(item.key, safe='')}&encoding={encoding}")
                ).json()
                assert fields_of(single["kv"])[:2] == (item.key, item.value)


def fields_of(item: dict[str, Any]) -> tuple[bytes, bytes | None, int, int, int]:
    """The fields of an item of a REST answer."""
    change = change_of({"type": "put", **item})
    return change.key, change.value, change.create_revision, change.mod_revision, change.version


@pytest.mark.one_etcd
async def test_a_text_key_beside_the_key_whose_base64_it_is(server: GatewayProcess, kv: EtcdClient) -> None:
    """A naive mirror that stores only the text takes both keys for one: the delete of one removes the other."""
    binary = b"/b/\xff\x00"
    await kv.transact({binary: "binary", TWIN: "text"})
    async with joined(server.base, "prefix=") as (client,):
        assert set(client.mirror.state) == {(TWIN.decode(), None), (TWIN.decode(), "base64")}
        await kv.delete(binary)
        await exact([client], kv, b"")
        assert set(client.mirror.state) == {(TWIN.decode(), None)}
        await kv.transact({binary: "again", TWIN: None})
        await exact([client], kv, b"")

        assert set(client.mirror.state) == {(TWIN.decode(), "base64")}
