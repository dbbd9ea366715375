"""100,000 requests that schemathesis makes of the OpenAPI document, to a real gateway in front of a real etcd.

The short form: tests/api/test_generated_requests.py. ``REQUESTS=1000`` in the environment makes fewer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.api.test_generated_requests import DENIED, KEYS, KNOWN, events_in, files_in
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, etcd_client
from tests.support.gateway import GatewayProcess, gateway
from tests.support.generated import Asked, Judge, generate
from tests.support.metrics import etcd_metric
from tests.support.openapi import Document
from tests.support.versions import Candidate, real_etcds
from tests.support.waiting import HANG, eventually

# Of each of the two gateways: one without access control, one with tokens and a policy.
REQUESTS = int(os.environ.get("REQUESTS", "100000")) // 2
# The requests of schemathesis' own runner for each path; it makes systematic ones beside the random ones.
EXAMPLES = max(20, REQUESTS // 100)
CLIENTS = 16
# Seconds for which a stream is followed that does not come to ``synced``.
FOLLOWED = 0.3
FOLDER = Path(__file__).parent
SETTINGS = {"GATEWAY_LINGER": "0.2s", "GATEWAY_MAX_FEEDS": "5000"}

pytestmark = [pytest.mark.etcd, pytest.mark.slow]


def newest() -> Candidate:
    """The newest etcd that is here. Older ones refuse several ranges on one stream (501)."""
    return max(real_etcds(), key=lambda one: [int(number) for number in re.findall(r"\d+", one.version)])


@pytest.fixture(name="etcd")
async def _etcd() -> AsyncIterator[EmbeddedEtcd]:
    async with EmbeddedEtcd(folder=newest().folder, args=ALONE) as etcd, etcd_client(etcd.endpoint) as client:
        for key in KEYS:
            await client.put(key, b"value-of-" + key)
        yield etcd


@pytest.fixture(name="world", params=["open", "guarded"])
async def _world(
    etcd: EmbeddedEtcd, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[str, GatewayProcess]]:
    """The gateway, and its kind. At the end its log must have no error."""
    files = files_in(tmp_path) if request.param == "guarded" else {}
    settings = SETTINGS | {f"GATEWAY_{name.upper()}": value for name, value in files.items()}
    async with gateway(etcd.endpoint, settings=settings) as running:
        yield request.param, running


class Wire:
    """A client with one connection, which it keeps as long as the gateway does."""

    def __init__(self, port: int, judge: Judge) -> None:
        self._port = port
        self._judge = judge
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, asked: Asked) -> None:
        """Send a request, and judge the answer. A gateway that has just closed the connection is asked again."""
        for last in (False, True):
            try:
                async with asyncio.timeout(HANG):
                    return await self._ask(asked)
            except (ConnectionError, asyncio.IncompleteReadError):
                self.close()
                if last:
                    raise
        return None

    async def _ask(self, asked: Asked) -> None:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        assert self._reader is not None
        lines = [f"{asked.method} {asked.target} HTTP/1.1", "Host: x"]
        lines += [f"{name}: {value}" for name, value in asked.headers]
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split()[1])
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = b""
        if "content-length" in headers and asked.method != "HEAD" and status != 304:
            body = await self._reader.readexactly(int(headers["content-length"]))
        self._judge.judge(asked, status, headers, body)
        if "chunked" in headers.get("transfer-encoding", "") and asked.method != "HEAD":
            text = await self._follow()
            for event in events_in(text):
                self._judge.see(asked, event)
            self.close()
        elif headers.get("connection") == "close":
            self.close()

    async def _follow(self) -> str:
        """Read a stream until it is complete, ends, or is silent."""
        found = b""
        with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(FOLLOWED):
                while b'"type":"synced"' not in found and b'"type":"close"' not in found:
                    assert self._reader is not None
                    size = int(await self._reader.readuntil(b"\r\n"), 16)
                    found += (await self._reader.readexactly(size + 2))[:-2]
                    if not size:
                        break
        return found.decode()

    def close(self) -> None:
        """Close the connection. The next request opens another."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def all_of(parts: Iterator[list[Asked]]) -> AsyncIterator[list[Asked]]:
    """Make each part in a thread, while the part before is sent."""
    coming = asyncio.ensure_future(asyncio.to_thread(next, parts, None))
    while (part := await coming) is not None:
        coming = asyncio.ensure_future(asyncio.to_thread(next, parts, None))
        yield part


async def test_no_answer_is_a_fault(
    world: tuple[str, GatewayProcess], etcd: EmbeddedEtcd, figures: Callable[[str], None]
) -> None:
    """Every answer is one that the document describes, none is a 5xx, and none has a denied value. Nothing is left."""
    kind, server = world
    async with httpx.AsyncClient(base_url=server.base) as http:
        document: Document = (await http.get("/openapi.json")).json()
    judge = Judge(document, denied=DENIED if kind == "guarded" else ())
    known = KNOWN if kind == "guarded" else replace(KNOWN, tokens=())
    seed = random.randrange(1 << 30)
    async for part in all_of(generate(document, REQUESTS, known=known, start=seed)):
        wires = [Wire(server.port, judge) for _ in range(CLIENTS)]
        queue = iter(part)

        async def client(wire: Wire, queue: Iterator[Asked] = queue) -> None:
            for asked in queue:
                await wire.ask(asked)
            wire.close()

        await asyncio.gather(*map(client, wires))
        assert judge.faults == [], f"seed {seed}: {judge.faults[:5]}"
    figures(f"{kind}, etcd {newest().version}, seed {seed}: {judge.report()}")

    async def nothing_is_left() -> bool:
        return await etcd_metric(etcd.endpoint, "etcd_debugging_mvcc_watcher_total") == 0

    await eventually(nothing_is_left)


async def test_schemathesis_finds_nothing(etcd: EmbeddedEtcd, tmp_path: Path, figures: Callable[[str], None]) -> None:
    """schemathesis' own runner: wrong requests are refused, and streams have the events of the document."""
    # The runner reads a stream to its end, and asks for revisions that etcd does not have.
    settings = SETTINGS | {"GATEWAY_MAX_AGE": "0.3s", "GATEWAY_SYNC_TIMEOUT": "0.5s"}
    async with gateway(etcd.endpoint, settings=settings) as server:
        command = [
            *(
                sys.executable,
                "-m",
                "schemathesis.cli",
                "--config-file",
                str(FOLDER / "schemathesis.toml"),
                "--no-color",
            ),
            *("run", f"{server.base}/openapi.json", "--max-examples", str(EXAMPLES), "--continue-on-failure"),
            *("--report", "json", "--report-dir", str(tmp_path)),
        ]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.matrix.ndjson", "PYTHONPATH": str(FOLDER.parents[1])},
        )  # fmt: skip
        said = (await process.communicate())[0].decode()
    figures("\n".join(itertools.dropwhile(lambda line: "SUMMARY" not in line, said.splitlines())))

    assert process.returncode == 0, said
    assert "skipped: 1 operation" not in said, "an answer is not checked"
