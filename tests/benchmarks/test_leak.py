"""The outage: reproduced and solved, as ``make leak`` shows it."""

from __future__ import annotations

import asyncio
import sys

import pytest


@pytest.mark.etcd
async def test_naive_leaks_and_the_gateway_does_not() -> None:
    """A watch per request adds one watch at etcd per request; the gateway has one watch, and none after its linger."""
    command = [sys.executable, "-m", "benchmarks.leak", "--requests=50", "--gateway-requests=500"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()

    assert process.returncode == 0, output.decode()
