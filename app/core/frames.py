"""The blocks of a stream: SSE and NDJSON made of the same JSON objects.

``id:`` is the last line of its SSE block (a block cut before its end loses event and id together); in NDJSON the
same cursor is the member ``"cursor"``.

Every blank line of an SSE stream ends a block that has data. Common parsers (httpx-sse, @microsoft/fetch-event-source)
make an event with empty data of any other blank line, and their users' ``JSON.parse`` throws. So comments and the
greeting end with one line feed, and belong to the block of the next event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .encoding import compact, event_body
from .events import Batch, Delete

Format = Literal["sse", "ndjson"]


def control(form: str, kind: str, members: dict[str, object], cursor: str | None = None) -> bytes:
    """One event that is not of etcd's history: reset, synced, bookmark, status, close."""
    data = {"type": kind, **members}
    if form == "ndjson":
        if cursor is not None:
            data["cursor"] = cursor
        return (compact(data) + "\n").encode()
    tail = f"id: {cursor}\n\n" if cursor is not None else "\n"
    return f"event: {kind}\ndata: {compact(data)}\n{tail}".encode()


def comment(form: str, text: str) -> bytes:
    """Something that keeps a connection alive and means nothing: NDJSON has only the empty line for it.

    To be written between two blocks only: it becomes the first line of the next one.
    """
    return f": {text}\n".encode() if form == "sse" else b"\n"


def greeting(form: str, instance: str, retry_ms: int) -> bytes:
    """The first bytes of a stream. NDJSON has no word for them: its headers are its first bytes."""
    return f"retry: {retry_ms}\n: connected {instance}\n".encode() if form == "sse" else b""


def batch_frame(batch: Batch, form: str, encoding: str, epoch: str) -> bytes:
    """One revision: all events but the last say ``more``, only the last carries the cursor."""
    cursor = f"{epoch}-{batch.revision}".encode()
    parts: list[bytes] = []
    final = len(batch.events) - 1
    for index, event in enumerate(batch.events):
        if form == "sse":
            parts.append(b"event: delete\ndata: " if isinstance(event, Delete) else b"event: put\ndata: ")
        parts.append(event_body(event, encoding))
        if index < final:
            parts.append(b',"more":true}\n\n' if form == "sse" else b',"more":true}\n')
        elif form == "sse":
            parts += (b"}\nid: ", cursor, b"\n\n")
        else:
            parts += (b',"cursor":"', cursor, b'"}\n')
    return b"".join(parts)


def snapshot_frame(bodies: Sequence[bytes], form: str) -> bytes:
    """Some items of a snapshot, by their bodies: they look like live puts and carry no cursor."""
    if not bodies:
        return b""
    if form == "sse":
        return b"event: put\ndata: " + b"}\n\nevent: put\ndata: ".join(bodies) + b"}\n\n"
    return b"}\n".join(bodies) + b"}\n"
