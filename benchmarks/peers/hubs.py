"""The peers that know nothing of etcd: they get the gateway's own JSON over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from app.dev.etcd import free_ports
from benchmarks.peers import Peer, Published, event, get, timed
from benchmarks.peers.etcd import listening

MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")

NGINX = """
load_module {module};
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
worker_processes 1;
worker_rlimit_nofile 20000;
daemon off;
events {{ worker_connections 18000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000;
    nchan_max_reserved_memory 256M;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /sub {{ nchan_subscriber eventsource; nchan_channel_id b; nchan_subscriber_first_message newest; }}
        location = /pub {{
            nchan_publisher; nchan_channel_id b; nchan_message_buffer_length 5000; nchan_message_timeout 10m;
        }}
    }}
}}
"""

PUSHPIN = """
[global]
include=/usr/lib/pushpin/internal.conf
rundir={folder}/run
ipc_prefix=bench-
port_offset=0
stats_connection_ttl=120
[runner]
services=condure,pushpin-proxy,pushpin-handler
http_port=127.0.0.1:{port}
logdir={folder}/log
log_level=1
client_buffer_size=8192
client_maxconn=18000
[proxy]
routesfile={folder}/routes
zurl_out_specs=ipc://{folder}/zurl-in
zurl_out_stream_specs=ipc://{folder}/zurl-in-stream
zurl_in_specs=ipc://{folder}/zurl-out
updates_check=off
[handler]
push_in_spec=ipc://{folder}/push-in
push_in_sub_specs=ipc://{folder}/push-sub
push_in_sub_connect=false
push_in_http_addr=127.0.0.1
push_in_http_port={publish_port}
push_in_http_max_headers_size=10000
push_in_http_max_body_size=1000000
command_spec=ipc://{folder}/command
message_rate=10000000
message_hwm=10000000
message_wait=5000
id_cache_ttl=60
connection_subscription_max=20
subscription_linger=60
stats_connection_ttl=120
stats_report_interval=10
"""

ZURL = """
[General]
in_spec=ipc://{folder}/zurl-in
in_stream_spec=ipc://{folder}/zurl-in-stream
out_spec=ipc://{folder}/zurl-out
in_req_spec=ipc://{folder}/zurl-req
defpolicy=allow
max_open_requests=2000
buffer_size=200000
timeout=600
"""


class Publisher:
    """Numbers events from 1 and POSTs them, over a new connection for each call: Pushpin closes it after one."""

    def __init__(self, port: int, path: str, bodies: Callable[[range], list[bytes]]) -> None:
        self._port = port
        self._path = path
        self._bodies = bodies
        self._next = 1

    async def next_number(self) -> int:
        """The number of the next event."""
        return self._next

    async def publish(self) -> Published:
        """Publish one event."""
        return await timed(self.burst(1))

    async def burst(self, count: int) -> None:
        """Publish so many events, pipelined: the next event is sent before the answer to the previous one."""
        bodies = self._bodies(range(self._next, self._next + count))
        self._next += count
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(b"".join(map(self._post, bodies)))
            for _ in bodies:
                await _accepted(reader)
        finally:
            writer.close()

    def _post(self, body: bytes) -> bytes:
        return f"POST {self._path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def _accepted(reader: asyncio.StreamReader) -> None:
    """Read one answer to its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    if head.split(b" ", 2)[1][:1] != b"2":
        raise RuntimeError(head.decode())
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line.partition(b":")[2]))


@contextlib.asynccontextmanager
async def _process(*command: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(*command, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def nchan() -> AsyncIterator[Peer]:
    """Nchan, the nginx module in C, with one worker."""
    with tempfile.TemporaryDirectory(prefix="etcd-watch-gateway-") as folder:
        [port] = free_ports(1)
        configuration = Path(folder) / "nginx.conf"
        configuration.write_text(NGINX.format(module=MODULE, folder=folder, port=port))
        command = ("nginx", "-e", f"{folder}/error.log", "-p", folder, "-c", str(configuration))
        publisher = Publisher(port, "/pub", lambda numbers: [event(number) for number in numbers])
        async with _process(*command) as process:
            await listening(port)
            yield Peer(
                pid=process.pid,
                port=port,
                request=get("/sub"),
                ready="",
                mark='"mod_revision":',
                next_number=publisher.next_number,
                publish=publisher.publish,
                burst=publisher.burst,
            )


async def _grip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The backend of Pushpin: it answers "hold this open, it follows channel b"."""
    await reader.readuntil(b"\r\n\r\n")
    hello = b"event: ready\ndata:\n\n"
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nGrip-Hold: stream\r\nGrip-Channel: b\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(hello), hello)
    )
    await writer.drain()
    writer.close()


async def _follows(port: int) -> None:
    """Wait until a subscriber is served: before Pushpin's processes know each other, a request is refused, or lost."""
    async with asyncio.timeout(30):
        while True:
            await listening(port)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(get("/sub"))
                async with asyncio.timeout(1):
                    await reader.readuntil(b"event: ready")
                return
            except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
                await asyncio.sleep(0.05)
            finally:
                writer.close()


def _items(numbers: range) -> list[bytes]:
    """All events in one body: a connection takes one POST."""

    def item(number: int) -> dict[str, Any]:
        content = f"event: put\ndata: {event(number).decode()}\nid: {number}\n\n"
        return {"channel": "b", "formats": {"http-stream": {"content": content}}}

    return [json.dumps({"items": [item(number) for number in numbers]}).encode()]


@contextlib.asynccontextmanager
async def pushpin() -> AsyncIterator[Peer]:
    """Pushpin 1.36: a proxy (Rust) and a handler (C++), three processes."""
    with tempfile.TemporaryDirectory(prefix="ewg-", dir="/tmp") as folder:  # the path of a socket must be short
        port, publish_port, origin = free_ports(3)
        publisher = Publisher(publish_port, "/publish/", _items)
        for name in ("run", "log"):
            (Path(folder) / name).mkdir()
        (Path(folder) / "routes").write_text(f"* 127.0.0.1:{origin}\n")
        for name, text in (("pushpin.conf", PUSHPIN), ("zurl.conf", ZURL)):
            (Path(folder) / name).write_text(text.format(folder=folder, port=port, publish_port=publish_port))
        quiet = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL}
        async with (
            await asyncio.start_server(_grip, "127.0.0.1", origin, backlog=4096),
            _process("zurl", f"--config={folder}/zurl.conf", **quiet),
            _process("pushpin", f"--config={folder}/pushpin.conf", **quiet) as process,
        ):
            await listening(publish_port)
            await _follows(port)
            yield Peer(
                pid=process.pid,
                port=port,
                request=get("/sub"),
                ready="event: ready",
                mark='"mod_revision":',
                next_number=publisher.next_number,
                publish=publisher.publish,
                burst=publisher.burst,
                burst_size=200,
            )


def missing() -> list[str]:
    """The Debian packages that are missing."""
    return [
        package
        for package, there in (
            ("libnginx-mod-nchan", MODULE.exists() and shutil.which("nginx")),
            ("pushpin", shutil.which("pushpin") and shutil.which("zurl")),
        )
        if not there
    ]
