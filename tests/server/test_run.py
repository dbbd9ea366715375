"""How the gateway runs uvicorn: what it reports when a server cannot work."""

from __future__ import annotations

import asyncio

import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.server.run import with_mapped
from tests.support.gateway import start
from tests.support.waiting import HANG

NOWHERE = "http://127.0.0.1:1"


@pytest.mark.parametrize("server", ["server", "server-second"])
async def test_a_server_that_dies_before_it_listens(server: str) -> None:
    """If the first or the second server dies before it listens, the process reports the reason and ends with a status
    that causes a restart.
    """
    running = await start("--port=0", "--admin-port=0", f"--etcd={NOWHERE}", program=("tests.support.dying", server))
    try:
        async with asyncio.timeout(HANG):
            status = await running.process.wait()
    finally:
        await running.stop()

    assert status == 1
    (failed,) = [line for line in running.lines if line["message"] == "task failed"]
    assert (failed["task"], "OSError: a defect" in failed["exception"]) == ("server", True)
    assert [line["message"] for line in running.lines][-1].startswith("ended: ")
    assert "listening" not in [line["message"] for line in running.lines]
    assert running.other == []


async def test_a_signal_before_the_servers_listen() -> None:
    """The servers are ended, too. They were left to the event loop, which waited for ever for one that listened."""
    running = await start("--port=0", "--admin-port=0", f"--etcd={NOWHERE}", program=("tests.support.interrupted",))
    try:
        async with asyncio.timeout(HANG):
            status = await running.process.wait()
    finally:
        await running.stop()

    assert status == 0
    assert [line["message"] for line in running.lines][-1] == "stopped"
    assert running.other == []


@pytest.mark.parametrize(
    ("trusted", "host", "expected"),
    [
        (("10.0.0.0/8",), "10.1.2.3", True),
        (("10.0.0.0/8",), "::ffff:10.1.2.3", True),
        (("10.0.0.0/8",), "::ffff:a01:203", True),
        (("10.0.0.0/8",), "::ffff:11.1.2.3", False),
        (("10.0.0.7",), "::ffff:10.0.0.7", True),
        (("10.0.0.7",), "::ffff:10.0.0.8", False),
        (("0.0.0.0/0",), "2001:db8::1", False),
        (("2001:db8::/32",), "2001:db8::1", True),
        (("*",), "2001:db8::1", True),
        ((), "::ffff:127.0.0.1", False),
    ],
)
def test_proxies_are_trusted_by_both_forms(trusted: tuple[str, ...], host: str, *, expected: bool) -> None:
    """An IPv4 address is the same address in an IPv6 one, as it is for the gateway's own peers."""

    async def app(*_arguments: object) -> None:
        """Answer nothing."""

    assert (host in ProxyHeadersMiddleware(app, with_mapped(trusted)).trusted_hosts) is expected
