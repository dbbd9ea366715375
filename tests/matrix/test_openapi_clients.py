"""Clients that others' generators make from the OpenAPI document compile, and read a list.

The short form: ``tests/api/test_openapi.py`` reads the document as one of the generators does.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.api.test_generated_requests import KEYS, files_in
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, etcd_client
from tests.support.gateway import GatewayProcess, gateway

pytestmark = pytest.mark.etcd

TYPESCRIPT = Path(__file__).parent / "typescript"
TOKEN = "reader"
# What each client prints: the keys and values of a list, and the code of a refusal.
PRINTED = ["/svc/a=value-of-/svc/a", "/svc/b=value-of-/svc/b", "forbidden"]
PYTHON_CLIENT = """
import sys
from made.client import AuthenticatedClient
from made.api.keys import read_keys
from made.models import ForbiddenProblem, ListAnswer

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])
answer = read_keys.sync(client=client, prefix=["/svc/"], keys_only=False)
assert isinstance(answer, ListAnswer)
for item in answer.kvs:
    print(f"{item.key}={item.value}")
one = read_keys.sync(client=client, key=["/svc/a"])  # with every default that the document has
assert one.kv.mod_revision > 0
denied = read_keys.sync(client=client, prefix=["/secret/"])
assert isinstance(denied, ForbiddenProblem)
print(denied.code)
"""


@pytest.fixture(name="server")
async def _server(tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    async with EmbeddedEtcd(args=ALONE) as etcd, etcd_client(etcd.endpoint) as client:
        for key in KEYS:
            if key.isascii():
                await client.put(key, b"value-of-" + key)
        settings = {f"GATEWAY_{name.upper()}": value for name, value in files_in(tmp_path).items()}
        async with gateway(etcd.endpoint, settings=settings) as running:
            yield running


@pytest.fixture(name="document")
async def _document(server: GatewayProcess, tmp_path: Path) -> Path:
    """The document as a file."""
    async with httpx.AsyncClient(base_url=server.base) as http:
        document = (await http.get("/openapi.json")).json()
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(document))
    return path


async def run(*command: str | Path, folder: Path) -> str:
    """Run a command that must succeed. Return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    return said


async def test_openapi_python_client(server: GatewayProcess, document: Path, tmp_path: Path) -> None:
    """The generator warns of nothing; what it makes has types that mypy accepts, and reads a list."""
    (tmp_path / "config.yaml").write_text("post_hooks: []")
    made = await run(
        *(sys.executable, "-m", "openapi_python_client", "generate", "--path", document, "--meta", "none"),
        *("--output-path", tmp_path / "made", "--config", tmp_path / "config.yaml", "--fail-on-warning"),
        folder=tmp_path,
    )
    assert "WARNING" not in made
    await run(sys.executable, "-m", "compileall", "-q", "made", folder=tmp_path)
    (tmp_path / "read.py").write_text(PYTHON_CLIENT)
    await run(sys.executable, "-m", "mypy", "--config-file", os.devnull, "-p", "made", folder=tmp_path)
    printed = await run(sys.executable, "read.py", server.base, TOKEN, folder=tmp_path)

    assert printed.split() == PRINTED


async def test_openapi_typescript(server: GatewayProcess, document: Path, tmp_path: Path) -> None:
    """The types compile, tell the events of a stream apart, and a client with them reads a list."""
    if shutil.which("npm") is None:
        pytest.skip("NOT RUN: the TypeScript client: npm is not installed")
    folder = shutil.copytree(TYPESCRIPT, tmp_path / "typescript")
    await run("npm", "ci", "--no-audit", "--no-fund", folder=folder)
    await run("npx", "openapi-typescript", document, "--output", "schema.d.ts", folder=folder)
    await run("npx", "tsc", folder=folder)
    printed = await run("node", "list.js", server.base, TOKEN, folder=folder)

    assert printed.split() == PRINTED
