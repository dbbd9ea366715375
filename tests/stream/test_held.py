"""How long a refused EventSource is held open, by a clock that the tests have in hand."""

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
    """What one is answered for a range that cannot be served, and the seconds that it took."""

    async def ask() -> httpx.Response:
        # Not running: it has no etcd, and never will.
        gateway = Gateway(load({"etcd": "http://127.0.0.1:1"}), clock=now, draw=lambda: draw)
        gateway.upstream._say_down("http://127.0.0.1:1", "away")
        if drained_after is not None:
            asyncio.get_running_loop().call_later(drained_after, gateway.drain)
        transport = httpx.ASGITransport(app=create_app(gateway=gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.get("/v1/watch?prefix=/svc/", headers=EVENT_SOURCE)

    return virtually(ask())


@pytest.mark.parametrize(("draw", "seconds"), [(0.0, 1.0), (0.5, 3.0), (0.99975, 4.999)])
def test_as_long_as_its_retry_and_no_longer(draw: float, seconds: float) -> None:
    """It is told to come back after 1 to 5 s, and is closed then."""
    answer, took = refused(draw)
    told = f"{1000 * seconds:.0f}"
    close = f'{{"type":"close","reason":"unavailable","retry_ms":{told},"detail":"etcd is out of reach"}}'
    assert (answer.status_code, took) == (200, seconds)
    assert answer.text.startswith(f"retry: {told}\n")
    assert answer.text.endswith(f"event: close\ndata: {close}\n\n")


def test_no_longer_than_to_a_stop() -> None:
    """A gateway that stops does not wait for those that it has refused."""
    answer, took = refused(0.5, drained_after=0.25)
    assert (answer.status_code, took) == (200, 0.25)
    assert "event: close\n" in answer.text


def test_not_at_all_during_a_stop() -> None:
    """Another replica has what it wants."""
    answer, took = refused(0.5, drained_after=0.0)
    assert (answer.status_code, took) == (200, 0.0)
    assert "event: close\n" in answer.text
