"""The check's HTTP/1.1 client: a GET, and a stream that ends in one of the ways in which clients disconnect.

``h11`` reads and writes the protocol. The client opens the sockets itself, because a client library always disconnects
properly, and the check must also reset connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import h11

from .. import __version__
from ..dial import connect
from ..settings import SettingsError
from ..urls import before_port
from .verdict import GRACE

# Seconds without a byte of the response, while the check reads counts.
REQUEST_TIMEOUT = 10.0
AGENT = f"etcd-watch-gateway-check/{__version__}"


class UnreachableError(Exception):
    """A server is unreachable, or its response is not as expected. The message says which server, and why."""


class RefusedError(UnreachableError):
    """The gateway itself refuses the request for now: see ``own_refusal``."""


class Departure(Enum):
    """The ways in which a client disconnects. The streams of a round use them in turn."""

    CLOSE = "closed"
    RESET = "reset"
    HALF_CLOSE = "half-closed"
    UNREAD = "gone before the first byte"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. The names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What the client trusts and shows, by curl's names: *cacert* in addition to the system's CAs."""

    cacert: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return the context. Raises SettingsError if a file cannot be used."""
        context = ssl.create_default_context()
        # The gateway's own certificate is enough for --cacert, without the certificate of its CA.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        flag, path = "--cacert", self.cacert
        try:
            if self.cacert is not None:
                context.load_verify_locations(self.cacert)
            if self.cert is not None:
                flag, path = "--cert" if self.key is None else "--cert, --key", self.cert
                # A password would be asked for at the terminal.
                context.load_cert_chain(self.cert, self.key, password=lambda: "")
        except (OSError, ValueError) as error:  # an SSLError is an OSError, and its strerror quotes OpenSSL's source
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            raise SettingsError(f"{flag}: {path} cannot be used: {reason}") from None
        return context


class Client:
    """Sends the requests. Verifies TLS certificates."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._given = tls

    async def get(self, url: str, headers: Mapping[str, str]) -> bytes:
        """Return the body of a 200 response. Raises UnreachableError for everything else."""
        answer = await self.answer(url, headers)
        if answer.status != HTTPStatus.OK:
            raise UnreachableError(f"{url}: {_refusal(answer.status, answer.body)}")
        return answer.body

    async def answer(
        self, url: str, headers: Mapping[str, str], *, method: str = "GET", timeout: float = REQUEST_TIMEOUT
    ) -> Answer:
        """Return the answer, whatever its status is. Raises UnreachableError if there is none."""
        connection = Connection(url, headers, self._tls_for(url), timeout, method)
        with explained(url):
            try:
                await connection.send()
                status = await connection.head()
                return Answer(status, connection.headers, await connection.read_all())
            finally:
                await connection.close()

    async def protocol(self, url: str) -> str:
        """Return the protocol that the server of an ``https`` URL chooses: ``h2``, ``http/1.1``, or "" for none.

        Call this last: the context offers ``h2`` from then on, and ``Connection`` does not speak it.
        """
        tls = self._tls_for(url)
        if tls is None:
            return ""
        tls.set_alpn_protocols(["h2", "http/1.1"])
        connection = Connection(url, {}, tls, REQUEST_TIMEOUT)
        with explained(url):
            try:
                await connection.connect()
                return connection.protocol
            finally:
                await connection.close()

    def connection(self, url: str, headers: Mapping[str, str]) -> Connection:
        """Return a connection for one GET, without a timeout."""
        return Connection(url, headers, self._tls_for(url))

    def stream(self, url: str, headers: Mapping[str, str], departure: Departure) -> Stream:
        """Return a stream that is not open yet."""
        return Stream(url, headers, self._tls_for(url), departure)

    def _tls_for(self, url: str) -> ssl.SSLContext | None:
        return self._tls if url.startswith("https://") else None

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._given if self._given is not None else TlsFiles().context()


class Connection:
    """One request and its response. *timeout* is the limit of each wait, in seconds; None waits for ever."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None,
        timeout: float | None = None,
        method: str = "GET",
    ) -> None:
        self.url = url
        self.address = ""  # the client's own address
        self.protocol = ""  # that TLS has chosen
        self.headers: Mapping[str, str] = {}  # of the answer, by their names in lower case
        self._method = method
        self._headers = headers
        self._tls = tls
        self._timeout = timeout
        self._http = h11.Connection(h11.CLIENT)
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        """Connect, with TLS if the URL asks for it."""
        parts = split(self.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        async with asyncio.timeout(self._timeout):
            self._reader, self._writer = await connect(parts.hostname or "", port, self._tls)
        name = self._writer.get_extra_info("sockname")
        # As the gateway writes it.
        self.address = f"{before_port(name[0])}:{name[1]}"
        if (tls := self._writer.get_extra_info("ssl_object")) is not None:
            self.protocol = tls.selected_alpn_protocol() or ""

    async def send(self) -> None:
        """Connect, and send the request."""
        await self.connect()
        self.request()

    def request(self) -> None:
        """Send the request, after ``connect``."""
        assert self._writer is not None, "connected"
        parts = split(self.url)
        headers = {"Host": parts.netloc, "User-Agent": AGENT, "Accept-Encoding": "identity", **self._headers}
        request = h11.Request(
            method=self._method.encode(),
            target=(parts._replace(scheme="", netloc="").geturl() or "/").encode(),
            headers=[(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        )
        self._writer.write((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))

    async def head(self) -> int:
        """Wait for the head of the response, keep its headers, and return its status."""
        while not isinstance(answer := await self._event(), h11.Response):
            pass  # 1xx
        self.headers = {name.decode(): value.decode("latin-1") for name, value in answer.headers}
        return answer.status_code

    async def accepted(self) -> None:
        """Wait for the head of a 200 response. Raises UnreachableError, or RefusedError, with the text of a refusal."""
        status = await self.head()
        if status != HTTPStatus.OK:
            body = await self.read_all()
            kind = RefusedError if own_refusal(status, body) else UnreachableError
            raise kind(f"{self.url}: {_refusal(status, body)}")

    async def read(self) -> bytes:
        """Return the next part of the body, or b"" at its end."""
        event = await self._event()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def read_all(self) -> bytes:
        """Return the rest of the body."""
        body = bytearray()
        while data := await self.read():
            body += data
        return bytes(body)

    async def _event(self) -> h11.Event:
        while not isinstance(event := self._http.next_event(), h11.Event):
            async with asyncio.timeout(self._timeout):
                data = await self._reader.read(1 << 16)
            if not data and self._http.their_state is h11.SEND_RESPONSE:
                raise EOFError("Remote end closed connection without response")
            self._http.receive_data(data)
        return event

    async def close(self) -> None:
        """Close the connection properly: TLS close_notify, then TCP FIN."""
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(GRACE):
                    await self._writer.wait_closed()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._writer is not None:
            self._writer.transport.abort()


class Stream(Connection):
    """One client of a range. Call ``open``, then ``leave``."""

    def __init__(self, url: str, headers: Mapping[str, str], tls: ssl.SSLContext | None, departure: Departure) -> None:
        super().__init__(url, headers, tls)
        self.departure = departure

    async def open(self) -> None:
        """Connect, and wait for ``synced``. With ``Departure.UNREAD``, disconnect right after the request instead.

        Raises:
            UnreachableError: the stream cannot be opened.
        """
        with explained(self.url):
            await self.send()
            if self.departure is Departure.UNREAD:
                self.abort()
            else:
                await self.accepted()
                await self._synced()

    async def _synced(self) -> None:
        rest = b""
        while data := await self.read():
            *lines, rest = (rest + data).split(b"\n")
            for event in map(json.loads, filter(None, map(bytes.strip, lines))):
                if event["type"] == "synced":
                    return
                if event["type"] == "close":
                    raise EOFError(f"the stream was closed: {event['reason']}")
        raise EOFError("the stream ended before it was synced")

    async def leave(self) -> None:
        """Disconnect in the stream's way."""
        writer = self._writer
        if writer is None or writer.transport.is_closing():
            return
        with contextlib.suppress(OSError, TimeoutError):
            if self.departure is Departure.RESET:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.abort()
                return
            if self.departure is Departure.HALF_CLOSE and writer.can_write_eof():
                writer.write_eof()
                async with asyncio.timeout(GRACE):
                    await self._reader.read(-1)  # until the gateway closes its side
            await self.close()


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn each failure of the connection or of the protocol into an UnreachableError."""
    try:
        yield
    except (OSError, ValueError, EOFError, h11.ProtocolError) as error:
        raise UnreachableError(f"{url}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError) and not error.errno:
        return "timed out"
    if isinstance(error, ConnectionError) and error.errno:
        # asyncio's message names the address, but not the reason.
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def own_refusal(status: int, body: bytes) -> str:
    """Return why the gateway itself refuses a request for now: it is at a limit or a quota, or has no etcd.

    Empty for any other answer, and for a refusal of a proxy, which is no problem.
    """
    problem = _problem(body) if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE) else ""
    return f"{status} {problem}" if problem else ""


def _refusal(status: int, body: bytes) -> str:
    """Return the code and the detail of a problem, or the beginning of the body."""
    return f"{status} {_problem(body) or body[:200].decode('utf-8', 'replace').strip()}".strip()


def _problem(body: bytes) -> str:
    """Return the code and the detail of a problem; "" if *body* is none."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        problem = json.loads(body)
        return f"{problem['code']}: {problem['detail']}"
    return ""


def split(url: str) -> SplitResult:
    """Return the parts of *url*. Raises UnreachableError if *url* is not a valid HTTP URL with a host."""
    try:
        parts = urlsplit(url)
        if url.isascii() and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            parts.hostname.encode("idna")  # as the lookup does: fails if a label is too long, or empty
            return parts
    except ValueError:
        pass
    raise UnreachableError(f"{url!r} is not a URL; use the form http://127.0.0.1:8080")
