"""``app.workers.no_worker``: what the hub answers while no worker can start."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import cast

import httpx
import pytest

from app.gateway import Gateway
from app.server.admission import Admission
from app.settings import load
from app.workers.no_worker import NoWorker
from app.workers.process import WorkerProcess
from app.workers.team import Team
from tests.support.embedded import EmbeddedEtcd
from tests.support.gateway import QUICK, start
from tests.support.raw_http import Line
from tests.support.waiting import HANG, eventually
from tests.workers.test_hub import pids


async def asked(raw: bytes) -> bytes:
    """All that a client gets for some bytes, until the connection ends."""
    settings = load({"etcd": "http://127.0.0.1:1"})
    gateway = Gateway(settings)
    no_worker = NoWorker(settings, gateway, Admission(gateway.capacity), None)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        line = Line(listening.getsockname()[1])
        await line.send(raw)
        no_worker.take(listening.accept()[0], "clients")
        answer = await line.rest()
    no_worker.close()
    return answer


async def test_the_answer_is_the_last_of_its_connection() -> None:
    """The next connection may go to a worker."""
    head, _, body = (await asked(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"http/1.1 503 service unavailable"
    assert b"connection: close" in lines
    assert json.loads(body)["code"] == "no-worker"


class Member:
    """A worker."""

    def __init__(self, number: int) -> None:
        self.number, self.pid, self.serving, self.last_report = number, 0, True, None

    def release(self) -> list[object]:
        """Nothing was passed to it."""
        return []


def test_when_no_worker_can_start() -> None:
    """When the last process of each one has ended before it served. One that dies while it serves is replaced soon."""
    team = Team(cast("Gateway", None), 2, "", {}, dict, clock=lambda: 0.0, draw=lambda: 0.0)
    first, second = (cast("WorkerProcess", Member(number)) for number in (1, 2))
    team._members = {1: first, 2: second}
    assert not team.failing
    team._depart(first, 1)
    team._depart(second, 1)
    assert not team.failing, "both have served"
    team._depart(first, 1)
    assert not team.failing, "the second begins"
    team._depart(second, 1)
    assert team.failing
    second.serving = True
    assert not team.failing
    team._depart(second, 1)
    assert not team.failing
    team._depart(second, 1)
    assert team.failing
    team._stopping = True
    assert not team.failing, "who stops is not refused, but drained"


@pytest.mark.etcd
@pytest.mark.one_etcd
async def test_a_probe_does_not_wait(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """While every new worker ends at its start, the answer is 503, and a worker that starts takes over."""
    given = {"GATEWAY_PORT": "0", "GATEWAY_ETCD": etcd.endpoint, "GATEWAY_WORKERS": "2", "PYTHONPATH": str(tmp_path)}
    running = await start(settings={**QUICK, **given}, before=("env",))
    await running.listening()
    broken = tmp_path / "sitecustomize.py"  # Python imports it at the start of each process
    broken.write_text("import os\nos._exit(3)\n")
    for pid in pids(running):
        os.kill(pid, signal.SIGKILL)
    async with httpx.AsyncClient(base_url=running.base, timeout=HANG) as http:

        async def refused() -> bool:
            return bool((await http.get("/readyz")).json().get("code") == "no-worker")

        await eventually(refused)
        broken.unlink()

        async def served() -> bool:
            return (await http.get("/readyz")).status_code == 200

        await eventually(served)
    assert await running.stop() == 0
