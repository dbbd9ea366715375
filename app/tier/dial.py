"""Connections to the tier above: over TCP, with or without TLS, or over a Unix socket."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

import httpx

from ..dial import Streams, connect

# Opens a connection to where a URL leads. Raises httpx.TransportError.
Dial = Callable[[httpx.URL], Awaitable[Streams]]

# Seconds for a connection to be made, TLS included, once the addresses are known.
CONNECT_TIMEOUT = 5.0


def unix(path: str) -> Dial:
    """Return what connects to a Unix socket, whatever the URL."""

    async def dial(_url: httpx.URL) -> Streams:
        try:
            return await asyncio.open_unix_connection(path)
        except OSError as error:
            raise httpx.ConnectError(str(error)) from None

    return dial


def tcp(tls: ssl.SSLContext | None) -> Dial:
    """Return what connects to a URL's host and port. *tls*: for https."""
    if tls is not None:
        tls.set_alpn_protocols(["http/1.1"])

    async def dial(url: httpx.URL) -> Streams:
        context = tls if url.scheme == "https" else None
        port = url.port or (80 if context is None else 443)
        try:
            return await connect(url.host, port, context, timeout=CONNECT_TIMEOUT)
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {CONNECT_TIMEOUT:g} s") from None
        except OSError as error:
            raise httpx.ConnectError(str(error)) from None

    return dial
