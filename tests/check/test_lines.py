"""``app.check.lines``: the same events of a stream, in either format, however its bytes are divided or compressed."""

from __future__ import annotations

import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.check.lines import Line, Lines, UnreadableError

SSE = (
    b"retry: 3170\n: connected gw\n"
    b'event: reset\ndata: {"type":"reset","reason":"initial"}\nid: 3f9ac17b-0\n\n'
    b'event: put\ndata: {"type":"put","key":"/svc/a"}\n\n'
    b'event: synced\r\ndata: {"type":"synced","heartbeat":15}\r\nid: 3f9ac17b-12\r\n\r\n'
    b": waiting\n"
    b'event: close\ndata: {"type":"close","reason":"drain"}\nretry: 9\n\n'
    b'event: put\ndata: {"type":"put"}\nid: 3f9ac17b-13\n'
)
NDJSON = (
    b'{"type":"reset","reason":"initial","cursor":"3f9ac17b-0"}\n{"type":"put","key":"/svc/a"}\n\n'
    b'{"type":"synced","heartbeat":15,"cursor":"3f9ac17b-12"}\n{"type":"close","reason":"drain"}\n{"type":"put"'
)
EVENTS = [
    Line("reset", "3f9ac17b-0", reason="initial"),
    Line("put"),
    Line("synced", "3f9ac17b-12", heartbeat=15.0),
    Line("close", reason="drain"),
]


@pytest.mark.parametrize("body", [SSE, NDJSON], ids=["SSE", "NDJSON"])
@pytest.mark.parametrize("encoding", ["", "gzip", "deflate"])
@given(cuts=st.lists(st.integers(0, 600), max_size=8))
def test_the_same_events_however_the_bytes_are_divided(body: bytes, encoding: str, cuts: list[int]) -> None:
    """An event that has not ended is no event."""
    if encoding:
        press = zlib.compressobj(wbits={"gzip": 31, "deflate": 15}[encoding])
        body = press.compress(body) + press.flush(zlib.Z_SYNC_FLUSH)
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    lines = Lines(encoding)
    found = [event for start, end in itertools.pairwise(edges) for event in lines.feed(body[start:end])]

    assert found == EVENTS


@pytest.mark.parametrize(
    ("encoding", "body", "text"),
    [
        ("", b"<html>\n", "a line is neither SSE nor NDJSON of the gateway: b'<html>'"),
        ("", b"data: <p>\n", "a line is not an event of the gateway: b' <p>'"),
        ("", b"{}\n", "a line is not an event of the gateway: b'{}'"),
        ("", b'{"type":"put","heartbeat":[]}\n', "a line is not an event of the gateway:"),
        ("br", b"x", "its Content-Encoding is br, which was not asked for"),
        ("gzip", b"plain text", "it is not gzip:"),
    ],
)
def test_what_is_not_a_stream_is_named(encoding: str, body: bytes, text: str) -> None:
    """A proxy may put its own text into a stream."""
    with pytest.raises(UnreadableError) as caught:
        list(Lines(encoding).feed(body))

    assert str(caught.value).startswith(text)
