"""One bounded HTTP GET, for the issuer's keys: no redirects, a limit of bytes, a limit of time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from http import HTTPStatus
from urllib.parse import urlsplit

import h11

from .. import __version__
from ..dial import connect


class FetchError(Exception):
    """There is no usable answer. The message says why, for operators."""


async def fetch(url: str, *, most: int, timeout: float) -> bytes:
    """Return the body of a 200 answer of at most *most* bytes, within *timeout* seconds.

    TLS certificates must be signed by one of the system's CAs, as OpenSSL finds them. A redirect is a refusal: keys
    come from the address that the operator has named, or not at all.

    Raises:
        FetchError: there is no such answer.
    """
    try:
        async with asyncio.timeout(timeout):
            return await _get(url, most)
    except TimeoutError:
        raise FetchError(f"no complete answer within {timeout:g} s") from None
    except OSError as error:
        reason = os.strerror(error.errno) if isinstance(error, ConnectionError) and error.errno else str(error)
        raise FetchError(reason or type(error).__name__) from None
    except (h11.ProtocolError, ValueError) as error:
        raise FetchError(f"not an HTTP answer: {error}") from None


async def _get(url: str, most: int) -> bytes:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    # Reading the CAs takes 20 ms.
    tls = await asyncio.to_thread(ssl.create_default_context) if secure else None
    reader, writer = await connect(parts.hostname or "", parts.port or (443 if secure else 80), tls)
    try:
        http = h11.Connection(h11.CLIENT)
        request = h11.Request(
            method="GET",
            target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            headers=[
                ("Host", parts.netloc.rpartition("@")[2]),
                ("User-Agent", f"etcd-watch-gateway/{__version__}"),
                ("Accept", "application/jwk-set+json, application/json"),
                ("Accept-Encoding", "identity"),
                ("Connection", "close"),
            ],
        )
        writer.write((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        return await _body(http, reader, most)
    finally:
        with contextlib.suppress(OSError):
            writer.transport.abort()


async def _body(http: h11.Connection, reader: asyncio.StreamReader, most: int) -> bytes:
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(1 << 16))
        elif isinstance(event, h11.Response):
            if event.status_code != HTTPStatus.OK:
                raise FetchError(f"the answer is {event.status_code}, not 200")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > most:
                raise FetchError(f"the answer has more than {most} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            raise FetchError("the connection ended before the answer")
