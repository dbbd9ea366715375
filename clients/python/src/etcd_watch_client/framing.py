"""Bytes of a stream in, events out: NDJSON and SSE. Pure: no I/O, no clock.

Chunks are not lines: an event may come in any pieces, and a character may be split. What a broken stream leaves
unfinished is never an event.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, Protocol

from .events import Message, parse

Format = Literal["ndjson", "sse"]
MEDIA_TYPES: dict[Format, str] = {"ndjson": "application/x-ndjson", "sse": "text/event-stream"}

_LINE_END = re.compile(rb"\r\n|\n|\r")


class Framer(Protocol):
    """Splits one stream into its events."""

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Yield the events that *chunk* completes."""


class Ndjson:
    """One JSON object per line. An empty line is only a sign of life."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Yield the events that *chunk* completes."""
        self._rest += chunk
        if b"\n" not in chunk:  # do not search a long line again with each of its chunks
            return
        # Only at line feeds: JSON may contain U+2028 and the like unescaped.
        *lines, self._rest = self._rest.split(b"\n")
        yield from map(parse, filter(None, map(bytearray.strip, lines)))


class Sse:
    """Server-Sent Events: blocks of fields, each ended by an empty line."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._id: str | None = None
        self._first = True

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Yield the events that *chunk* completes."""
        # The carriage return that ended the last chunk may be half of a line end, so it was kept.
        kept = self._rest.endswith(b"\r")
        self._rest += chunk
        if not kept and not _LINE_END.search(chunk):
            return
        whole = self._rest[:-1] if self._rest.endswith(b"\r") else self._rest
        *lines, rest = _LINE_END.split(whole)
        self._rest = bytearray(rest) + self._rest[len(whole) :]
        for line in lines:
            message = self._take(bytes(line))
            if message is not None:
                yield message

    def _take(self, line: bytes) -> Message | None:
        if self._first:
            self._first, line = False, line.removeprefix(b"\xef\xbb\xbf")
        if line:
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                self._data.append(value)
            elif name == b"id" and b"\0" not in value:
                self._id = value.decode(errors="replace")
            return None
        data, self._data = self._data, []
        cursor, self._id = self._id, None
        return parse(b"\n".join(data), cursor) if data else None


def framer(form: Format) -> Framer:
    """Return the framer of a new stream."""
    return Sse() if form == "sse" else Ndjson()
