"""uvicorn's protocol as the gateway runs it: which names of uvicorn it uses, and how long it keeps a connection for the
next request, so that no request on its way is lost.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import logging
import os
import signal
import socket
import time
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import httptools
import pytest
import uvloop
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.core.capacity import Capacity
from app.gateway import Gateway
from app.main import create_app
from app.server import protocol as protocol_module
from app.server.admission import Admission
from app.server.protocol import UVICORN, GatewayProtocol, address
from app.server.run import make_config
from app.server.sockets import bind
from app.settings import load
from app.stream.transport import ClientTransport
from tests.support.collector import no_collector
from tests.support.fake_etcd import FakeEtcd
from tests.support.gateway import gateway
from tests.support.waiting import eventually, soon

KV = b"GET /v1/kv?prefix=/svc/ HTTP/1.1\r\nHost: a\r\n"
NOWHERE = "http://127.0.0.1:1"
REQUEST = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


class Asker:
    """One connection, on which requests are sent one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self) -> dict[str, str]:
        """Send a request; return the headers of the answer, with its status."""
        self.writer.write(REQUEST)
        return await self.answer()

    def push(self, data: bytes) -> None:
        """Write bytes to the kernel at once, whatever the loop is doing."""
        assert os.write(self.writer.get_extra_info("socket").fileno(), data) == len(data)

    async def answer(self) -> dict[str, str]:
        """The answer to what was sent before."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        found = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        await self.reader.readexactly(int(found["content-length"]))
        return {"status": head[0].split()[1], **found}

    async def closed(self) -> bool:
        """Wait until the server closes the connection; whether it closes in order."""
        async with asyncio.timeout(30):
            return await self.reader.read() == b""


@contextlib.asynccontextmanager
async def connection(port: int) -> AsyncIterator[Asker]:
    """A connection to a gateway."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Asker(reader, writer)
    finally:
        writer.close()


async def test_a_connection_is_kept() -> None:
    """A connection is kept for longer than by load balancers (60 s), and clients are told so that they leave first."""
    async with gateway(NOWHERE) as server, connection(server.port) as one:
        first, second = await one.ask(), await one.ask()

    assert (first["status"], second["status"]) == ("200", "200")
    assert first["keep-alive"] == "timeout=74"
    assert "connection" not in first
    assert load({}).keep_alive > 60


async def test_it_ends_when_nothing_comes() -> None:
    """An idle connection ends after its time, not before."""
    async with (
        gateway(NOWHERE, settings={"GATEWAY_KEEP_ALIVE": "2s"}) as server,
        connection(server.port) as one,
    ):
        since = time.monotonic()
        answer = await one.ask()
        assert await one.closed()
        lasted = time.monotonic() - since

    assert answer["keep-alive"] == "timeout=1"
    assert lasted > 1.9


async def test_not_at_all() -> None:
    """With 0 the answer tells the client that it is the last."""
    async with gateway(NOWHERE, settings={"GATEWAY_KEEP_ALIVE": "0"}) as server, connection(server.port) as one:
        answer = await one.ask()
        assert await one.closed()

    assert answer["connection"] == "close"
    assert "keep-alive" not in answer


async def test_idle_connections_do_not_hold_up_the_end() -> None:
    """At the end idle connections close at once, in order; the gateway does not wait for their time."""
    async with gateway(NOWHERE) as server, contextlib.AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(connection(server.port)) for _ in range(20)]
        for one in idle[:10]:
            await one.ask()
        server.process.send_signal(signal.SIGTERM)
        closed = [await one.closed() for one in idle]
        status = await server.stop()

    assert closed == [True] * 20
    assert status == 0


class Served:
    """The protocol in this process, so that the test can choose its moments."""

    def __init__(self, keep_alive: str, etcd: str = NOWHERE, *, limit: int = 100, **more: str) -> None:
        self.settings = settings = load({"etcd": etcd, "keep_alive": keep_alive, **more})
        self.admission = Admission(Capacity(limit, 10))
        self.gateway = Gateway(settings)
        self.config = config = make_config(create_app(gateway=self.gateway), settings, self.admission)
        config.load()
        self.state = ServerState()
        make: Any = config.http_protocol_class
        self._make = partial(make, config=config, server_state=self.state, app_state={})

    async def __aenter__(self) -> Served:
        listening = bind("127.0.0.1", 0, self.settings.send_buffer, "")
        self._server = await asyncio.get_running_loop().create_server(self._make, sock=listening)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        self._server.close()
        for protocol in list(self.state.connections):
            protocol.transport.abort()
        await asyncio.sleep(0)

    @property
    def protocol(self) -> GatewayProtocol:
        """The protocol of the only connection."""
        (found,) = self.state.connections
        assert isinstance(found, GatewayProtocol)
        return found


def run(work: object) -> None:
    """Run on the loop of production: its timers run before it reads again."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)  # type: ignore[arg-type]  # a coroutine


def test_a_request_that_comes_when_the_time_is_over() -> None:
    """A request came while the loop was busy, and the timer is due before the read: it is answered, not reset."""

    async def work() -> None:
        # On a busy machine, some 0.1 s pass before the loop is busy: the connection must still be there.
        async with Served("2s") as served, connection(served.port) as one:
            await one.ask()
            loop = asyncio.get_running_loop()

            def busy() -> None:
                loop.remove_reader(waking)
                one.push(REQUEST)
                time.sleep(2.5)  # the timer is due now

            waking, wake = socket.socketpair()
            with waking, wake:
                loop.add_reader(waking, busy)
                wake.send(b"x")
                assert (await one.answer())["status"] == "200"

    run(work())


@pytest.mark.parametrize(("read", "unread"), [(b"", REQUEST[:10]), (REQUEST[:10], b""), (REQUEST[:10], REQUEST[10:20])])
@pytest.mark.parametrize("complete", [True, False])
def test_a_request_that_comes_when_the_server_stops(read: bytes, unread: bytes, complete: bool) -> None:
    """A request that is arriving at the stop is answered, as the last of its connection, whether or not a part of its
    head has been read. An unfinished head is waited for, but not for long.
    """

    async def work() -> None:
        async with Served("60s") as served, connection(served.port) as one:
            await one.ask()
            protocol = served.protocol
            one.push(read)
            async with connection(served.port) as other:
                await other.ask()  # by now the server has read what the first client sent
            one.push(unread)
            protocol.shutdown()
            if complete:
                one.push(REQUEST[len(read + unread) :])
            answer = await one.answer()
            assert (answer["status"], answer["connection"]) == ("200" if complete else "408", "close")
            assert await one.closed()

    run(work())


def test_connections_are_counted_through_their_life() -> None:
    """Connections are counted as idle, busy, idle again, and gone; nothing stays counted."""

    async def work() -> None:
        async with Served("60s") as served:
            capacity = served.admission.capacity
            async with connection(served.port) as one:
                for _ in range(3):
                    await one.ask()
                    assert (capacity.connections, capacity.busy) == (1, 0)
                    assert served.protocol.cycle is None
                one.writer.write(REQUEST * 3)  # three pipelined requests
                for _ in range(3):
                    await one.answer()
                assert (capacity.connections, capacity.busy) == (1, 0)
                one.writer.write(b"POST /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
                assert (await one.answer())["status"] == "405"
                one.writer.write(b"12345" + REQUEST)
                assert (await one.answer())["status"] == "200"
            async with asyncio.timeout(30):
                while capacity.connections:  # noqa: ASYNC110  # waits for the loop's own work
                    await asyncio.sleep(0.01)

    run(work())


UPGRADE = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
LAST = REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize("together", [True, False], ids=["together", "apart"])
@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: %d\r\n\r\n" % len(REQUEST),
        b"Content-Length: 0%d\r\n\r\n" % len(REQUEST),
        b"Transfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["length", "zero-length", "chunked"],
)
def test_the_body_of_an_upgrade_is_no_request(head: bytes, together: bool) -> None:
    """The parser does not read it. Behind a proxy that passes Upgrade on, it was served as a request of its own, with
    whatever user it named, and the next client of the proxy got its answer.
    """

    async def work() -> None:
        async with Served("60s") as served, connection(served.port) as one:
            if together:
                one.push(UPGRADE + head + REQUEST * 2)
            else:
                one.push(UPGRADE + head)
                await soon(lambda: served.state.total_requests == 1)
                one.writer.write(REQUEST * 2)
            answer = await one.answer()
            assert (answer["status"], answer["connection"]) == ("200", "close")
            with contextlib.suppress(ConnectionResetError):  # what was sent after the close
                assert await one.closed()
            assert served.state.total_requests == 1

    run(work())


@pytest.mark.parametrize("length", [b"", b"Content-Length: 0\r\n"], ids=["none", "zero"])
def test_a_request_behind_an_upgrade(length: bytes) -> None:
    """Java's HttpClient asks for HTTP/2 with its first request, and keeps the connection. A request that came in the
    same packet was lost.
    """

    async def work() -> None:
        async with Served("60s") as served, connection(served.port) as one:
            one.push((UPGRADE + length + b"\r\n") * 2 + REQUEST)
            answers = [await one.answer() for _ in range(3)]
            one.push(UPGRADE + length + b"\r\n" + LAST)
            answers += [await one.answer() for _ in range(2)]
            assert [answer["status"] for answer in answers] == ["200"] * 5
            assert ["connection" in answer for answer in answers] == [False] * 4 + [True]
            assert await one.closed()

    run(work())


@pytest.mark.parametrize("leave", ["closes", "resets"])
def test_a_client_that_leaves_with_requests_waiting(leave: str, caplog: pytest.LogCaptureFixture) -> None:
    """A held answer ends with its client, although further requests wait; and no request is reported as a failure."""

    async def work() -> None:
        async with FakeEtcd() as fake, Served("60s", fake.endpoint) as served, served.gateway.running():
            fake.put(b"/svc/a")

            async def connected() -> bool:
                return served.gateway.upstream.member_known

            async def held() -> bool:
                return bool(served.gateway.registry.subscribers())

            async def gone() -> bool:
                return not (await held() or served.state.tasks or served.admission.capacity.connections)

            await eventually(connected)
            async with connection(served.port) as one:
                one.writer.write(KV + b"\r\n")
                tag = (await one.answer())["etag"].encode()
                one.writer.write((KV + b"If-None-Match: " + tag + b"\r\nPrefer: wait=60\r\n\r\n") * 3)
                await eventually(held)
                if leave == "resets":
                    one.writer.transport.abort()
                else:
                    one.writer.close()
                await eventually(gone, timeout=30)  # half of the wait, whose end releases them, too

    run(work())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


class Gone(asyncio.Transport):
    """A connection whose client has gone: the kernel knows no address any more."""

    def get_extra_info(self, _name: str, default: object = None) -> object:
        """See ``asyncio.BaseTransport``."""
        del default
        raise OSError(107, "Transport endpoint is not connected")


class Over6(asyncio.Transport):
    """A connection over IPv6."""

    def get_extra_info(self, _name: str, default: object = None) -> object:
        """See ``asyncio.BaseTransport``."""
        del default
        return ("::1", 80, 0, 0)


class OverUnix(asyncio.Transport):
    """A connection over a Unix socket without a name."""

    def get_extra_info(self, _name: str, default: object = None) -> object:
        """See ``asyncio.BaseTransport``."""
        del default
        return ""


def test_the_address_of_a_connection() -> None:
    """A client that has gone has none. Of IPv6, flow and scope are left out. A Unix socket has a path."""
    assert address(Gone(), "peername") is None
    assert address(OverUnix(), "peername") == ""
    assert address(Over6(), "sockname") == ("::1", 80)
    assert address(asyncio.Transport(), "peername") is None


def test_a_client_that_resets_before_it_is_accepted() -> None:
    """Its requests have no address, which quotas and the audit log need: none is served, and nothing is left."""

    async def work() -> None:
        async with Served("60s") as served:
            app, asked = served.config.loaded_app, []

            async def counted(scope: Any, receive: Any, send: Any) -> None:
                asked.append(scope["client"])
                await app(scope, receive, send)

            served.config.loaded_app = counted
            client = socket.create_connection(("127.0.0.1", served.port))  # the loop accepts only after all this
            client.sendall(REQUEST)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            async with connection(served.port) as after:  # accepted after the one that was reset
                assert (await after.ask())["status"] == "200"
                assert [peer is not None for peer in asked] == [True]
                assert served.admission.capacity.connections == len(served.state.connections) == 1

    run(work())


FORGOTTEN = {
    "nothing was sent": b"",
    "half a head": REQUEST[:10],
    "not HTTP": b"hello\r\n\r\n",
    "an answer": REQUEST,
    "an error": b"GET /v1/watch HTTP/1.1\r\nHost: a\r\n\r\n",
    "answers in a row": 3 * REQUEST,
    "a body that nobody reads": b"POST /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n12\r\n",
    "a stream": b"GET /v1/watch?prefix=/a HTTP/1.1\r\nHost: a\r\n\r\n",
    "a stream over HTTP/1.0": b"GET /v1/watch?prefix=/a HTTP/1.0\r\n\r\n",
}


@pytest.mark.parametrize("sent", FORGOTTEN.values(), ids=FORGOTTEN)
def test_a_closed_connection_does_not_wait_for_the_collector(sent: bytes) -> None:
    """Everything of a closed connection is freed at once: thousands that waited made the next collection long."""

    async def work() -> None:
        async with Served("60s") as served, served.gateway.running():
            connections = served.state.connections

            async def connected() -> bool:
                return bool(connections)

            async def forgotten() -> bool:
                return about() is None

            async with connection(served.port) as one:
                await eventually(connected)
                about = weakref.ref(served.protocol)
                one.writer.write(sent)
                if sent.endswith(b"\r\n"):
                    await one.reader.readuntil(b"\r\n\r\n")
            await eventually(forgotten)

    with no_collector():
        run(work())


STREAM = b"GET /v1/watch?prefix=/a HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("leave", ["close", "write_eof"])
def test_a_stream_keeps_nothing_of_the_server(leave: str) -> None:
    """While a stream lasts, uvicorn's protocol, parser and request are freed. The connection is still counted, bytes
    that its client sends have no effect, and a half-close ends the stream.
    """

    async def work() -> None:
        async with FakeEtcd() as fake, Served("60s", fake.endpoint) as served, served.gateway.running():
            connections, capacity = served.state.connections, served.admission.capacity

            def soon(condition: Callable[[], bool]) -> asyncio.Future[None]:
                async def holds() -> bool:
                    return condition()

                return asyncio.ensure_future(eventually(holds))

            async with connection(served.port) as one:
                await soon(lambda: bool(connections))
                parser = weakref.ref(served.protocol)
                one.writer.write(STREAM)
                await one.reader.readuntil(b"\r\n\r\n")
                await soon(lambda: parser() is None)
                assert [type(each) for each in connections] == [ClientTransport]
                assert (capacity.connections, capacity.busy, len(served.gateway.registry)) == (1, 1, 1)
                one.writer.write(REQUEST)
                one.push(b"bytes that are not HTTP")
                for each in connections:
                    each.shutdown()
                async with connection(served.port) as other:
                    await other.ask()  # by now the server has read what the first client sent
                assert served.gateway.registry.statistics().subscribers == 1
                getattr(one.writer, leave)()
                await soon(lambda: not connections)
                assert (capacity.connections, capacity.busy) == (0, 0)
                await soon(lambda: not served.gateway.registry.statistics().subscribers)

    with no_collector():
        run(work())


# --- the names of uvicorn that are used -------------------------------------------------------------------------------


def used_names() -> dict[str, set[str]]:
    """The names of uvicorn's classes that app/server/protocol.py reads, sets, calls and overrides, from its source."""
    tree = ast.parse(inspect.getsource(protocol_module))
    (own,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "GatewayProtocol")
    methods = {node.name for node in own.body if isinstance(node, ast.FunctionDef)}
    used: dict[str, set[str]] = {name: set() for name in UVICORN}
    used["HttpToolsProtocol"] |= {name for name in methods if hasattr(HttpToolsProtocol, name)} - {"__init__"}
    owners = {"cycle": "RequestResponseCycle", "config": "Config", "server_state": "ServerState"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        of = node.value
        name = of.attr if isinstance(of, ast.Attribute) else of.id if isinstance(of, ast.Name) else ""
        if name in owners:
            used[owners[name]].add(node.attr)
    attributes = [node for node in ast.walk(own) if isinstance(node, ast.Attribute)]
    of_self = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "self"}
    used["HttpToolsProtocol"] |= {name for name in of_self - methods if not name.startswith("_")}
    return used


def test_what_is_used_of_uvicorn_is_listed() -> None:
    """The list has exactly the used names: it is what a maintainer checks when uvicorn changes."""
    assert used_names() == UVICORN


async def test_what_is_used_of_uvicorn_is_there() -> None:
    """The installed uvicorn has every name in the list: otherwise the first request that needs it would fail."""
    settings = load({"etcd": NOWHERE})
    config = make_config(create_app(gateway=Gateway(settings)), settings, Admission(Capacity(100, 10)))
    config.load()
    state = ServerState()
    protocol = HttpToolsProtocol(config, state, {}, asyncio.get_running_loop())
    protocol.on_message_begin()
    transport: Any = None
    cycle = RequestResponseCycle(
        scope=protocol.scope,
        transport=transport,
        flow=FlowControl(transport),
        logger=protocol.logger,
        access_logger=protocol.access_logger,
        access_log=False,
        default_headers=[],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=True,
        on_response=protocol.on_response_complete,
    )
    assert isinstance(protocol.parser, httptools.HttpRequestParser)

    there = {
        "HttpToolsProtocol": protocol,
        "RequestResponseCycle": cycle,
        "Config": config,
        "ServerState": state,
    }
    missing = [f"{name}.{used}" for name, names in UVICORN.items() for used in names if not hasattr(there[name], used)]
    assert missing == []
