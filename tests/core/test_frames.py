"""``app.core.frames``, parsed as a client parses: SSE by the letter of its specification, NDJSON by lines."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.core.encoding import event_body, list_items
from app.core.events import Batch, Delete, Event, KeyValue
from app.core.frames import (
    GZIP,
    LIST,
    batch_frame,
    close_event,
    comment,
    control,
    events_frame,
    greeting,
    snapshot_frame,
)

EPOCH = "16214fff"
FORMS = ("sse", "ndjson")

data = st.one_of(
    st.text(st.sampled_from("a:\n\r\0 \x85\u2028\u2029\u00e9\ufeff"), max_size=6).map(str.encode), st.binary(max_size=6)
)
encodings = st.sampled_from(["auto", "base64"])
revisions = st.integers(1, (1 << 63) - 1)
items = st.builds(KeyValue, data, data, revisions, revisions, revisions, st.integers(0, 9))
events: st.SearchStrategy[Event] = st.one_of(items, st.builds(Delete, data, revisions))
batches = st.builds(Batch, revisions, st.lists(events, min_size=1, max_size=4))


@dataclass
class Dispatched:
    """An event as an EventSource passes it to its page."""

    kind: str
    data: str
    last_id: str


class EventSource:
    """A parser that follows section 9.2.6 of the HTML standard, line by line."""

    def __init__(self, stream: bytes) -> None:
        self.events: list[Dispatched] = []
        self.last_id = ""
        self.retry: int | None = None
        self._kind, self._data, self._id = "", "", ""
        # "Streams must be decoded using the UTF-8 decode algorithm", which drops one BOM.
        text = stream.decode(errors="replace").removeprefix("\ufeff")
        # A last line without its line end is not a line yet.
        for line in re.split("\r\n|\n|\r", text)[:-1]:
            self._process(line)

    def _process(self, line: str) -> None:
        if not line:
            self._dispatch()
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            self._field(name, value.removeprefix(" "))

    def _field(self, name: str, value: str) -> None:
        if name == "event":
            self._kind = value
        elif name == "data":
            self._data += value + "\n"
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value)

    def _dispatch(self) -> None:
        assert self._data, "a blank line without data is an event with empty data for common parsers"
        self.last_id = self._id
        self.events.append(Dispatched(self._kind or "message", self._data.removesuffix("\n"), self._id))
        self._kind, self._data = "", ""


def objects(stream: bytes, form: str) -> list[dict[str, Any]]:
    """The JSON objects of a stream; an SSE event's id becomes the member "cursor", as in NDJSON."""
    if form == "ndjson":
        lines = stream.decode().splitlines()
        return [json.loads(line) for line in lines if line]
    found: list[dict[str, Any]] = []
    last_id = ""
    for event in EventSource(stream).events:
        value = json.loads(event.data)
        assert event.kind == value["type"], "an event's name must be its type"
        if event.last_id != last_id:
            last_id = value["cursor"] = event.last_id
        found.append(value)
    return found


@given(batch=batches, encoding=encodings, form=st.sampled_from(FORMS))
def test_a_revision_comes_back_as_it_went(batch: Batch, encoding: str, form: str) -> None:
    """The events come back in order; all but the last have "more", and only the last has the cursor."""
    found = objects(batch_frame(batch, form, encoding, EPOCH), form)
    wanted = [json.loads(event_body(event, encoding) + b"}") for event in batch.events]
    for value in wanted[:-1]:
        value["more"] = True
    wanted[-1]["cursor"] = f"{EPOCH}-{batch.revision}"
    assert found == wanted


# The bytes of a line besides key and value: names, numbers of 19 digits, a lease, a cursor.
BESIDE = 320


@given(batch=batches, form=st.sampled_from(FORMS), kind=st.sampled_from(["auto", "base64"]))
@example(Batch(1 << 62, [KeyValue(b"\x01" * 99, b"\0" * 999, 1 << 62, 1 << 62, 1 << 62, -1)]), "ndjson", "auto")
@example(Batch(1 << 62, [KeyValue(b"\xff" * 99, b"\xff" * 999, 1 << 62, 1 << 62, 1 << 62, -1)]), "ndjson", "base64")
@example(Batch(1 << 62, [KeyValue(b"\xc2\x85" * 99, b"\xe2\x80\xa8" * 999, 1 << 62, 1 << 62, 1 << 62)]), "sse", "auto")
def test_a_line_is_not_longer_than_the_docs_say(batch: Batch, form: str, kind: str) -> None:
    """The docs state the longest line that a client must accept: aiohttp refuses lines above 512 KiB by default."""
    longest = max(len(event.key) + len(getattr(event, "value", b"")) for event in batch.events)
    bound = 6 * longest if kind == "auto" else -(-4 * longest // 3) + 8
    for line in batch_frame(batch, form, kind, EPOCH).split(b"\n"):
        assert len(line) <= bound + BESIDE


@given(before=batches, batch=batches, encoding=encodings, form=st.sampled_from(FORMS), cut=st.data())
def test_a_revision_cut_short_leaves_the_old_cursor(
    before: Batch, batch: Batch, encoding: str, form: str, cut: st.DataObject
) -> None:
    """A connection may break anywhere: a client that reconnects with its last id has all events up to that id."""
    first = batch_frame(before, form, encoding, EPOCH)
    second = batch_frame(batch, form, encoding, EPOCH)
    at = cut.draw(st.integers(0, len(second)), label="cut after")
    stream = first + second[:at]
    if form == "sse":
        source = EventSource(stream)
        last_id, complete = source.last_id, len(source.events)
    else:
        lines = [json.loads(line) for line in stream.split(b"\n")[:-1]]
        last_id, complete = [line["cursor"] for line in lines if "cursor" in line][-1], len(lines)
    whole = complete == len(before.events) + len(batch.events)
    assert whole == (at == len(second))
    assert last_id == f"{EPOCH}-{(batch if whole else before).revision}"


@given(batch=batches, encoding=encodings)
def test_no_line_reader_tears_an_event_apart(batch: Batch, encoding: str) -> None:
    """httpx and requests divide no event.

    They split lines as ``str.splitlines`` does: on more characters than SSE or NDJSON know.
    """
    for form in FORMS:
        frame = batch_frame(batch, form, encoding, EPOCH)
        assert frame.decode().splitlines() == frame.decode().removesuffix("\n").split("\n")


@given(listed=st.lists(items, max_size=5), encoding=encodings, form=st.sampled_from(FORMS))
def test_a_snapshot_is_puts_without_a_cursor(listed: list[KeyValue], encoding: str, form: str) -> None:
    """The puts of a snapshot look like live puts, but have no id: a client cannot resume from half a snapshot."""
    bodies = [event_body(item, encoding) for item in listed]
    frame = snapshot_frame(bodies, form)
    assert objects(frame, form) == [json.loads(body + b"}") for body in bodies]
    assert b"\nid:" not in frame
    assert bool(frame) == bool(listed)


@given(batch=batches, encoding=encodings, form=st.sampled_from(FORMS))
def test_a_live_put_looks_like_one_of_the_snapshot(batch: Batch, encoding: str, form: str) -> None:
    """A put has the same form in a snapshot and live, so that a client parses both in one way."""
    puts = [event for event in batch.events if isinstance(event, KeyValue)]
    from_snapshot = objects(snapshot_frame([event_body(put, encoding) for put in puts], form), form)
    live = [value for value in objects(batch_frame(batch, form, encoding, EPOCH), form) if value["type"] == "put"]
    for value in live:
        value.pop("more", None)
        value.pop("cursor", None)
    assert live == from_snapshot


members = st.dictionaries(st.sampled_from(["reason", "revision", "ranges"]), st.one_of(st.integers(), st.text("a/%é")))


@given(kind=st.sampled_from(["reset", "synced", "close"]), members=members, form=st.sampled_from(FORMS))
def test_a_control_event_comes_back_as_it_went(kind: str, members: dict[str, object], form: str) -> None:
    """A control event has its type, its members, and its cursor if it has one."""
    assert objects(control(form, kind, members), form) == [{"type": kind, **members}]
    cursor = f"{EPOCH}-5"
    assert objects(control(form, kind, members, cursor), form) == [{"type": kind, **members, "cursor": cursor}]


def test_a_control_event_does_not_change_what_it_is_given() -> None:
    """Encoding a control event leaves the caller's members unchanged."""
    given: dict[str, object] = {"revision": 5}
    control("ndjson", "bookmark", given, f"{EPOCH}-5")
    assert given == {"revision": 5}


def test_equal_control_events_are_one_object() -> None:
    """5,000 subscribers at one revision get one bookmark, which is framed once."""
    one, other = (control("sse", "reset", {"revision": 5, "ranges": ("prefix=/a/",)}, f"{EPOCH}-5") for _ in range(2))

    assert one is other
    assert one is not control("sse", "reset", {"revision": 5, "ranges": ("prefix=/b/",)}, f"{EPOCH}-5")


def test_equal_numbers_are_not_the_same_json() -> None:
    """15, 15.0 and true stay what they are, whichever came first."""
    numbers: list[object] = [1, 1.0, True]
    frames = [control("ndjson", "synced", {"heartbeat": number}) for number in numbers]

    assert [json.loads(frame)["heartbeat"] for frame in frames] == numbers
    assert len(set(frames)) == 3


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        # The wire contract to the letter.
        (control("sse", "reset", {"reason": "initial"}, "16214fff-0"),
         'event: reset\ndata: {"type":"reset","reason":"initial"}\nid: 16214fff-0\n\n'),
        (control("ndjson", "reset", {"reason": "initial"}, "16214fff-0"),
         '{"type":"reset","reason":"initial","cursor":"16214fff-0"}\n'),
        (control("sse", "close", {"reason": "drain"}), 'event: close\ndata: {"type":"close","reason":"drain"}\n\n'),
        (comment("sse", "waiting"), ": waiting\n"),
        (comment("ndjson", "waiting"), "\n"),
        (greeting("sse", "gw-1", 3000), "retry: 3000\n: connected gw-1\n"),
        (greeting("ndjson", "gw-1", 3000), ""),
        (batch_frame(Batch(9, [Delete(b"a", 9), Delete(b"b", 9)]), "sse", "auto", EPOCH),
         'event: delete\ndata: {"type":"delete","key":"a","mod_revision":9,"more":true}\n\n'
         'event: delete\ndata: {"type":"delete","key":"b","mod_revision":9}\nid: 16214fff-9\n\n'),
        (batch_frame(Batch(9, [Delete(b"a", 9), Delete(b"b", 9)]), "ndjson", "auto", EPOCH),
         '{"type":"delete","key":"a","mod_revision":9,"more":true}\n'
         '{"type":"delete","key":"b","mod_revision":9,"cursor":"16214fff-9"}\n'),
    ],
)  # fmt: skip
def test_frames_to_the_letter(frame: bytes, text: str) -> None:
    """Frames are as in the docs; the id is the last line of its block."""
    assert frame.decode() == text


def test_signs_of_life_mean_nothing() -> None:
    """A comment is not an event and does not change the id; the greeting only sets the time until a reconnect."""
    waiting = comment("sse", "waiting")
    synced, bookmark = control("sse", "synced", {}, "e-5"), control("sse", "bookmark", {}, "e-6")
    source = EventSource(greeting("sse", "gw-1", 3000) + waiting * 2 + synced + waiting * 2 + bookmark + waiting)
    assert source.retry == 3000
    assert [(event.kind, event.last_id) for event in source.events] == [("synced", "e-5"), ("bookmark", "e-6")]
    assert source.last_id == "e-6"


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=5), st.binary(max_size=5)), max_size=4), st.booleans())
def test_the_items_of_a_list(pairs: list[tuple[bytes, bytes]], keys_only: bool) -> None:
    """They are the items of a list from etcd, byte for byte."""
    items = [KeyValue(key, value, 2, 3, 4, 5) for key, value in pairs]
    bodies = [event_body(item, "auto", keys_only=keys_only) for item in items]

    assert snapshot_frame(bodies, LIST) == list_items(items, "auto", keys_only=keys_only).encode()


@given(
    st.sampled_from(FORMS),
    encodings,
    batches,
    st.lists(items, max_size=3),
    st.none() | st.just(f"{EPOCH}-5"),
    st.text(),
)
def test_with_gzip_each_frame_is_the_same_bytes_in_a_block(
    form: str, encoding: str, batch: Batch, held: list[KeyValue], cursor: str | None, name: str
) -> None:
    """Every function that makes bytes for a stream makes a block of a member of them; the first has the header."""
    bodies = [event_body(item, encoding) for item in held]

    def all_frames(form: str) -> list[bytes]:
        return [
            greeting(form, "gw-1", 3000),
            snapshot_frame(bodies, form),
            control(form, "synced", {"revision": 5, "ranges": (name,)}, cursor),
            comment(form, "waiting"),
            batch_frame(batch, form, encoding, EPOCH),
            events_frame(batch.events, form, encoding, cursor, keys_only=True),
            close_event(form, {"reason": "drain", "retry_ms": 500}, 500),
        ]

    inflater = zlib.decompressobj(wbits=31)
    assert [inflater.decompress(frame) for frame in all_frames(form + GZIP)] == all_frames(form)


def test_the_last_event_tells_an_event_source_when_to_come_back() -> None:
    """Only SSE has a line for that, and the line belongs to the block of ``close``."""
    members: dict[str, object] = {"reason": "drain", "retry_ms": 500}

    last = 'event: close\ndata: {"type":"close","reason":"drain","retry_ms":500}\nretry: 500\n\n'
    assert close_event("sse", members, 500).decode() == last
    assert close_event("ndjson", members, 500) == control("ndjson", "close", members)
