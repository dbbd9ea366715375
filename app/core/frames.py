"""The blocks of a stream: SSE and NDJSON, made of the same JSON objects.

``id:`` is the last line of its SSE block, so that a block which is cut off loses the event and the id together. In
NDJSON, the same cursor is the member ``"cursor"``.

A *form* is a format, or a format and ``GZIP``: the same bytes as the blocks of a gzip member. What goes to one
subscriber, and small, is stored; what many receive is deflated (``app.core.deflate``).

Every blank line of an SSE stream ends a block that has data. From any other blank line, common parsers (httpx-sse,
@microsoft/fetch-event-source) make an event with empty data, and their users' ``JSON.parse`` throws. So comments and
the greeting end with one line feed, and belong to the block of the next event.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

from .deflate import HEADER, deflated, stored
from .encoding import compact, event_body
from .events import Batch, Delete, Event

Format = Literal["sse", "ndjson"]
# The end of a form whose bytes are blocks of a gzip member.
GZIP = "+gzip"
# How events are written for a reader: form, encoding, epoch, and whether without values.
Representation = tuple[str, str, str, bool]
# The form of the items in a list of ``/v1/kv``: separated by commas.
LIST = "list"
# Bytes of a put's JSON body before the members that an item of a list has, too.
_BEFORE_ITEM = len(b'{"type":"put",')


def _gzipped(form: str) -> str | None:
    """Return the format of a form with ``GZIP``; None for a format alone."""
    return form[: -len(GZIP)] if form.endswith(GZIP) else None


def control(form: str, kind: str, members: Mapping[str, Hashable], cursor: str | None = None) -> bytes:
    """Return one event that is not part of etcd's history: reset, synced, bookmark, status, close.

    Equal events are one object: those who join together, and those who get a bookmark at one revision, get the same.
    """
    return _control(form, kind, cursor, tuple(members), *members.values())


# Typed: 15 and 15.0 are equal, and not the same JSON. An event may name ranges, which clients choose: 64 events of the
# longest heads take 8 MiB.
@functools.lru_cache(maxsize=64, typed=True)
def _control(form: str, kind: str, cursor: str | None, names: tuple[str, ...], *values: Hashable) -> bytes:
    if (plain := _gzipped(form)) is not None:
        return stored(_control(plain, kind, cursor, names, *values))
    data: dict[str, object] = {"type": kind, **dict(zip(names, values, strict=True))}
    if form == "ndjson":
        if cursor is not None:
            data["cursor"] = cursor
        return (compact(data) + "\n").encode()
    tail = f"id: {cursor}\n\n" if cursor is not None else "\n"
    return f"event: {kind}\ndata: {compact(data)}\n{tail}".encode()


def close_event(form: str, members: Mapping[str, Hashable], retry_ms: int) -> bytes:
    """Return ``close``, the last event of a stream, with the milliseconds after which an EventSource reconnects.

    A browser that reconnects by itself waits as long as the last ``retry:`` stated; it does not look into the data.
    """
    if (plain := _gzipped(form)) is not None:
        return stored(close_event(plain, members, retry_ms))
    close = control(form, "close", members)
    return close[:-1] + f"retry: {retry_ms}\n\n".encode() if form == "sse" else close


def comment(form: str, text: str) -> bytes:
    """Return bytes that keep a connection alive and mean nothing: a comment in SSE, an empty line in NDJSON.

    Write a comment only between two blocks: the comment becomes the first line of the next block.
    """
    if (plain := _gzipped(form)) is not None:
        return stored(comment(plain, text))
    return f": {text}\n".encode() if form == "sse" else b"\n"


def greeting(form: str, instance: str, retry_ms: int) -> bytes:
    """Return the first bytes of a stream. NDJSON has no greeting: its headers are its first bytes."""
    if (plain := _gzipped(form)) is not None:
        return HEADER + stored(greeting(plain, instance, retry_ms))
    return f"retry: {retry_ms}\n: connected {instance}\n".encode() if form == "sse" else b""


def batch_frame(batch: Batch, form: str, encoding: str, epoch: str, *, keys_only: bool = False) -> bytes:
    """Return one revision: all events but the last have ``more``, and only the last carries the cursor."""
    return events_frame(batch.events, form, encoding, f"{epoch}-{batch.revision}", keys_only=keys_only)


def events_frame(
    events: Sequence[Event], form: str, encoding: str, cursor: str | None, *, keys_only: bool = False
) -> bytes:
    """Return events that belong together, or the first of them.

    All have ``more``, except the last if there is a *cursor*: then the last event carries the cursor instead.
    """
    if (plain := _gzipped(form)) is not None:
        return deflated(events_frame(events, plain, encoding, cursor, keys_only=keys_only))
    parts: list[bytes] = []
    final = len(events) - 1 if cursor is not None else len(events)
    for index, event in enumerate(events):
        if form == "sse":
            parts.append(b"event: delete\ndata: " if isinstance(event, Delete) else b"event: put\ndata: ")
        parts.append(event_body(event, encoding, keys_only=keys_only))
        if index < final:
            parts.append(b',"more":true}\n\n' if form == "sse" else b',"more":true}\n')
        else:
            parts.append((f"}}\nid: {cursor}\n\n" if form == "sse" else f',"cursor":"{cursor}"}}\n').encode())
    return b"".join(parts)


def snapshot_frame(bodies: Sequence[bytes], form: str) -> bytes:
    """Return some items of a snapshot, from their JSON bodies.

    In a stream, they look like live puts and carry no cursor. In ``LIST``, they are the items of a list.
    """
    if (plain := _gzipped(form)) is not None:
        return deflated(snapshot_frame(bodies, plain))
    if not bodies:
        return b""
    if form == LIST:
        return b"{" + b"},{".join([body[_BEFORE_ITEM:] for body in bodies]) + b"}"
    if form == "sse":
        return b"event: put\ndata: " + b"}\n\nevent: put\ndata: ".join(bodies) + b"}\n\n"
    return b"}\n".join(bodies) + b"}\n"
