"""How HTTP/1.1 and HTTP/1.0 frame a body of unknown length. ``FastSink`` frames a stream's bytes this way."""

from __future__ import annotations


class Chunks:
    """The chunked coding of HTTP/1.1 (RFC 9112, section 7.1). The same bytes for successive clients are framed once."""

    __slots__ = ("_data", "_framed")
    last = b"0\r\n\r\n"

    def __init__(self) -> None:
        self._data: bytes | memoryview = b""
        self._framed = b""

    def of(self, data: bytes | memoryview) -> bytes:
        """Return *data* as one chunk. *data* must not be empty: an empty chunk ends the body."""
        if data is not self._data:
            self._framed = b"".join((b"%x\r\n" % len(data), data, b"\r\n"))
            self._data = data
        return self._framed

    def parts(self, *data: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
        """Return all of *data* as one chunk, in parts, of which some are *data* itself."""
        return (b"%x\r\n" % sum(map(len, data)), *data, b"\r\n")


class Unframed:
    """No framing: HTTP/1.0 has no chunks."""

    __slots__ = ()
    last = b""

    def of(self, data: bytes | memoryview) -> bytes | memoryview:
        """Return *data* unchanged."""
        return data

    def parts(self, *data: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
        """Return *data* unchanged."""
        return data
