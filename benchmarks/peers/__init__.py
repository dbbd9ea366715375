"""The servers that are measured side by side: the suite starts each, and one description fits all."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

# A put of 30 bytes is about 130 bytes of JSON.
KEY = "/bench/instance-1"
VALUE = "10.0.0.7:8080;weight=1;zone=a;"


@dataclass(frozen=True)
class Published:
    """One event: when it was sent and when it was acknowledged, CLOCK_MONOTONIC in seconds."""

    sent: float
    acknowledged: float


@dataclass(frozen=True)
class Peer:
    """A running server, how to read from it, and how to write to it."""

    pid: int
    """The process that is measured, with all its descendants."""
    port: int
    request: bytes
    """The request of a subscriber."""
    ready: str
    """The text that a subscriber has received once it is ready; empty: the head of its response."""
    mark: str
    """The text before the number of an event. The numbers are consecutive."""
    next_number: Callable[[], Awaitable[int]]
    publish: Callable[[], Awaitable[Published]]
    burst: Callable[[int], Awaitable[None]]
    """Publish so many events, as fast as possible."""
    burst_size: int = 2000
    """Smaller for peers that would need minutes; the figure is deliveries a second."""


def get(path: str, accept: str = "text/event-stream", coding: str = "") -> bytes:
    """A GET as a subscriber sends it."""
    asks = f"Accept-Encoding: {coding}\r\n" if coding else ""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n{asks}\r\n".encode()


def event(number: int) -> bytes:
    """The event as the gateway would send it, for peers that do not follow etcd themselves."""
    said = {"type": "put", "key": KEY, "value": VALUE, "create_revision": 2, "mod_revision": number, "version": number}
    return json.dumps(said, separators=(",", ":")).encode()


async def timed(act: Awaitable[object]) -> Published:
    """Time one publishing."""
    sent = time.monotonic()
    await act
    return Published(sent, time.monotonic())
