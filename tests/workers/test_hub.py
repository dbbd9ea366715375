"""``app.workers.hub``: the whole tree of processes, as its operator sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from tests.integration.test_faults import follow
from tests.integration.test_release import WATCHERS
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import QUICK, GatewayProcess, start
from tests.support.metrics import etcd_metric
from tests.support.streams import watch
from tests.support.waiting import eventually

pytestmark = [pytest.mark.etcd, pytest.mark.one_etcd]


async def team(etcd: EmbeddedEtcd, **settings: str) -> GatewayProcess:
    """A gateway with two workers, which listens."""
    given = {"GATEWAY_PORT": "0", "GATEWAY_ETCD": etcd.endpoint, "GATEWAY_WORKERS": "2"}
    running = await start(settings={**QUICK, **given, **settings})
    await running.listening()
    return running


def pids(running: GatewayProcess) -> list[int]:
    """The process ids of the workers, as the log has them; the newest of each."""
    newest = {line["worker"]: line["pid"] for line in running.lines_so_far if line["message"] == "worker start"}
    return [newest[number] for number in sorted(newest)]


async def watchers(etcd: EmbeddedEtcd) -> float:
    """The watchers that etcd counts."""
    return await etcd_metric(etcd.endpoint, WATCHERS)


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def is_empty(folder: Path) -> bool:
    """Whether a folder has no file."""
    return not any(folder.iterdir())


async def nothing_is_left(found: list[int], folder: Path) -> None:
    """Wait until no process, and no file, is left."""

    async def so() -> bool:
        return not any(map(alive, found)) and is_empty(folder)

    await eventually(so)


async def test_a_signal_to_the_hub_drains_all(
    etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The streams of both workers are told; readiness says it; the exit status is 0, and nothing is left."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    running = await team(etcd, TMPDIR=str(tmp_path), GATEWAY_DRAIN_WINDOW="0", GATEWAY_ADMIN_PORT="0")
    found = pids(running)
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(await watch(running.base, "prefix=/svc/")) for _ in range(4)]
        for stream in streams:
            await stream.until("synced")
        await kv.put("/svc/a", "1")
        for stream in streams:
            await stream.until("put")
        running.process.send_signal(signal.SIGTERM)
        for stream in streams:
            assert (await stream.until("close"))[-1].data["reason"] == "drain"
    assert await running.stop() == 0
    messages = [line["message"] for line in running.lines]
    assert messages.count("stopping") == messages.count("stopped") == 1
    assert messages.count("worker end") == 2
    assert [line for line in running.lines if line["level"] == "error"] == []
    await nothing_is_left(found, tmp_path)
    assert await watchers(etcd) == 0


async def test_a_killed_hub_leaves_nothing(etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path) -> None:
    """Its workers end their streams in order, and themselves; their clients resume at the next gateway."""
    running = await team(etcd, TMPDIR=str(tmp_path))
    found = pids(running)
    await kv.put("/svc/a", "1")
    async with follow(running.base, 4) as followers:
        running.process.send_signal(signal.SIGKILL)
        await running.process.wait()
        await asyncio.gather(*(follower.task for follower in followers))
        assert all(follower.mirror.revision > 0 for follower in followers)
    await nothing_is_left(found, tmp_path)
    await running.stop()

    async def released() -> bool:
        return await watchers(etcd) == 0

    await eventually(released)


async def test_a_hub_that_is_killed_while_it_drains(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """As at any other time: the workers went on with the drain, and the folder of the hub's socket stayed."""
    running = await team(etcd, TMPDIR=str(tmp_path), GATEWAY_DRAIN_WINDOW="3600", GATEWAY_DRAIN_PACE="1")
    found = pids(running)
    async with AsyncExitStack() as stack:
        for _ in range(40):
            stream = await stack.enter_async_context(await watch(running.base, "prefix=/svc/"))
            await stream.until("synced")
        running.process.send_signal(signal.SIGTERM)
        await running.logged("stopping")
        running.process.send_signal(signal.SIGKILL)
        await running.process.wait()
        await nothing_is_left(found, tmp_path)
    await running.stop()


async def test_a_hang_up_reloads_all(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """Each worker reads its files again."""
    token = tmp_path / "token"
    token.write_text("one")
    running = await team(etcd, GATEWAY_TOKEN_FILE=str(token))
    async with httpx.AsyncClient(base_url=running.base) as http:
        token.write_text("two")
        running.process.send_signal(signal.SIGHUP)

        async def both() -> bool:
            reloaded = [line for line in running.lines_so_far if line["message"] == "reloaded"]
            said = {line["worker"] for line in reloaded if "worker" in line}
            return said == {1, 2}

        await eventually(both)
        for word, status in (("one", 401), ("two", 200)):
            for _ in range(4):
                # Each request is a connection of its own, and goes to another worker.
                headers = {"Authorization": f"Bearer {word}", "Connection": "close"}
                assert (await http.get("/v1/kv?prefix=/a/", headers=headers)).status_code == status
    assert await running.stop() == 0


@pytest.mark.parametrize(
    ("settings", "status", "said"),
    [
        ({"GATEWAY_WORKERS": "0"}, 2, "GATEWAY_WORKERS (--workers)"),
        ({"GATEWAY_WORKERS": "2", "GATEWAY_TOKENS_FILE": "/nowhere"}, 2, "GATEWAY_TOKENS_FILE"),
        ({"GATEWAY_WORKERS": "2", "TMPDIR": "LONG"}, 2, "a folder with a shorter path"),
        ({"GATEWAY_WORKERS": "2", "TMPDIR": "/proc", "TMP": "/proc", "TEMP": "/proc"}, 0, ""),
    ],
    ids=["number", "file", "long", "temporary"],
)
async def test_a_mistake_is_found_at_the_start(
    etcd: EmbeddedEtcd, tmp_path: Path, settings: dict[str, str], status: int, said: str
) -> None:
    """It is named as it is for a single process; a temporary folder that cannot be written is not taken."""
    if settings.get("TMPDIR") == "LONG":  # a path of a socket has at most 107 bytes
        folder = tmp_path / ("x" * 100)
        folder.mkdir()
        settings = settings | {"TMPDIR": str(folder)}
    running = await start(settings={**QUICK, "GATEWAY_PORT": "0", "GATEWAY_ETCD": etcd.endpoint, **settings})
    if status:
        assert await running.process.wait() == status
    else:
        await running.listening()
    assert await running.stop() == status
    assert said in "".join(running.other)


async def test_a_stopped_worker_does_not_keep_the_hub(etcd: EmbeddedEtcd) -> None:
    """The third signal does not wait, as in a single process: what hears nothing is killed."""
    running = await team(etcd)
    os.kill(pids(running)[0], signal.SIGSTOP)

    async def heard(number: int) -> bool:
        return len([line for line in running.lines_so_far if line["message"].startswith("stopping")]) == number

    running.process.send_signal(signal.SIGTERM)
    for number in (1, 2):
        await eventually(lambda: heard(number))  # noqa: B023  # waited for here. Signals that come together are one
        running.process.send_signal(signal.SIGTERM)
    await running.process.wait()
    assert "does not answer" not in str(running.lines)
    assert await running.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_worker_that_is_ended_at_its_start(etcd: EmbeddedEtcd, number: int) -> None:
    """It is started again. Otherwise a signal to one process at the wrong time would end the gateway."""
    given = {"GATEWAY_PORT": "0", "GATEWAY_ETCD": etcd.endpoint, "GATEWAY_WORKERS": "2"}
    running = await start(settings={**QUICK, **given})

    async def begun() -> bool:
        return len(pids(running)) == 2

    await eventually(begun)
    first = pids(running)
    os.kill(first[0], number)
    await running.listening()
    assert pids(running)[1] == first[1]
    assert await running.stop() == 0


async def test_a_signal_during_the_start(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """The workers end before they serve."""
    given = {"GATEWAY_PORT": "0", "GATEWAY_ETCD": etcd.endpoint, "GATEWAY_WORKERS": "2", "TMPDIR": str(tmp_path)}
    running = await start(settings={**QUICK, **given})

    async def begun() -> bool:
        return len(pids(running)) == 2

    await eventually(begun)
    assert await running.stop() == 0
    await nothing_is_left(pids(running), tmp_path)
    assert os.getpid() not in pids(running)
