"""How the gateway runs uvicorn: what it reports when a server cannot work."""

from __future__ import annotations

import asyncio

import pytest

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
