"""The servers that are measured side by side, each started by the suite itself, behind one description."""

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
    """One event: when it was sent and when that was acknowledged, CLOCK_MONOTONIC in seconds."""

    sent: float
    acknowledged: float


@dataclass(frozen=True)
class Peer:
    """A server that is running, and how to read from it and write to it."""

    pid: int
    """What is measured: this process and all below it."""
    port: int
    request: bytes
    """What a subscriber sends."""
    ready: str
    """What has come to a subscriber that is there; empty: the head of its response."""
    mark: str
    """What stands before the number of an event. Numbers follow each other."""
    next_number: Callable[[], Awaitable[int]]
    publish: Callable[[], Awaitable[Published]]
    burst: Callable[[int], Awaitable[None]]
    """Publish so many, as fast as can be."""
    burst_size: int = 2000
    """Fewer for those who would take minutes over it; what counts is deliveries a second."""


def get(path: str, accept: str = "text/event-stream") -> bytes:
    """A GET as a subscriber sends it."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n".encode()


def event(number: int) -> bytes:
    """The event as the gateway would say it, for those who do not follow etcd themselves."""
    said = {"type": "put", "key": KEY, "value": VALUE, "create_revision": 2, "mod_revision": number, "version": number}
    return json.dumps(said, separators=(",", ":")).encode()


async def timed(act: Awaitable[object]) -> Published:
    """Around one publishing."""
    sent = time.monotonic()
    await act
    return Published(sent, time.monotonic())
