"""``app.api.from_hub``: what a worker answers from the hub. With real workers: tests/workers/test_team.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.requests import Request

from app.api import from_hub as module
from app.api.feeds import FeedsEndpoint
from app.api.from_hub import ask_hub, body_of
from app.api.health import HealthEndpoints
from app.core.errors import GatewayError, UnavailableError
from app.core.keys import KeyRange
from app.gateway import Gateway
from app.tier.client import Answer
from app.tier.upstream import GatewayUpstream
from app.watch.statistics import PinStatistics


def worker(get: Callable[..., Coroutine[Any, Any, Answer]], *pins: PinStatistics) -> Gateway:
    """A worker whose hub answers like this, and which has these pins."""
    upstream = GatewayUpstream.__new__(GatewayUpstream)
    upstream.client = cast("Any", SimpleNamespace(get=get))
    return cast(
        "Gateway",
        SimpleNamespace(
            hub=object(),
            upstream=upstream,
            registry=SimpleNamespace(feeds=SimpleNamespace(pin_statistics=lambda: pins)),
            access=SimpleNamespace(ready=True, troubles=dict),
            tls=None,
            draining=False,
        ),
    )


async def test_the_hubs_answer_is_the_answer() -> None:
    """With the request's own query."""

    async def get(path: str, query: str) -> Answer:
        return Answer(200, httpx.Headers(), json.dumps({path: query}).encode())

    answer = await ask_hub(worker(get), "/v1/feeds", b"prefix=%2Fa")
    assert body_of(answer) == {"/v1/feeds": "prefix=%2Fa"}


async def test_a_pin_that_the_worker_cannot_hold() -> None:
    """The clients of this worker are refused, and the hub does not know why. The worker is ready for all others."""
    hubs: list[dict[str, str]] = [{"range": "prefix=/b/", "state": "unavailable", "trouble": "denied"}]

    async def get(_path: str, _query: str) -> Answer:
        return Answer(200, httpx.Headers(), json.dumps({"status": "ok"} | ({"pins": hubs} if hubs else {})).encode())

    async def readiness(*pins: PinStatistics) -> tuple[int, Any]:
        health = HealthEndpoints(worker(get, *pins), CollectorRegistry(), cast("FeedsEndpoint", None))
        answer = await health.readyz(cast("Request", None))
        return answer.status_code, json.loads(bytes(answer.body))

    large = PinStatistics(KeyRange("prefix", b"/a/"), "unavailable", "too large")
    described = {"range": "prefix=/a/", "state": "unavailable", "trouble": "too large"}
    assert await readiness(large) == (200, {"status": "ok", "pins": [*hubs, described]})
    hubs.clear()
    assert await readiness(large) == (200, {"status": "ok", "pins": [described]})
    assert await readiness(PinStatistics(KeyRange("prefix", b"/a/"), "held", "")) == (200, {"status": "ok"})


async def test_a_hub_that_refuses() -> None:
    """The query leaves no room for the worker's own headers, say. The problem came with the status 200."""

    async def get(_path: str, _query: str) -> Answer:
        return Answer(431, httpx.Headers(), b'{"code": "head-too-large", "detail": "too long"}')

    for path in ("/v1/feeds", "/metrics"):
        with pytest.raises(GatewayError) as refused:
            await ask_hub(worker(get), path)
        assert refused.value.status == 503
    ready = Answer(503, httpx.Headers(), b'{"status": "waiting for etcd"}')

    async def waits(_path: str, _query: str) -> Answer:
        return ready

    assert await ask_hub(worker(waits), "/readyz", expected=(200, 503)) is ready


async def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is about to end: the client is told to come back."""
    monkeypatch.setattr(module, "TIMEOUT", 0.0)

    async def get(_path: str, _query: str) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(UnavailableError) as refused:
        await ask_hub(worker(get), "/metrics")
    assert "does not answer" in refused.value.detail
