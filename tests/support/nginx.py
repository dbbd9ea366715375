"""A real nginx in front of gateways, as an ingress is: Debian's package ``nginx``, configured by the test."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.dev.etcd import free_ports
from tests.support.waiting import eventually

DOCS = Path(__file__).parent.parent.parent / "docs" / "operations.md"
# Per process: a stream takes a connection on either side, and a test opens 2,000 streams.
CONNECTIONS = 8192

# The frame of every configuration: it reads and writes none of the system's files. If root starts nginx, the workers
# switch to another user unless the configuration names one, and then cannot write below pytest's folder.
FRAME = """
{user}
{main}
daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log info;
events {{ worker_connections {connections}; }}
http {{
    access_log access.log;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {http}
}}
"""


def recipe(name: str) -> str:
    """The block of docs/operations.md after ``<!-- nginx: name -->``."""
    found = re.findall(
        rf"<!-- nginx: {re.escape(name)} -->\n```nginx\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(found) == 1, name
    return str(found[0])


def _binary() -> Path:
    # Debian installs nginx where only root's PATH leads.
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.skip("NOT RUN: the gateway behind nginx: nginx is not installed")
    return Path(found)


class Nginx:
    """A running nginx."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, port: int, tls_port: int) -> None:
        self._process = process
        self._folder = folder
        self._port = port
        self._tls_port = tls_port

    @property
    def base(self) -> str:
        """The URL of ``listen 80``."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def tls_base(self) -> str:
        """The URL of ``listen 443``."""
        return f"https://127.0.0.1:{self._tls_port}"

    @property
    def errors(self) -> str:
        """The error log."""
        return (self._folder / "error.log").read_text(encoding="utf-8")

    @property
    def requests(self) -> str:
        """The access log; nginx logs a stream when the stream has ended."""
        return (self._folder / "access.log").read_text(encoding="utf-8")

    def reload(self) -> None:
        """Reload the configuration: new workers start, and the old workers end (``worker_shutdown_timeout``)."""
        self._process.send_signal(signal.SIGHUP)

    async def _listens(self) -> bool:
        assert self._process.returncode is None, self.errors
        try:
            _reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    async def start(self) -> None:
        """Wait until nginx listens."""
        await eventually(self._listens)

    async def stop(self) -> None:
        """End nginx with all its connections."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        await self._process.wait()


def _write(folder: Path, config: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "nginx.conf").write_text(config, encoding="utf-8")


@contextlib.asynccontextmanager
async def nginx(folder: Path, gateways: Sequence[str], http: str, *, main: str = "") -> AsyncIterator[Nginx]:
    """An nginx that runs in *folder*, in front of *gateways* (URLs).

    *http* is the content of ``http {}``, written as for production: ``listen 80`` and ``listen 443`` become free ports
    of 127.0.0.1, ``gateway-0:8080`` and ``gateway-1:8080`` become the gateways. *main* is the content outside the
    block.
    """
    port, tls_port = free_ports(2)
    http = re.sub(r"\blisten 80\b", f"listen 127.0.0.1:{port}", http)
    http = re.sub(r"\blisten 443\b", f"listen 127.0.0.1:{tls_port}", http)
    for number, gateway in enumerate(gateways):
        http = http.replace(f"gateway-{number}:8080", urlsplit(gateway).netloc)
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    config = FRAME.format(user=user, main=main, connections=CONNECTIONS, http=http)
    _write(folder, config)
    process = await asyncio.create_subprocess_exec(
        _binary(), "-p", folder, "-c", "nginx.conf", "-e", "error.log", stderr=asyncio.subprocess.DEVNULL
    )
    running = Nginx(process, folder, port, tls_port)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()
