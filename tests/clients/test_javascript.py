"""The JavaScript client's own tests in Node, with a real gateway and a real etcd."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from pathlib import Path

import pytest

from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess
from tests.support.waiting import HANG

PACKAGE = Path(__file__).parents[2] / "clients" / "js"


@pytest.mark.etcd
@pytest.mark.one_etcd
async def test_its_own_tests(server: GatewayProcess, etcd: EmbeddedEtcd) -> None:
    """``npm test``: the mirror, the shared mirror, and both with a real gateway."""
    if shutil.which("node") is None:
        pytest.skip("NOT RUN: node is not installed")
    addresses = {"ETCD_WATCH_TEST_GATEWAY": server.base, "ETCD_WATCH_TEST_ETCD": etcd.endpoint}
    # The command of the package: `node --test test/` would also run the helpers there, and one of them never ends.
    command = json.loads((PACKAGE / "package.json").read_text(encoding="utf-8"))["scripts"]["test"]
    process = await asyncio.create_subprocess_shell(
        command, stdout=PIPE, stderr=STDOUT, cwd=PACKAGE, env={**os.environ, **addresses}
    )
    async with asyncio.timeout(HANG):
        out, _ = await process.communicate()
    said = out.decode()
    assert process.returncode == 0, said
    assert "shared: exact at each revision" in said  # with the real gateway


@pytest.mark.etcd
@pytest.mark.one_etcd
async def test_the_readme_starts_with_a_program_that_runs(server: GatewayProcess, kv: EtcdClient) -> None:
    """It prints the value, then each change."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("NOT RUN: node is not installed")
    program = re.findall(r"```js\n(.*?)```", (PACKAGE / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    await kv.put("/svc/api/a", "hello")
    process = await asyncio.create_subprocess_exec(
        node, "--input-type=module", "-e", program.replace("http://127.0.0.1:8080", server.base),
        stdin=DEVNULL, stdout=PIPE, stderr=PIPE, cwd=PACKAGE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(HANG):
        assert await process.stdout.readline() == b"hello\n"
        revision = await kv.put("/svc/api/a", "good day")
        assert (await process.stdout.readline()).decode() == f"{revision} put /svc/api/a hello good day\n"
        process.kill()
        _, err = await process.communicate()
    assert err == b""
