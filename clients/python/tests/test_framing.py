"""Events come whole out of chunks that are cut anywhere."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from etcd_watch_client.errors import StreamEnd
from etcd_watch_client.events import Bookmark, Entry, Message, Put, parse
from etcd_watch_client.framing import Format, Sse, framer
from hypothesis import given
from hypothesis import strategies as st

texts = st.text(st.characters(codec="utf-8"), max_size=8)
events = st.lists(
    st.builds(
        lambda key, value, revision, cursor: (
            {"type": "put", "key": key, "value": value, "mod_revision": revision},
            f"e-{revision}" if cursor else None,
        ),
        key=texts, value=texts, revision=st.integers(0, 2**63), cursor=st.booleans(),
    ),
    max_size=6,
)  # fmt: skip
line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


def as_ndjson(members: dict[str, Any], cursor: str | None) -> bytes:
    """One line."""
    own = {} if cursor is None else {"cursor": cursor}
    return json.dumps({**members, **own}, ensure_ascii=False).encode() + b"\n"


def as_sse(members: dict[str, Any], cursor: str | None, end: bytes) -> bytes:
    """One block, with a comment before it."""
    own = [] if cursor is None else [b"id: " + cursor.encode()]
    data = json.dumps(members, ensure_ascii=False).encode()
    return end.join([b": waiting", b"event: put", b"data: " + data, *own, b"", b""])


def read(form: Format, data: bytes, cuts: list[int]) -> list[Message]:
    """What a framer makes of *data*, cut there."""
    split = framer(form)
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    return [message for start, end in pairwise(places) for message in split.feed(data[start:end])]


@given(events, st.lists(st.integers(0, 600)))
def test_ndjson_in_any_pieces(sent: list[tuple[dict[str, Any], str | None]], cuts: list[int]) -> None:
    """The pieces do not matter, nor do empty lines, nor an unfinished line at the end."""
    data = b"\n\r\n".join([as_ndjson(*one) for one in sent] + [b'{"type":"put"'])
    assert read("ndjson", data, cuts) == [parse(json.dumps(members).encode(), cursor) for members, cursor in sent]


@given(events, line_ends, st.lists(st.integers(0, 900)))
def test_sse_in_any_pieces(sent: list[tuple[dict[str, Any], str | None]], end: bytes, cuts: list[int]) -> None:
    """The pieces and the line ends do not matter; a block that is not ended is no event, and its id is none."""
    blocks = [as_sse(*one, end) for one in sent]
    data = b"\xef\xbb\xbfretry: 3170" + end + b"".join(blocks) + b"data: {}" + end + b"id: e-9" + end
    assert read("sse", data, cuts) == [parse(json.dumps(members).encode(), cursor) for members, cursor in sent]


def test_sse_cursor_belongs_to_its_block() -> None:
    """An event without an id has no cursor, although the event before had one."""
    data = b'data: {"type":"bookmark","revision":4,"state":"live"}\nid: e-4\n\n'
    data += b'data: {"type":"put",\ndata: "key":"a","value":"1","mod_revision":5,"more":true}\n\nid: e-7\n\n'
    data += b'data:{"type":"bookmark","revision":6,"state":"stale"}\nid: a\0b\n\n'
    assert list(Sse().feed(data)) == [
        Message(Bookmark(4, False), "e-4"),
        Message(Put(Entry(b"a", b"1", 0, 5, 0), True), None),
        Message(Bookmark(6, True), None),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"oops", b"null", b"[]", b'"ok"', b"7", b"{}", b"[" * 100_000, b'{"type":7}',
        b'{"type":"put","value":"x","mod_revision":11}',
        b'{"type":"put","key":"a","value":7,"mod_revision":11}',
        b'{"type":"put","key":"a","value":"x","mod_revision":"11"}',
        b'{"type":"put","key":"a","value":"x","mod_revision":true}',
        b'{"type":"put","key":"a","value":"x","mod_revision":1,"more":"yes"}',
        b'{"type":"put","key":"a","value":"x","mod_revision":1,"cursor":7}',
        b'{"type":"put","key":"a","value":"x","mod_revision":1,"encoding":"gzip"}',
        b'{"type":"put","key":"a","value":"x!","mod_revision":1,"encoding":"base64"}',
        b'{"type":"put","key":"\\ud800","value":"x","mod_revision":1}',
        b'{"type":"delete","key":"a"}', b'{"type":"reset"}', b'{"type":"synced","revision":1}',
        b'{"type":"synced","revision":1,"heartbeat":NaN}', b'{"type":"synced","revision":-1,"heartbeat":1}',
        b'{"type":"bookmark","revision":1}', b'{"type":"close","reason":"drain","retry_ms":-1}', b'{"type":"status"}',
        b"\xff",
    ],
)  # fmt: skip
def test_what_is_not_an_event_ends_the_stream(data: bytes) -> None:
    """A garbled event would corrupt the mirror while it is applied."""
    with pytest.raises(StreamEnd, match="not an event of the gateway"):
        list(framer("ndjson").feed(data + b"\n"))


def test_keys_are_told_apart_by_their_bytes() -> None:
    """A key that is the text "//8=" is another key than the bytes ff ff."""
    text = parse(b'{"type":"put","key":"//8=","value":"a","mod_revision":1}')
    other = parse(
        b'{"type":"put","key":"//8=","key_encoding":"base64","value":"AAE=","encoding":"base64","mod_revision":1}'
    )
    assert text.event == Put(Entry(b"//8=", b"a", 0, 1, 0), False)
    assert other.event == Put(Entry(b"\xff\xff", b"\0\1", 0, 1, 0), False)


def test_unknown_events_are_passed_over() -> None:
    """v1 may grow; the cursor of an unknown event counts."""
    assert parse(b'{"type":"news","cursor":"e-3"}') == Message(None, "e-3")
