"""TLS on the ports: what passes through it, what a client may do to it, and that a stream behaves as on plain HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.server import tls_connection
from app.server.tls_connection import MAX_UNASKED, TlsConnection
from app.settings import load
from app.tls import Tls
from tests.support.certificates import Ca, Pair
from tests.support.waiting import HANG, eventually

REQUEST = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


class Above(asyncio.Protocol):
    """A protocol above TLS that records what it is told."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.said: list[str] = []
        self.received = b""
        self.keeps = False  # the answer to a half-close
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Record the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.said.append("made")

    def data_received(self, data: bytes) -> None:
        """Record the bytes."""
        self.received += data

    def eof_received(self) -> bool:
        """Record the half-close."""
        self.said.append("eof")
        return self.keeps

    def pause_writing(self) -> None:
        """Record it."""
        self.said.append("pause")

    def resume_writing(self) -> None:
        """Record it."""
        self.said.append("resume")

    def connection_lost(self, _exc: Exception | None) -> None:
        """Record the end."""
        self.said.append("lost")
        self.lost.set()


class Served:
    """A listener with TLS in this process."""

    def __init__(self, tls: Tls, ca: Ca) -> None:
        self.tls = tls
        self.ca = ca
        self.connections: list[TlsConnection] = []
        self.above: list[Above] = []
        self.port = 0

    def make(self) -> TlsConnection:
        """The protocol of a new connection."""
        self.above.append(Above())
        self.connections.append(TlsConnection(self.above[-1], self.tls.for_clients(), self.tls.failed))
        return self.connections[-1]

    @property
    def failures(self) -> dict[str, int]:
        """The reasons for which handshakes have failed."""
        return {reason: count for reason, count in self.tls.statistics().failures.items() if count}

    @contextlib.asynccontextmanager
    async def client(self, **more: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection after its handshake."""
        context = ssl.create_default_context(cafile=str(self.ca.cert))
        for name, value in more.items():
            setattr(context, name, value)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context)
        try:
            # The client's handshake ends before the server's: with TLS 1.3, the server still lacks a message.
            writer.write(b"hello")
            above = self.above[-1]

            async def arrived() -> bool:
                return above.received == b"hello"

            await eventually(arrived)
            above.received = b""
            yield reader, writer
        finally:
            writer.transport.abort()

    @contextlib.contextmanager
    def raw(self) -> Iterator[socket.socket]:
        """A TCP connection that does not block."""
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            sock.setblocking(False)
            yield sock


@pytest.fixture(name="ca")
def _ca(tmp_path: Path) -> Ca:
    return Ca(tmp_path)


@pytest.fixture(name="pair")
def _pair(ca: Ca) -> Pair:
    return ca.sign("gateway")


@pytest.fixture(name="served")
async def _served(ca: Ca, pair: Pair) -> AsyncIterator[Served]:
    settings = load({"tls_cert": str(pair.cert), "tls_key": str(pair.key)})
    served = Served(Tls(settings, clock=lambda: 0.0, wall=lambda: _valid(pair)), ca)
    server = await asyncio.get_running_loop().create_server(served.make, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    yield served
    server.close()
    for connection in served.connections:
        connection.abort()
    await server.wait_closed()


def _valid(pair: Pair) -> float:
    """A time at which the certificate is valid."""
    return pair.cert.stat().st_mtime


async def drained(sock: socket.socket) -> bytes:
    """All bytes until the other side closes the connection."""
    found = b""
    async with asyncio.timeout(HANG):
        with contextlib.suppress(ConnectionResetError):
            while data := await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
                found += data
    return found


def hello() -> bytes:
    """The first bytes of a handshake. It offers TLS 1.3 and 1.2; Debian's Python would offer older versions, too."""
    out, context = ssl.MemoryBIO(), ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
    return out.read()


async def test_bytes_pass_both_ways(served: Served) -> None:
    """Large and small writes arrive whole, in order, whatever kind of buffer they are."""
    data = bytes(range(256)) * 4096
    async with served.client() as (reader, writer):
        writer.write(data)
        above = served.above[0]

        async def arrived() -> bool:
            return len(above.received) == len(data)

        await eventually(arrived)
        above.transport.write(data)
        above.transport.write(b"")
        above.transport.writelines([b"a", bytearray(b"b"), memoryview(b"c")])
        answer = await reader.readexactly(len(data) + 3)
        extra = {name: above.transport.get_extra_info(name) for name in ("ssl_object", "sslcontext", "peername")}

    assert above.received == data
    assert answer == data + b"abc"
    assert extra["ssl_object"].version() == "TLSv1.3"
    assert extra["sslcontext"] is served.tls.for_clients()
    assert extra["peername"][0] == "127.0.0.1"


async def test_a_handshake_in_single_bytes(served: Served) -> None:
    """The first flight may come in any pieces."""
    with served.raw() as sock:
        for byte in hello():
            sock.send(bytes([byte]))
            await asyncio.sleep(0)
        answer = await asyncio.get_running_loop().sock_recv(sock, 1 << 16)

    assert answer[0] == 0x16


async def test_the_end_is_told_in_tls(served: Served) -> None:
    """``close`` sends what is written, then TLS's own end, so that a client can tell it from a cut."""
    async with served.client() as (reader, _writer):
        above = served.above[0]
        above.transport.write(b"last")
        above.transport.close()
        above.transport.close()
        above.transport.write(b"never")
        received = await reader.read()  # raises without close_notify, because of the ragged end
        await above.lost.wait()

    assert received == b"last"
    assert above.said[-1] == "lost"
    assert served.failures == {}


@pytest.mark.parametrize("keeps", [False, True])
async def test_a_half_close(served: Served, *, keeps: bool) -> None:
    """A client that has said everything still gets its answer, if the protocol above wants that."""
    async with served.client() as (_reader, writer):
        above = served.above[0]
        above.keeps = keeps
        sock = writer.get_extra_info("socket")
        sock.shutdown(socket.SHUT_WR)

        async def heard() -> bool:
            return "eof" in above.said

        await eventually(heard)
        assert above.transport.is_closing() is not keeps
        above.transport.close()
        await above.lost.wait()

    assert above.said == ["made", "eof", "lost"]


async def test_ready_means_that_the_kernel_has_everything(served: Served) -> None:
    """With a limit of 0, the protocol is paused as soon as the kernel does not take a write, and resumed by the last
    byte: the fast sink relies on that.
    """
    async with served.client() as (reader, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads, too
        above = served.above[0]
        above.transport.set_write_buffer_limits(high=0)
        written = 0
        while "pause" not in above.said:
            above.transport.write(bytes(100_000))
            written += 100_000
            assert written < 10_000_000, (
                above.said,
                above.transport.get_write_buffer_size(),
                above.transport.is_closing(),
            )
        kept = above.transport.get_write_buffer_size()
        assert above.transport.get_write_buffer_limits() == (0, 0)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        await reader.readexactly(written)

        async def resumed() -> bool:
            return "resume" in above.said

        await eventually(resumed)
        assert above.transport.get_write_buffer_size() == 0

    assert 0 < kept < 200_000
    assert above.said[:3] == ["made", "pause", "resume"]


async def test_reading_can_be_paused(served: Served) -> None:
    """While the protocol wants nothing it gets nothing, and nothing is lost."""
    async with served.client() as (_reader, writer):
        above = served.above[0]
        above.transport.pause_reading()
        assert not above.transport.is_reading()
        writer.write(b"a" * 300_000)
        await asyncio.sleep(0.05)
        assert above.received == b""
        above.transport.resume_reading()

        async def arrived() -> bool:
            return len(above.received) == 300_000

        await eventually(arrived)


async def test_a_handshake_that_is_never_finished(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection ends after HANDSHAKE_TIMEOUT, whether its client has said nothing, or half of a handshake."""
    monkeypatch.setattr(tls_connection, "HANDSHAKE_TIMEOUT", 0.2)
    with served.raw() as silent, served.raw() as half:
        half.send(hello()[:50])
        ends = [await drained(sock) for sock in (silent, half)]

    assert ends == [b"", b""]
    assert served.failures == {"timeout": 2}
    assert [above.said for above in served.above] == [["made", "lost"]] * 2


async def test_a_finished_handshake_has_no_timeout(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the handshake the HTTP protocol alone decides how long the connection lives."""
    timers: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def keep(delay: float, callback: Callable[..., object], *arguments: object) -> asyncio.TimerHandle:
        timer = call_later(delay, callback, *arguments)
        if delay == tls_connection.HANDSHAKE_TIMEOUT:
            timers.append(timer)
        return timer

    monkeypatch.setattr(tls_connection, "HANDSHAKE_TIMEOUT", HANG - 1)
    monkeypatch.setattr(loop, "call_later", keep)
    async with served.client() as (reader, _writer):
        assert [timer.cancelled() for timer in timers] == [True]
        served.above[0].transport.write(b"alive")
        answer = await reader.readexactly(5)

    assert answer == b"alive"
    assert served.failures == {}


async def test_plain_http_is_answered(served: Served) -> None:
    """A client that forgot the s of https learns so, in plain HTTP."""
    with served.raw() as sock:
        sock.send(REQUEST)
        answer = await drained(sock)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"https-required"' in answer
    assert served.failures == {"plain-http": 1}
    assert served.above[0].received == b""


@pytest.mark.parametrize("data", [b"\x00", b"\x80\x2e\x01\x03\x01", b"ssh-2.0", bytes(100)])
async def test_what_is_not_tls(data: bytes, served: Served) -> None:
    """Anything else just ends."""
    with served.raw() as sock:
        sock.send(data)
        assert await drained(sock) == b""

    assert served.failures == {"not-tls": 1}


async def test_a_broken_handshake(served: Served) -> None:
    """Garbage in the form of a record is refused with an alert."""
    with served.raw() as sock:
        sock.send(b"\x16\x03\x01\x00\x05hello")
        answer = await drained(sock)

    assert answer[0] == 0x15
    assert sum(served.failures.values()) == 1


async def test_an_old_version(served: Served) -> None:
    """TLS 1.1 is refused. The client's own library may refuse it first."""
    sent = bytearray(hello())
    with served.raw() as sock:
        versions = sent.find(b"\x00\x2b\x00\x05\x04\x03\x04\x03\x03")  # the extension with 1.3 and 1.2
        assert versions > 0
        sent[versions + 5 : versions + 9] = b"\x03\x02\x03\x01"
        sock.send(sent)
        answer = await drained(sock)

    assert answer[0] == 0x15
    assert served.failures == {"unsupported": 1}


async def test_a_client_that_does_not_trust_the_certificate(served: Served) -> None:
    """The client's refusal is counted under its own reason."""

    def connect() -> None:  # asyncio would leave without an alert
        with socket.create_connection(("127.0.0.1", served.port)) as sock, pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")

    await asyncio.to_thread(connect)

    async def counted() -> bool:
        return served.failures == {"refused-by-client": 1}

    await eventually(counted)


async def test_clients_that_leave_early(served: Served) -> None:
    """A FIN or an RST before the end of the handshake releases everything."""
    with served.raw() as sock:
        sock.send(hello())
    with served.raw() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def counted() -> bool:
        return served.failures == {"left": 2}

    await eventually(counted)
    assert [above.said for above in served.above] == [["made", "lost"]] * 2


async def test_garbage_after_the_handshake(served: Served) -> None:
    """Bytes that are no record end the connection, and reach nobody."""
    async with served.client() as (_reader, writer):
        os.write(writer.get_extra_info("socket").fileno(), b"garbage that is not a record")
        await served.above[0].lost.wait()

    assert served.above[0].received == b""


async def test_keys_cannot_be_requested_for_ever(served: Served) -> None:
    """Each request for new keys is answered. A client that only sends such requests is disconnected."""
    context = str(served.ca.cert)
    command = ("openssl", "s_client", "-connect", f"127.0.0.1:{served.port}", "-CAfile", context, "-tls1_3")
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdin is not None

    async def connected() -> bool:
        return bool(served.connections) and served.connections[0].get_extra_info("ssl_object").version() is not None

    await eventually(connected)
    sent = 0
    with contextlib.suppress(ConnectionError):
        while not served.above[0].lost.is_set():
            process.stdin.write(b"K\n")
            await process.stdin.drain()
            sent += 1
            await asyncio.sleep(0)
            assert sent < 100 * MAX_UNASKED
    await served.above[0].lost.wait()
    process.kill()
    await process.wait()

    assert served.above[0].received == b""
