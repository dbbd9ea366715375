"""The tests' own etcd: it can restart, freeze, and be a member of a cluster."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc
import pytest
from aetcd import rpc

from app.dev.etcd import LOOPBACK_OPTIONS, EtcdMissingError
from tests.support.embedded import SETPRIV, EmbeddedCluster, EmbeddedEtcd, find_etcd
from tests.support.processes import alive
from tests.support.proxy import proxy
from tests.support.waiting import HANG, eventually

pytestmark = pytest.mark.etcd


async def put(etcd: EmbeddedEtcd, key: bytes) -> None:
    async with grpc.aio.insecure_channel(etcd.endpoint.removeprefix("http://"), LOOPBACK_OPTIONS) as channel:
        await rpc.KVStub(channel).Put(rpc.PutRequest(key=key), timeout=HANG)


async def count(etcd: EmbeddedEtcd, key: bytes) -> int:
    async with grpc.aio.insecure_channel(etcd.endpoint.removeprefix("http://"), LOOPBACK_OPTIONS) as channel:
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


async def test_an_etcd_that_is_slow_to_answer_is_in_reach() -> None:
    """It may get no core for a while after the system has accepted the connection."""
    async with EmbeddedEtcd() as etcd, proxy(etcd.endpoint) as between:
        between.delay = 0.3
        async with grpc.aio.insecure_channel(between.endpoint.removeprefix("http://"), LOOPBACK_OPTIONS) as channel:
            await rpc.KVStub(channel).Range(rpc.RangeRequest(key=b"a"), timeout=HANG)


async def test_a_given_data_dir_is_kept(tmp_path: Path) -> None:
    async with EmbeddedEtcd(data_dir=tmp_path / "data") as etcd:
        await put(etcd, b"a")

    async with EmbeddedEtcd(data_dir=tmp_path / "data") as etcd:
        assert await count(etcd, b"a") == 1


async def test_frozen_it_is_mute_and_thawed_it_goes_on() -> None:
    async with EmbeddedEtcd() as etcd:
        etcd.sigstop()
        try:
            async with grpc.aio.insecure_channel(etcd.endpoint.removeprefix("http://"), LOOPBACK_OPTIONS) as channel:
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


STARTS = """
import sys, time
from pathlib import Path
from tests.support.embedded import SETPRIV, Child
print(Child(SETPRIV, ["/bin/sleep", "1000"], Path(sys.argv[1]))._etcd.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(SETPRIV is None, reason="without setpriv, app/dev/watchdog.py does it: test_watchdog.py")
async def test_a_process_that_is_killed_takes_its_etcd_along(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STARTS, tmp_path / "log", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    pid = int(await process.stdout.readline())
    assert alive(pid)
    process.kill()
    await process.wait()

    async def is_gone() -> bool:
        return not alive(pid)

    await eventually(is_gone)


def test_a_missing_binary_is_named(tmp_path: Path) -> None:
    with pytest.raises(EtcdMissingError, match=str(tmp_path)):
        find_etcd(tmp_path)


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
