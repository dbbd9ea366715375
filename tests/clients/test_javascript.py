"""The JavaScript client's own tests in Node, with a real gateway and a real etcd."""

from __future__ import annotations

import asyncio
import os
import shutil
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest

from tests.support.embedded import EmbeddedEtcd
from tests.support.gateway import GatewayProcess
from tests.support.waiting import HANG

PACKAGE = Path(__file__).parents[2] / "clients" / "js"


@pytest.mark.etcd
@pytest.mark.one_etcd
async def test_its_own_tests(server: GatewayProcess, etcd: EmbeddedEtcd) -> None:
    """``node --test``: the mirror, the shared mirror, and both with a real gateway."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("NOT RUN: node is not installed")
    addresses = {"ETCD_WATCH_TEST_GATEWAY": server.base, "ETCD_WATCH_TEST_ETCD": etcd.endpoint}
    files = sorted((PACKAGE / "test").glob("*.test.js"))
    process = await asyncio.create_subprocess_exec(
        node, "--test", *files, stdout=PIPE, stderr=STDOUT, env={**os.environ, **addresses}
    )
    async with asyncio.timeout(HANG):
        out, _ = await process.communicate()
    said = out.decode()
    assert process.returncode == 0, said
    assert "\n# skipped 0\n" in said
