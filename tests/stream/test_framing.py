"""The bytes that a sink writes around a stream's bytes."""

from __future__ import annotations

import h11
import pytest

from app.stream.framing import Chunks, Unframed


def decoded(framed: bytes) -> bytes:
    """The body of a chunked response, as h11 reads it; the body must be complete."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed)
    body = b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return body
        else:
            assert isinstance(event, h11.Response), event


@pytest.mark.parametrize("parts", [[b"a"], [b"x" * 15, b"y" * 16, b"z" * 65_536], [b"\r\n0\r\n\r\n", b"0"]])
def test_chunks(parts: list[bytes]) -> None:
    """Another implementation of HTTP/1.1 finds the same bytes, whatever they are, and their end."""
    chunks = Chunks()
    framed = b"".join(chunks.of(part) for part in parts) + chunks.last

    assert decoded(framed) == b"".join(parts)


def test_a_view_is_a_chunk_too() -> None:
    """Each slice of a large write is a chunk."""
    assert Chunks().of(memoryview(b"abcdef")[2:5]) == Chunks().of(b"cde") == b"3\r\ncde\r\n"


def test_framed_once_for_all() -> None:
    """The same object several times in a row is framed once; an equal but different object may be framed anew."""
    chunks = Chunks()
    one, equal = b"ab" * 100, bytes(bytearray(b"ab" * 100))
    framed = chunks.of(one)

    assert chunks.of(one) is framed
    assert chunks.of(equal) == framed
    assert chunks.of(b"other") == b"5\r\nother\r\n"
    assert chunks.of(one) == framed


@pytest.mark.parametrize("framing", [Chunks(), Unframed()])
def test_parts_are_not_a_copy(framing: Chunks | Unframed) -> None:
    """The parts of a large write make the same bytes, and one of the parts is the object itself."""
    data = b"x" * 65_536
    parts = framing.parts(data)

    assert b"".join(parts) == framing.of(data)
    assert any(part is data for part in parts)
    several = framing.parts(data, b"more", data)
    assert b"".join(several) == framing.of(data + b"more" + data)
    assert sum(part is data for part in several) == 2


def test_unframed() -> None:
    """HTTP/1.0 gets the same bytes object, not a copy, and the end of the connection."""
    data = b"event: put\n\n"

    assert Unframed().of(data) is data
    assert Unframed.last == b""
