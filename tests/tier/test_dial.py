"""``app.tier.dial``: connections as httpx wants them."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from app.tier import dial
from app.tier.dial import tcp
from app.tier.transport import StreamTransport
from tests.support.connections import serving


async def take(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close a connection."""
    writer.close()


async def test_what_httpx_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is an error of httpx, and so is a connection that is not made in time."""
    async with serving(take) as port:
        url = f"http://127.0.0.1:{port}/"
    async with httpx.AsyncClient(transport=StreamTransport(tcp(None))) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(url)
        monkeypatch.setattr(dial, "CONNECT_TIMEOUT", 0.0)
        with pytest.raises(httpx.ConnectTimeout, match="no connection within 0 s"):
            await client.get(url)
