"""``app.api.no_worker``: what a hub answers while no worker can start."""

from __future__ import annotations

import json

import httpx
import pytest

from app.api.no_worker import refuse
from app.main import create_refusing_app
from app.settings import load

ORIGIN = "https://app.example"


def client(*, origins: str = "") -> httpx.AsyncClient:
    """A client of the app."""
    app = create_refusing_app(load({"cors_origins": origins})) if origins else refuse
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway")


@pytest.mark.parametrize("target", ["/readyz", "/livez", "/metrics", "/v1/kv?prefix=", "/v1/watch?prefix=", "/", "/no"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_every_request_is_refused_for_now(method: str, target: str) -> None:
    """By a problem, which says when to come back."""
    async with client() as http:
        answer = await http.request(method, target)
    assert answer.status_code == 503
    assert method == "HEAD" or answer.json()["code"] == "no-worker"
    assert 1 <= int(answer.headers["retry-after"]) <= 5


async def test_an_event_source_comes_back() -> None:
    """After a 503 it would give up for good. A page of another origin may see the answer, too."""
    async with client(origins=ORIGIN) as http:
        accept = {"Accept": "text/event-stream", "Origin": ORIGIN}
        answer = await http.get("/v1/watch?prefix=", headers=accept)
        other = await http.get("/v1/kv?prefix=", headers=accept)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.text.startswith("retry: ")
    close = json.loads(answer.text.partition("event: close\ndata: ")[2].partition("\n\n")[0])
    assert (close["type"], close["reason"]) == ("close", "unavailable")
    assert other.status_code == 503
