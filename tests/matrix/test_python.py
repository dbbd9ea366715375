"""Python clients that others wrote, with the lines that docs/clients.md adds, and what they do without these lines."""

from __future__ import annotations

import json
import signal

import pytest

from tests.clients.gateways import Gateways
from tests.matrix.programs import LARGE, PAGE, TOKEN, Running, loses_nothing, needs, python_program
from tests.support.etcd import EtcdClient
from tests.support.waiting import eventually

pytestmark = [pytest.mark.etcd, pytest.mark.one_etcd]

CLIENTS = ("httpx-sse", "sseclient-py", "aiohttp-sse-client2", "requests, NDJSON")


@pytest.mark.parametrize("client", CLIENTS)
async def test_it_loses_nothing(client: str, kv: EtcdClient, gateways: Gateways) -> None:
    """State, changes at once, a large value, odd line ends, and a gateway that is killed and comes back."""
    python = needs("python")
    await kv.put("/svc/a", "1")
    async with Running(python, "-u", "-c", python_program(client), url=gateways.urls[0]) as program:
        await loses_nothing(program, kv, gateways)
        await program.shows("synced")
    assert program.lines.count("reset ") == 1
    assert program.lines.count("put /svc/large") == 1


@pytest.mark.parametrize("client", CLIENTS)
async def test_it_ends_when_it_may_not_read(client: str, gateways: Gateways) -> None:
    """With the gateway's own words, instead of a retry for ever."""
    python = needs("python")
    text = python_program(client).replace("os.environ['TOKEN']", "'wrong-token-0123456789'")
    async with Running(python, "-u", "-c", text, url=gateways.urls[0]) as program:
        status, said = await program.ends()
    assert status == 1
    assert "unauthorized" in said


# What a client does without a line of the page: each program ends with what it has seen.
WITHOUT = {
    "httpx's own timeout is shorter than a heartbeat": (
        "import httpx; print(httpx.Client().timeout.read)",
        "5.0",
    ),
    "aiohttp's own timeout ends a stream after five minutes": (
        "from aiohttp.client import DEFAULT_TIMEOUT; print(DEFAULT_TIMEOUT.total)",
        "300",
    ),
    "requests has no timeout at all": (
        "import inspect, requests; print(inspect.signature(requests.Session.request).parameters['timeout'].default)",
        "None",
    ),
    "aiohttp refuses a long line": (
        """
import asyncio
from aiohttp_sse_client2 import client
async def main():
    try:
        async with client.EventSource(URL, headers=dict(HEADERS)) as source:
            async for event in source:
                if event.type == "synced":
                    break
    except Exception as error:
        print(type(error).__name__)
asyncio.run(main())
""",
        "LineTooLong",
    ),
    "aiohttp-sse-client2 does not come back after a cut": (
        """
import asyncio
from aiohttp_sse_client2 import client
async def main():
    try:
        async with client.EventSource(URL.replace("svc/", "svc/a"), headers=dict(HEADERS)) as source:
            async for event in source:
                if event.type == "synced":
                    print("synced", flush=True)
    except Exception as error:
        print(type(error).__name__)
asyncio.run(main())
""",
        "ClientPayloadError",
    ),
}


@pytest.mark.parametrize("what", WITHOUT)
async def test_what_it_does_without(what: str, kv: EtcdClient, gateways: Gateways) -> None:
    """Each line that the page adds is needed: with a release that needs it no more, this fails."""
    python = needs("python")
    body, seen = WITHOUT[what]
    await kv.put("/svc/a", "a\u2028b")
    await kv.put("/svc/large", "x" * LARGE)
    url = f"{gateways.urls[0]}/v1/watch?prefix=/svc/"
    begin = f"URL, HEADERS = {url!r}, {json.dumps({'Authorization': f'Bearer {TOKEN}'})}\n"
    async with Running(python, "-u", "-c", begin + body, url="") as program:
        if "after a cut" in what:
            await program.shows("synced")
            await gateways.kill(0)
        await program.shows(seen)


async def test_the_versions_are_those_that_were_run() -> None:
    """The table names the releases of requirements-matrix.txt."""
    python = needs("python")
    names = {"httpx-sse": "0.4", "sseclient-py": "1.9", "aiohttp-sse-client2": "0.3", "requests": "2", "httpie": "3.2"}
    listing = "from importlib.metadata import version; import sys; print([version(one) for one in sys.argv[1:]])"
    async with Running(python, "-c", listing, *names, url="") as program:
        found = await program.shows("[")
    for (name, shown), version in zip(names.items(), json.loads(found.replace("'", '"')), strict=True):
        assert version.startswith(shown), name
        assert f"{name}` {shown}" in PAGE or f"{name} {shown}" in PAGE


async def test_a_dead_gateway_is_noticed(kv: EtcdClient, gateways: Gateways) -> None:
    """A process that is stopped sends nothing, and its connection stays open: the silence alone tells."""
    python = needs("python")
    await kv.put("/svc/a", "1")
    text = python_program("httpx-sse").replace("read=45", "read=3")
    async with Running(python, "-u", "-c", text, url=gateways.urls[0]) as program:
        await program.shows("synced")
        gateways.running[0].process.send_signal(signal.SIGSTOP)
        await program.shows("disconnected")
        gateways.running[0].process.send_signal(signal.SIGCONT)
        await program.shows("synced")

    async def resumed() -> bool:
        return program.lines.count("reset ") == 1

    await eventually(resumed)
