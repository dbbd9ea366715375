"""How long the gateway holds a refused EventSource open, with a clock that the tests control."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.virtual_time import now, virtually

EVENT_SOURCE = {"Accept": "text/event-stream"}


def refused(draw: float, *, drained_after: float | None = None) -> tuple[httpx.Response, float]:
    """The answer to an EventSource whose range cannot be served, and the seconds that the answer took."""

    async def ask() -> httpx.Response:
        # The gateway does not run: it has no etcd, and never will.
        gateway = Gateway(load({"etcd": "http://127.0.0.1:1"}), clock=now, draw=lambda: draw)
        gateway.etcd._say_down("http://127.0.0.1:1", "away")
        if drained_after is not None:
            asyncio.get_running_loop().call_later(drained_after, gateway.drain)
        transport = httpx.ASGITransport(app=create_app(gateway=gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.get("/v1/watch?prefix=/svc/", headers=EVENT_SOURCE)

    return virtually(ask())


@pytest.mark.parametrize(("draw", "seconds"), [(0.0, 1.0), (0.5, 3.0), (0.99975, 4.999)])
def test_as_long_as_its_retry_and_no_longer(draw: float, seconds: float) -> None:
    """The stream is held open for its retry time, 1 to 5 s, and then closed."""
    answer, took = refused(draw)
    told = f"{1000 * seconds:.0f}"
    close = f'{{"type":"close","reason":"unavailable","retry_ms":{told},"detail":"etcd is out of reach"}}'
    assert (answer.status_code, took) == (200, seconds)
    assert answer.text.startswith(f"retry: {told}\n")
    assert answer.text.endswith(f"event: close\ndata: {close}\n\n")


def test_no_longer_than_to_a_stop() -> None:
    """A gateway that stops does not wait for refused clients."""
    answer, took = refused(0.5, drained_after=0.25)
    assert (answer.status_code, took) == (200, 0.25)
    assert "event: close\n" in answer.text


def test_not_at_all_during_a_stop() -> None:
    """During a stop a refused client is closed at once: another replica can serve it."""
    answer, took = refused(0.5, drained_after=0.0)
    assert (answer.status_code, took) == (200, 0.0)
    assert "event: close\n" in answer.text
