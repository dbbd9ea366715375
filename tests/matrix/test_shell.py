"""curl, wget and httpie as docs/clients.md shows them."""

from __future__ import annotations

import asyncio

import pytest

from tests.clients.gateways import Gateways
from tests.matrix.programs import TOKEN, Running, needs, shell_program
from tests.support.etcd import EtcdClient
from tests.support.waiting import HANG

pytestmark = [pytest.mark.etcd, pytest.mark.one_etcd]


@pytest.mark.parametrize("program", [pytest.param("curl", marks=pytest.mark.short), "wget", "http"])
async def test_events_come_at_once(program: str, kv: EtcdClient, gateways: Gateways) -> None:
    """Into a pipe, too: each change when it happens, and a large one whole."""
    needs(program)
    await kv.put("/svc/a", "1")
    async with Running("sh", "-c", shell_program(f"{program} "), url=gateways.urls[0]) as running:
        await running.shows('"synced"')
        await kv.put("/svc/b", "2")
        await running.shows('"/svc/b"')
        await kv.put("/svc/large", "x" * 1_400_000)
        assert len(await running.shows('"/svc/large"')) > 1_400_000


@pytest.mark.short
async def test_the_loop_loses_nothing(kv: EtcdClient, gateways: Gateways) -> None:
    """The gateway is killed, and comes back: each change once, and one state."""
    needs("curl")
    bash = needs("bash")
    await kv.put("/svc/a", "1")
    async with Running(bash, "-c", shell_program("url="), url=gateways.urls[0]) as running:
        await running.shows('"synced"')
        await gateways.kill(0)
        await kv.put("/svc/b", "2")
        await gateways.start(0)
        await running.shows('"/svc/b"')
        await running.shows('"synced"')
    assert sum('"reset"' in line for line in running.lines) == 1


async def test_httpie_formats_nothing_without_its_option(kv: EtcdClient, gateways: Gateways) -> None:
    """As on a terminal: the stream is there, and its first byte is not, until the gateway ends it."""
    needs("http")
    await kv.put("/svc/a", "1")
    words = shell_program("http ").replace("--stream", "--pretty=format")
    follower = shell_program("curl ")
    async with (
        Running("sh", "-c", words, url=gateways.urls[0]) as running,
        Running("sh", "-c", follower, url=gateways.urls[0]) as other,
    ):
        await other.shows('"synced"')
        await kv.put("/svc/b", "2")
        await other.shows('"/svc/b"')
        assert running.process.stdout is not None
        first = asyncio.create_task(running.process.stdout.read(1))
        done, _ = await asyncio.wait([first], timeout=2)
        assert not done
        await gateways.running[0].stop()
        async with asyncio.timeout(HANG):
            assert await first


async def test_wget_skips_events_when_it_retries(kv: EtcdClient, gateways: Gateways) -> None:
    """The reason for --tries=1: of the second stream it drops as many bytes as it has already written."""
    needs("wget")
    await kv.put("/svc/a", "1")
    words = shell_program("wget ").replace("--tries=1", "--tries=9 --retry-connrefused --waitretry=1")
    async with Running("sh", "-c", words, url=gateways.urls[0]) as running:
        await running.shows('"synced"')
        await gateways.kill(0)
        await gateways.start(0)
        for number in range(40):
            await kv.put("/svc/b", str(number))
        await kv.put("/svc/last", "x" * 10_000)
        await running.shows('"/svc/last"')
    # Without skipping there would be two states, or every change of /svc/b.
    assert sum('"reset"' in line for line in running.lines) == 1
    assert sum('"/svc/b"' in line for line in running.lines) < 40


@pytest.mark.short
def test_the_token_is_not_on_the_page() -> None:
    """The programs take it from the environment."""
    assert TOKEN not in shell_program("curl ")
