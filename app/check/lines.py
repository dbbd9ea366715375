"""Reads the events of a stream, SSE or NDJSON, as they arrive. The events keep what ``check --through`` needs."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

# Accepts gzip's header and zlib's.
ANY_HEADER = 32 + zlib.MAX_WBITS


@dataclass(frozen=True, slots=True)
class Line:
    """One event: its type, its cursor or "", and the longest silence that ``synced`` promises, in seconds."""

    type: str
    cursor: str = ""
    heartbeat: float = 0.0
    reason: str = ""  # of reset and close


class UnreadableError(Exception):
    """The bytes are not a stream of the gateway."""


class Lines:
    """The events in the bytes of one answer. *encoding* is its ``Content-Encoding``."""

    def __init__(self, encoding: str = "") -> None:
        self._encoding = encoding
        self._inflate = zlib.decompressobj(ANY_HEADER) if encoding in ("gzip", "deflate") else None
        self._rest = b""
        self._open: Line | None = None  # the SSE event whose block has not ended

    def feed(self, data: bytes) -> Iterator[Line]:
        """Yield each event that *data* completes. Raises UnreadableError."""
        if self._inflate is not None:
            try:
                data = self._inflate.decompress(data)
            except zlib.error as error:
                raise UnreadableError(f"it is not {self._encoding}: {error}") from None
        elif self._encoding not in ("", "identity"):
            raise UnreadableError(f"its Content-Encoding is {self._encoding}, which was not asked for")
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield from self._line(line.removesuffix(b"\r"))

    def _line(self, line: bytes) -> Iterator[Line]:
        if line.startswith(b"{"):
            yield _parsed(line)
        elif line.startswith(b"data:"):
            self._open = _parsed(line[5:])
        elif line.startswith(b"id:") and self._open is not None:
            cursor = line[3:].strip().decode("ascii", "replace")
            self._open = Line(self._open.type, cursor, self._open.heartbeat, self._open.reason)
        elif not line and self._open is not None:
            event, self._open = self._open, None
            yield event
        elif line and not line.startswith((b":", b"event:", b"id:", b"retry:")):
            raise UnreadableError(f"a line is neither SSE nor NDJSON of the gateway: {line[:60]!r}")


def _parsed(text: bytes) -> Line:
    try:
        event = json.loads(text)
        return Line(
            str(event["type"]),
            str(event.get("cursor", "")),
            float(event.get("heartbeat", 0.0)),
            str(event.get("reason", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnreadableError(f"a line is not an event of the gateway: {text[:60]!r}") from None
