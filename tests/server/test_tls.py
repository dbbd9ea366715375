"""A gateway whose ports speak TLS, as its clients and its operators see it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.core.capacity import Capacity
from app.gateway import Gateway
from app.main import create_app
from app.server.admission import Admission
from app.server.run import GatewayServer, make_config
from app.server.tls_connection import TlsConnection
from app.settings import load
from tests.check.test_command import check
from tests.slow_readers.kernel import sockets
from tests.support.certificates import Ca, Pair
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway, run
from tests.support.metrics import gateway_metric
from tests.support.streams import watch
from tests.support.waiting import HANG, eventually

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(name="ca")
def _ca(tmp_path: Path) -> Ca:
    return Ca(tmp_path / "ca")


@pytest.fixture(name="files")
def _files(ca: Ca, tmp_path: Path) -> Pair:
    """The files that the gateway reads."""
    files = Pair(tmp_path / "tls.crt", tmp_path / "tls.key")
    renew(files, ca.sign("first"))
    return files


def renew(files: Pair, source: Pair) -> None:
    """Write another certificate: first the certificate's file, then the key's."""
    files.cert.write_bytes(source.cert.read_bytes())
    files.key.write_bytes(source.key.read_bytes())


def settings_for(files: Pair, **more: str) -> dict[str, str]:
    """The environment of a gateway with TLS."""
    return {"GATEWAY_TLS_CERT": str(files.cert), "GATEWAY_TLS_KEY": str(files.key), **more}


@pytest.fixture(name="served")
async def _served(etcd: EmbeddedEtcd, files: Pair) -> AsyncIterator[GatewayProcess]:
    async with gateway(etcd.endpoint, settings=settings_for(files)) as server:
        yield server


def client(ca: Ca, own: Pair | None = None) -> ssl.SSLContext:
    """The context of a client that trusts *ca*."""
    context = ssl.create_default_context(cafile=str(ca.cert))
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    return context


async def curl(*flags: object) -> tuple[int, str]:
    """Run curl; its exit status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "--noproxy", "*", *map(str, flags)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(HANG):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def presented(port: int, ca: Ca) -> str:
    """The name in the certificate that a new connection is shown."""
    _reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client(ca))
    found: Any = writer.get_extra_info("peercert")
    writer.transport.abort()
    return str(dict(item[0] for item in found["subject"])["commonName"])


@pytest.mark.etcd
@pytest.mark.parametrize("flags", [[], ["--tls-max", "1.2"], ["--http1.0"]], ids=["1.3", "1.2", "http-1.0"])
async def test_curl(flags: list[str], served: GatewayProcess, kv: EtcdClient, ca: Ca) -> None:
    """A read, and a stream with its reset, items and live events, with curl."""
    await kv.put("/svc/a", "x" * 100_000)
    trust = ("--cacert", ca.cert, *flags)
    status, read = await curl(*trust, f"{served.base}/v1/kv?prefix=/svc/")
    for seconds in (2, 20, 60):  # on a busy machine, the first bookmark takes longer
        # 28: curl ends the stream by its own timeout
        ended, stream = await curl(*trust, "-N", "-m", seconds, f"{served.base}/v1/watch?prefix=/svc/&format=ndjson")
        if '"type":"bookmark"' in stream:
            break

    assert (status, ended) == (0, 28), (read[:200], stream[:200])
    assert '"count":1' in read
    assert [kind for kind in ("reset", "put", "synced", "bookmark") if f'"type":"{kind}"' not in stream] == []


@pytest.mark.etcd
@pytest.mark.parametrize("sink", ["fast", "portable"])
async def test_both_sinks(sink: str, etcd: EmbeddedEtcd, kv: EtcdClient, files: Pair, ca: Ca) -> None:
    """Everything arrives in order by either sink, and the log and /v1/feeds say which one it is."""
    async with (
        gateway(etcd.endpoint, settings=settings_for(files, GATEWAY_SINK=sink)) as server,
        httpx.AsyncClient(base_url=server.base, verify=client(ca)) as http,
        await watch(server.base, "prefix=/svc/", tls=client(ca)) as stream,
    ):
        await stream.until("synced")
        sinks = (await http.get("/v1/feeds")).json()["sinks"]
        for n in range(50):
            await kv.put("/svc/a", f"{n}" * 1000)
        revisions: list[int] = []
        while len(revisions) < 50:
            event = await stream.next_event()
            assert event is not None
            if event.type == "put":
                revisions.append(event.data["mod_revision"])

    (line,) = [line for line in server.lines if "scheme" in line]
    assert sinks[sink] == 1
    assert (line["scheme"], line["sink"]) == ("https", sink)
    assert not [line for line in server.lines if "GATEWAY_SINK=fast" in line["message"]]
    assert revisions == sorted(set(revisions))


@pytest.mark.etcd
async def test_client_certificates(etcd: EmbeddedEtcd, files: Pair, ca: Ca, tmp_path: Path) -> None:
    """The main port demands a certificate of the given CA. The admin port does not: the kubelet cannot send one."""
    clients, strangers = Ca(tmp_path / "clients", "clients"), Ca(tmp_path / "strangers", "strangers")
    good, bad = clients.sign("good"), strangers.sign("bad")
    settings = settings_for(files, GATEWAY_TLS_CLIENT_CA=str(clients.cert), GATEWAY_ADMIN_PORT="0")
    async with gateway(etcd.endpoint, settings=settings) as server:
        url, admin = f"{server.base}/v1/kv?prefix=/a", f"https://127.0.0.1:{server.admin_port}"
        trust = ("--cacert", ca.cert)
        without = await curl(*trust, url)
        wrong = await curl(*trust, "--cert", bad.cert, "--key", bad.key, url)
        right = await curl(*trust, "--cert", good.cert, "--key", good.key, url)
        probe = await curl(*trust, f"{admin}/livez")
        flags = (
            "--url",
            server.base,
            "--admin-url",
            admin,
            "--streams",
            "4",
            "--rounds",
            "1",
            "--cacert",
            str(ca.cert),
        )
        refused = await check(*flags)
        halves = await check(*flags, "--key", str(good.key))
        # The own certificate is enough for --cacert.
        own = ("--cacert", str(files.cert))
        proven = await check(*flags, *own, "--cert", str(good.cert), "--key", str(good.key))

    assert (without[0] != 0, wrong[0] != 0, right[0], probe[0]) == (True, True, 0, 0)
    assert '"count":0' in right[1]
    assert [line["reason"] for line in server.lines if "so_far" in line] == ["client-certificate"]
    assert refused[0] == halves[0] == 2
    assert "--key: needs --cert" in halves[1]
    assert proven[0] == 0, proven[1]


@pytest.mark.etcd
async def test_a_renewal(served: GatewayProcess, kv: EtcdClient, ca: Ca, files: Pair) -> None:
    """Without a signal, new connections get the new certificate. A bad file changes nothing, and is loud. Open streams
    notice nothing.
    """
    async with (
        httpx.AsyncClient(base_url=served.base, verify=client(ca)) as http,
        await watch(served.base, "prefix=/svc/", tls=client(ca)) as stream,
    ):
        await stream.until("synced")
        assert await presented(served.port, ca) == "first"
        renew(files, ca.sign("second"))

        async def second() -> bool:
            return await presented(served.port, ca) == "second"

        await eventually(second)
        files.cert.write_text("broken")

        async def loud() -> bool:
            return await gateway_metric(http, "tls_certificate_unusable") == 1

        await eventually(loud)
        probe = await http.get("/readyz")
        await kv.put("/svc/a", "b")
        event = await stream.until("put")
        expires = await gateway_metric(http, "tls_certificate_expiry_timestamp_seconds")

    assert probe.status_code == 200
    assert probe.json()["tls"].startswith(f"GATEWAY_TLS_CERT (--tls-cert): {files.cert}: has no certificate")
    assert event
    assert expires > 1_700_000_000
    await served.logged("the TLS certificate cannot be used: what was read before stays valid")


async def test_a_signal(files: Pair, ca: Ca) -> None:
    """SIGHUP reads the files at once, and the log says what came of it."""
    async with gateway(NOWHERE, settings=settings_for(files)) as server:
        renew(files, ca.sign("second"))
        server.process.send_signal(signal.SIGHUP)
        (line,) = await server.logged("reloaded")
        name = await presented(server.port, ca)

    assert name == "second"
    assert line["tls"] in ("changed", "unchanged")  # unchanged: the file watch was faster


@pytest.mark.etcd
async def test_a_stuck_client(etcd: EmbeddedEtcd, kv: EtcdClient, files: Pair, ca: Ca) -> None:
    """A client that takes nothing is disconnected after the send timeout, and nothing of it stays. A client that reads
    slowly is not.
    """
    for n in range(40):
        await kv.put(f"/svc/{n}", "x" * 20_000)
    settings = settings_for(files, GATEWAY_SEND_TIMEOUT="2s", GATEWAY_MIN_RATE="0")
    async with gateway(etcd.endpoint, settings=settings) as server:
        stuck = await watch(server.base, "prefix=/svc/", tls=client(ca), receive_buffer=4096)
        slow = await watch(server.base, "prefix=/svc/", tls=client(ca), receive_buffer=4096)
        reading = asyncio.create_task(slow.until("synced"))
        await server.logged("stream end")
        await reading
        ends = [line["reason"] for line in server.lines_so_far if line["message"] == "stream end"]
        for stream in (stuck, slow):
            stream.writer.transport.abort()

        async def nothing() -> bool:
            return sockets(server.port) == []

        await eventually(nothing)

    assert ends == ["send-timeout"]


@pytest.mark.etcd
async def test_the_end(etcd: EmbeddedEtcd, files: Pair, ca: Ca) -> None:
    """At shutdown streams get their ``close``; idle connections and half handshakes do not hold up the end."""
    async with gateway(etcd.endpoint, settings=settings_for(files)) as server, contextlib.AsyncExitStack() as stack:
        half = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(5)]
        half[0].send(b"\x16\x03\x01\x02\x00")
        streams = [
            await stack.enter_async_context(await watch(server.base, "prefix=/a", tls=client(ca))) for _ in range(5)
        ]
        for stream in streams:
            await stream.until("synced")
        stopping = asyncio.create_task(server.stop())
        closes = [(await stream.until("close"))[-1] for stream in streams]
        status = await stopping

    assert {event.data["reason"] for event in closes} == {"drain"}
    assert status == 0


async def test_half_handshakes_give_way(files: Pair, ca: Ca) -> None:
    """At the limit of open files, connections that have not finished their handshake are closed first, oldest first."""
    settings = load({"etcd": NOWHERE, "tls_cert": str(files.cert), "tls_key": str(files.key)})
    service = Gateway(settings)
    tls = service.tls
    assert tls is not None
    admission = Admission(Capacity(10, 2))
    config = make_config(
        create_app(gateway=service),
        settings,
        admission,
        lambda http: TlsConnection(http, tls.for_clients(), tls.failed),
    )
    server = GatewayServer(config, service)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        port = listener.getsockname()[1]
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await server.listening.wait()
        half = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(30)]
        async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=client(ca)) as http:
            status = (await http.get("/livez")).status_code
        counts = admission.capacity.statistics()
        first_is_closed = await asyncio.to_thread(half[0].recv, 1) == b""
        server.should_exit = True
        await task

    assert status == 200
    assert (counts.connections, counts.evicted, first_is_closed) == (10, 21, True)
    assert admission.capacity.connections == 0


async def test_a_wrong_file_at_the_start(files: Pair) -> None:
    """The process ends with status 2 and one line that names the setting, the file and the fault."""
    files.key.write_text("nothing")
    process = await run("app", "serve", "--port=0", settings=settings_for(files), merged=True)
    assert process.stdout is not None
    lines = [line.decode() async for line in process.stdout]

    assert await process.wait() == 2
    assert lines[-1].endswith(
        f"GATEWAY_TLS_KEY (--tls-key): {files.key}: has no private key in PEM form, or a damaged one\n"
    )
    assert not any("Traceback" in line for line in lines)
