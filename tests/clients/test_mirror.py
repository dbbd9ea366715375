"""The package's mirror on a real gateway and a real etcd: exact and complete, whatever is killed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from etcd_watch_client import Change, ConfigDict, Mirror, RefusedError
from etcd_watch_client.cli import statuses

from app.dev.etcd import free_ports
from tests.clients.etcd_watch import run
from tests.clients.gateways import Gateways
from tests.support.certificates import Ca
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, EtcdClient, etcd_client
from tests.support.gateway import GatewayProcess, gateway
from tests.support.versions import durable_etcd
from tests.support.waiting import HANG, eventually

pytestmark = [pytest.mark.etcd, pytest.mark.one_etcd]

PREFIX = "/svc/"


@pytest.fixture(name="etcd")
async def _etcd() -> AsyncIterator[EmbeddedEtcd]:
    """An etcd that may be killed under constant writes: whatever it has acknowledged stays."""
    async with EmbeddedEtcd(folder=durable_etcd().folder, args=ALONE) as etcd:
        yield etcd


class Writer:
    """Writes without a pause, and knows what it has written.

    Each transaction writes two keys; every seventh deletes one. ``history`` has the events of each revision.
    """

    def __init__(self, endpoint: str) -> None:
        self.history: dict[int, dict[str, str | None]] = {}
        self._endpoint = endpoint
        self._number = 0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            # An etcd that is killed answers nothing, and may have written all the same: `read_history` asks for it.
            with contextlib.suppress(Exception):
                async with etcd_client(self._endpoint) as kv:
                    while True:
                        await self._write(kv)
                        await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)

    async def _write(self, kv: EtcdClient) -> None:
        self._number += 1
        value = str(self._number)
        changes: dict[str, str | None] = {"/svc/pair/a": value, "/svc/pair/b": value}
        if self._number % 7 == 0:
            changes["/svc/gone"] = None
        elif self._number % 7 == 3:
            changes["/svc/gone"] = value
        async with asyncio.timeout(5):
            revision = await kv.transact(changes)
        self.history[revision] = changes

    async def stop(self) -> None:
        """Stop writing."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


async def moves(mirror: Mirror[str, str]) -> None:
    """Wait until the mirror is live and has got ten more revisions."""
    goal = mirror.revision + 10
    await mirror.until(lambda found: found.state == "live" and found.revision >= goal, HANG)


async def is_exact(mirror: Mirror[str, str], kv: EtcdClient) -> None:
    """Wait until the mirror has what etcd has."""

    async def equal() -> bool:
        _, state = await kv.state(PREFIX)
        return dict(mirror) == {key.decode(): kv.value.decode() for key, kv in state.items()}

    await mirror.synced(HANG)
    await eventually(equal)


class Judge:
    """Reads the changes of a mirror, and compares them with what was written."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, str | None]] = {}
        self.resets: list[str] = []
        self.last = 0

    def on_change(self, change: Change[str, str]) -> None:
        """Take one change."""
        assert change.revision > self.last, "a revision that came twice, or out of order"
        self.last = change.revision
        if change.reset is not None:
            self.resets.append(change.reset)
        else:
            self.seen[change.revision] = {event.key: event.value for event in change}

    def on_state(self, mirror: Mirror[str, str]) -> None:
        """A pair is written in one transaction, so it is never seen half."""
        assert mirror.get("/svc/pair/a") == mirror.get("/svc/pair/b")

    def compare(self, history: dict[int, dict[str, str | None]]) -> None:
        """Every revision that etcd confirmed was seen, whole and with its values."""
        first = min(self.seen)
        expected = {
            # A delete of a key that is not there is no event.
            revision: {key for key in changes if changes[key] is not None}
            for revision, changes in history.items()
            if first <= revision <= self.last
        }
        assert {revision: expected[revision] - set(self.seen.get(revision, {})) for revision in expected} == {
            revision: set() for revision in expected
        }
        for revision in expected:
            assert self.seen[revision].items() <= history[revision].items()


Fault = Callable[[EmbeddedEtcd, Gateways], Awaitable[None]]


async def kill_both_gateways(_etcd: EmbeddedEtcd, gateways: Gateways) -> None:
    """One after the other, and for a moment both."""
    await gateways.kill(0)
    await asyncio.sleep(0.2)
    await gateways.kill(1)
    await gateways.start(0)
    await gateways.start(1)


async def kill_etcd(etcd: EmbeddedEtcd, _gateways: Gateways) -> None:
    """And start it again on the same data."""
    await etcd.kill()
    await asyncio.sleep(0.2)
    await etcd.restart()


async def kill_everything(etcd: EmbeddedEtcd, gateways: Gateways) -> None:
    """A data centre without power."""
    await gateways.kill(0)
    await etcd.kill()
    await gateways.kill(1)
    await etcd.restart()
    await gateways.start(0)
    await gateways.start(1)


@pytest.mark.parametrize("fault", [kill_both_gateways, kill_etcd, kill_everything])
async def test_no_change_is_lost(etcd: EmbeddedEtcd, kv: EtcdClient, gateways: Gateways, fault: Fault) -> None:
    """Under constant writes every revision comes once, in order, whole; and the mirror ends as etcd is."""
    writer, judge = Writer(etcd.endpoint), Judge()
    try:
        async with Mirror(gateways.urls, PREFIX, on_change=judge.on_change, on_state=judge.on_state) as mirror:
            await moves(mirror)
            for _ in range(2):
                await fault(etcd, gateways)
                await moves(mirror)
            await writer.stop()
            await is_exact(mirror, kv)
    finally:
        await writer.stop()
    assert judge.resets == ["initial"]
    judge.compare(writer.history)


async def test_a_gateway_that_moves(kv: EtcdClient, gateways: Gateways, tmp_path: Path) -> None:
    """The next process, with another URL, resumes from the file of the first one: nothing is lost between."""
    file, judge = tmp_path / "mirror", Judge()
    await kv.put("/svc/a", "1")
    async with Mirror(gateways.urls[:1], PREFIX, resume=file, on_change=judge.on_change) as mirror:
        await mirror.synced(HANG)
    await gateways.kill(0)
    written = [await kv.put("/svc/a", "2"), await kv.delete("/svc/a"), await kv.put("/svc/b", "3")]
    port = free_ports(1)[0]
    await gateways.start(0, port)
    async with Mirror(f"http://127.0.0.1:{port}", PREFIX, resume=file, on_change=judge.on_change) as mirror:
        assert dict(mirror) == {"/svc/a": "1"}
        await is_exact(mirror, kv)
    assert judge.resets == ["initial"]
    assert judge.seen == dict(zip(written, [{"/svc/a": "2"}, {"/svc/a": None}, {"/svc/b": "3"}], strict=True))


async def test_several_ranges_and_formats(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """Two prefixes and a key on one stream: a transaction over them is one change. SSE and NDJSON say the same."""
    async with gateway(etcd.endpoint, settings={"GATEWAY_PIN": "/"}) as server:
        ndjson = Mirror(server.base, "/a/", "/b/", keys=["/key"])
        sse = Mirror(server.base, "/a/", "/b/", keys=["/key"], format="sse")
        names = Mirror(server.base, "/", keys_only=True)
        async with ndjson, sse, names:
            for mirror in (ndjson, sse, names):
                await mirror.synced(HANG)
            changes = ndjson.changes()
            expected = {"/a/1": "x", "/b/1": "y", "/key": "z"}
            revision = await kv.transact({**expected, "/other": "no"})
            for mirror in (ndjson, sse, names):
                await mirror.until(lambda found: found.revision >= revision, HANG)
            assert dict(ndjson) == dict(sse) == expected
            assert dict(names) == dict.fromkeys([*expected, "/other"])
            change = await anext(changes)
            assert (change.revision, {event.key: event.value for event in change}) == (revision, expected)


async def test_tokens_and_prefixes(etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path) -> None:
    """A token of a file that rotates; a wrong token and a prefix that is not allowed are raised."""
    file = tmp_path / "token"
    file.write_text("0123456789abcdef0123456789abcdef")
    settings = {"GATEWAY_TOKEN_FILE": str(file), "GATEWAY_ALLOW_PREFIXES": PREFIX}
    await kv.put("/svc/a", b"\xff\0")
    async with gateway(etcd.endpoint, settings=settings) as server:
        async with Mirror(server.base, PREFIX, token=file.read_text, binary=True) as mirror:
            await mirror.synced(HANG)
            assert dict(mirror) == {b"/svc/a": b"\xff\0"}
        for token, prefix, status in (("wrong", PREFIX, 401), (file.read_text(), "/other/", 403)):
            with pytest.raises(RefusedError) as refused:
                async with Mirror(server.base, prefix, token=token) as mirror:
                    await mirror.synced(HANG)
            assert refused.value.status == status


async def test_tls(etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path) -> None:
    """A private authority and a client's certificate; a certificate that is not trusted is named, and retried."""
    ca = Ca(tmp_path / "ca")
    own, user = ca.sign("gateway"), ca.sign("user")
    settings = {
        "GATEWAY_TLS_CERT": str(own.cert), "GATEWAY_TLS_KEY": str(own.key), "GATEWAY_TLS_CLIENT_CA": str(ca.cert),
    }  # fmt: skip
    await kv.put("/svc/a", "1")
    async with gateway(etcd.endpoint, settings=settings) as server:
        url = server.base.replace("http:", "https:")
        async with Mirror(url, PREFIX, ca=ca.cert, cert=user.cert, key=user.key) as mirror:
            await mirror.synced(HANG)
            assert dict(mirror) == {"/svc/a": "1"}
        async with Mirror(url, PREFIX) as mirror:
            await mirror.until(lambda found: "CERTIFICATE_VERIFY_FAILED" in found.reason, HANG)
            assert mirror.state == "connecting"
        words = ["get", "/svc/a", "--cacert", str(ca.cert), "--timeout", "2m"]
        certificate = ["--client-cert", str(user.cert), "--client-key", str(user.key)]
        assert await run(url, *words, *certificate) == (0, "1\n", "")
    status, _, err = await run(url, *words, "--client-cert", str(tmp_path / "none"))
    assert (status, "No such file" in err) == (statuses.LOCAL, True)


async def test_config_dict(server: GatewayProcess, kv: EtcdClient) -> None:
    """A thread follows; the test's own loop is free."""
    await kv.put("/svc/a", "1")
    config = ConfigDict(server.base, PREFIX, timeout=HANG)
    await asyncio.to_thread(config.start)
    try:
        assert config.copy() == {"/svc/a": "1"}
        await kv.put("/svc/a", "2")
        await asyncio.to_thread(config.until, lambda mirror: mirror["/svc/a"] == "2", HANG)
        assert (config["/svc/a"], config.state) == ("2", "live")
    finally:
        await asyncio.to_thread(config.close)


async def test_a_handler_that_is_slower_than_the_gateway_waits(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """The gateway cuts a client that reads nothing. No change is lost, and none comes twice."""
    release, reached, handled = asyncio.Event(), asyncio.Event(), []
    settings = {"GATEWAY_SEND_TIMEOUT": "1s", "GATEWAY_SEND_BUFFER": "4KiB"}
    async with gateway(etcd.endpoint, settings=settings) as server, httpx.AsyncClient() as http:

        async def handle(change: Change[str, str]) -> None:
            reached.set()
            await release.wait()
            handled.append(change.revision)

        async def is_cut() -> bool:
            feeds = (await http.get(f"{server.base}/v1/feeds")).json()["feeds"]
            return all(feed["subscribers"] == 0 for feed in feeds)

        async with Mirror(server.base, PREFIX, on_change=handle) as mirror:
            await mirror.synced(HANG)
            revisions = [await kv.put("/svc/large", "x" * 1_000_000 + str(number)) for number in range(12)]
            async with asyncio.timeout(HANG):
                await reached.wait()
            await eventually(is_cut)
            assert handled == []
            release.set()
            await mirror.until(lambda found: found.state == "live" and found.revision >= revisions[-1], HANG)
    assert handled == revisions
