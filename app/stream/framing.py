"""How HTTP/1.1 and HTTP/1.0 frame a body of unknown length: what ``FastSink`` writes around a stream's bytes."""

from __future__ import annotations


class Chunks:
    """The chunked coding of HTTP/1.1 (RFC 9112, section 7.1); what is sent to many in a row is framed once."""

    __slots__ = ("_data", "_framed")
    last = b"0\r\n\r\n"

    def __init__(self) -> None:
        self._data: bytes | memoryview = b""
        self._framed = b""

    def of(self, data: bytes | memoryview) -> bytes:
        """*data*, never empty, as one chunk."""
        if data is not self._data:
            self._framed = b"".join((b"%x\r\n" % len(data), data, b"\r\n"))
            self._data = data
        return self._framed


class Unframed:
    """As it is: what HTTP/1.0 has instead of chunks."""

    __slots__ = ()
    last = b""

    def of(self, data: bytes | memoryview) -> bytes | memoryview:
        """*data*."""
        return data
