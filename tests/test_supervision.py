"""Tasks that fail by a defect: the process ends with a reason, or the task's own work is ended. No defect is silent."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Any

import grpc
import httpx
import pytest

from app.cli import main
from app.core.errors import GatewayError
from app.core.keys import KeyRange
from app.etcd.reads import Reads
from app.gateway import Gateway
from app.main import create_app
from app.ports import BrokenGatewayError, spawn
from app.settings import load
from tests.support.embedded import EmbeddedEtcd
from tests.support.fake_etcd import FakeEtcd
from tests.support.gateway import QUICK, gateway, start
from tests.support.streams import watch
from tests.support.waiting import eventually


@pytest.mark.etcd
@pytest.mark.parametrize(
    "task", ["upstream", "upstream-quietly", "registry", "registry-quietly", "permissions", "quorum"]
)
async def test_the_process_ends_and_says_why(etcd: EmbeddedEtcd, tmp_path: Any, task: str) -> None:
    """The process ends with a status that causes a restart, after the streams have been notified."""
    password = tmp_path / "password"
    password.write_text("secret")
    named = {
        "GATEWAY_ETCD_USER": "gateway",
        "GATEWAY_ETCD_PASSWORD_FILE": str(password),
    }  # with a user, the gateway also audits the watches
    settings = {**QUICK, **named, "GATEWAY_PORT": "0", "GATEWAY_ETCD": etcd.endpoint}
    running = await start(settings=settings, program=("tests.support.dying", task))
    try:
        await running.listening()
        running.process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(60):
            status = await running.process.wait()
    finally:
        await running.stop()
    assert status == 1
    failed = [line for line in running.lines if line["message"] == "task failed"]
    assert [line["task"] for line in failed] == ["registry" if task.startswith("registry") else "upstream"]
    assert ("the task returned" if "quietly" in task else "a defect") in str(failed)
    assert [line for line in running.lines if line["message"] == "the gateway cannot go on, and ends"]
    assert running.other == []


async def test_streams_are_told_that_it_ends(etcd: EmbeddedEtcd) -> None:
    """A defect closes the streams as a drain does: another replica has their ranges."""
    settings = {**QUICK, "GATEWAY_PORT": "0", "GATEWAY_ETCD": etcd.endpoint}
    running = await start(settings=settings, program=("tests.support.dying", "registry"))
    try:
        await running.listening()
        async with await watch(running.base, "prefix=/svc/") as stream:
            running.process.send_signal(signal.SIGUSR1)
            assert (await stream.until("close"))[-1].data["reason"] == "drain"
    finally:
        assert await running.stop() == 1


async def test_another_server_is_told_by_livez_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server has the app as a guest, which must not end the server."""

    async def fail(_self: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("app.watch.registry.Registry.run", fail)
    statuses: list[int] = []

    async def live_until_broken(guest: Gateway) -> None:
        transport = httpx.ASGITransport(create_app(gateway=guest))
        async with guest.running(), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            async with asyncio.timeout(30):
                await guest.broken.wait()
            statuses.append((await http.get("/livez")).status_code)

    async with FakeEtcd() as fake:
        with pytest.raises(BrokenGatewayError):
            await live_until_broken(Gateway(load({"etcd": fake.endpoint})))
    assert statuses == [503]


async def test_what_a_failed_task_was_to_do_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    """The death of a task is logged, and its callback is called; a cancellation is not a death."""
    heard: list[Exception] = []

    async def fail() -> None:
        raise RuntimeError("a defect")

    task = spawn(fail(), name="doomed", died=heard.append)
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert [str(error) for error in heard] == ["a defect"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]

    async def be_cancelled() -> None:
        raise asyncio.CancelledError  # as a gRPC call raises when its server has cancelled it

    task = spawn(be_cancelled(), name="doomed", died=heard.append)
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert len(heard) == 2

    cancelled = spawn(asyncio.sleep(30), name="cancelled", died=heard.append)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    await asyncio.sleep(0)
    assert len(heard) == 2


async def test_a_call_that_its_server_cancels_ends_no_task() -> None:
    """gRPC raises CancelledError for such a call in the task that made it, even if that task is the upstream's own."""
    async with FakeEtcd() as fake:
        fake.fail_ranges(2, grpc.StatusCode.CANCELLED)
        async with gateway(fake.endpoint) as server, httpx.AsyncClient(base_url=server.base) as http:

            async def served() -> bool:
                return (await http.get("/v1/kv?prefix=/svc/")).status_code == 200

            await eventually(served)
            fake.fail_ranges(1, grpc.StatusCode.CANCELLED)
            assert (await http.get("/v1/kv?prefix=/svc/")).status_code == 503
            await eventually(served)


async def test_a_feed_whose_read_fails_by_a_defect_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The feed closes its subscribers, and the next one starts the feed anew. (Other calls:
    tests/watch/test_feed.py.)
    """

    async def fail(*_args: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Reads, "snapshot", fail)
    async with FakeEtcd() as fake:
        running = Gateway(load({"etcd": fake.endpoint}))
        async with running.running():
            subscriber = None
            async with asyncio.timeout(30):
                while subscriber is None:
                    try:
                        subscriber = running.registry.subscribe(
                            (KeyRange("prefix", b"/svc/"),),
                            address="",
                            user_agent="",
                            request_id="",
                            has_cursor=False,
                        )
                    except GatewayError:  # not connected yet
                        await asyncio.sleep(0.05)

            async def closed() -> bool:
                return subscriber.closing == "unavailable"

            await eventually(closed)
            assert list(running.registry.feeds) == []
            subscriber.release()


@pytest.mark.parametrize("name", ["etcd_user", "etcd", "instance", "epoch", "cors_origins"])
def test_a_setting_that_is_not_utf_8(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A setting that is not UTF-8 is refused at the start: in a request to etcd it silently ended the connection's
    task.
    """
    monkeypatch.setenv(f"GATEWAY_{name.upper()}", "a\udcff")
    monkeypatch.setenv("GATEWAY_ETCD_PASSWORD_FILE", "/dev/null")
    assert main(["serve", "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert f"GATEWAY_{name.upper()} (--{name.replace('_', '-')})" in said
    assert "UTF-8" in said or "unicode" in said
