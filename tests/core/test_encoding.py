"""``app.core.encoding`` against the ``json`` module of the standard library."""

from __future__ import annotations

import json
from base64 import b64decode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.core.encoding import (
    Encoding,
    compact,
    event_body,
    item_body,
    item_fields,
    list_head,
    list_items,
    list_tail,
    page_tail,
)
from app.core.events import Delete, Event, KeyValue

# Text of all kinds, including the three line ends that JSON does not know, and bytes that are not text.
tricky = st.text(
    st.sampled_from('a"\\/\n\r\t\0\x0b\x0c\x1c\x1f\x7f\x85\u2028\u2029\u00e9\U0001f600<&\ufeff'), max_size=8
)
data = st.one_of(tricky.map(str.encode), st.text(max_size=8).map(str.encode), st.binary(max_size=8))
encodings: st.SearchStrategy[Encoding] = st.sampled_from(["auto", "base64"])
counts = st.integers(1, (1 << 63) - 1)
items = st.builds(KeyValue, data, data, counts, counts, counts, st.integers(-(1 << 63), (1 << 63) - 1))
events: st.SearchStrategy[Event] = st.one_of(items, st.builds(Delete, data, counts))

LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def dumps(value: object) -> str:
    """The text from ``json``, with the line ends of ``str.splitlines`` escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character, escape in LINE_ENDS.items():
        text = text.replace(character, escape)
    return text


def back(found: dict[str, object], name: str, mark: str) -> bytes:
    """The bytes that a member stands for, as a client decodes them."""
    value = found[name]
    assert isinstance(value, str)
    if mark not in found:
        return value.encode()
    assert found[mark] == "base64"
    return b64decode(value, validate=True)


@given(event=events, encoding=encodings)
@example(event=KeyValue(b"k", "\u0085\u2028\u2029".encode(), 1, 1, 1), encoding="auto")
@example(event=KeyValue(b"k", b"\xc2\x85\xff", 1, 1, 1), encoding="auto")
@example(event=KeyValue(b"k", b"\xed\xa0\x80", 1, 1, 1), encoding="auto")
@example(event=Delete(b'\x00\x1f\x7f"\\', 1), encoding="auto")
def test_an_event_comes_back_as_it_went(event: Event, encoding: Encoding) -> None:
    """A client decodes exactly the bytes that etcd holds, in either encoding."""
    found = json.loads(event_body(event, encoding) + b"}")
    assert back(found, "key", "key_encoding") == event.key
    assert found["mod_revision"] == event.mod_revision
    if isinstance(event, Delete):
        assert found["type"] == "delete"
        assert "value" not in found
        return
    assert found["type"] == "put"
    assert back(found, "value", "encoding") == event.value
    assert (found["create_revision"], found["version"]) == (event.create_revision, event.version)
    assert int(found.get("lease", "0"), 16) == event.lease % (1 << 64)
    assert ("lease" in found) == bool(event.lease)


@given(event=events, encoding=encodings)
def test_the_text_is_that_of_json(event: Event, encoding: Encoding) -> None:
    """The hand-written encoder, made for speed, equals ``json.dumps`` to the byte.

    Every reader sees a single line.
    """
    text = event_body(event, encoding).decode() + "}"
    assert text == dumps(json.loads(text))
    assert len(text.splitlines()) == 1


@given(name=data, value=data)
def test_auto_is_text_where_it_can_be(name: bytes, value: bytes) -> None:
    """In `auto`, key and value are encoded separately: UTF-8 stays text, anything else is base64."""
    found = json.loads("{" + item_fields(KeyValue(name, value, 1, 1, 1), "auto") + "}")
    for content, mark in ((name, "key_encoding"), (value, "encoding")):
        try:
            content.decode()
        except UnicodeDecodeError:
            assert found[mark] == "base64"
        else:
            assert mark not in found


@given(event=events)
def test_base64_is_so_throughout(event: Event) -> None:
    """In `base64`, a client needs no second way to decode; and the text is plain ASCII."""
    body = event_body(event, "base64")
    found = json.loads(body + b"}")
    assert found["key_encoding"] == "base64"
    assert isinstance(event, Delete) or found["encoding"] == "base64"
    assert body.isascii()


@pytest.mark.parametrize(
    ("event", "encoding", "body"),
    [
        # The wire contract to the letter: clients see this order in logs and in the docs.
        (
            KeyValue(b"/a", b"1", 2, 3, 4),
            "auto",
            '{"type":"put","key":"/a","value":"1","create_revision":2,"mod_revision":3,"version":4',
        ),
        (
            KeyValue(b"/\xff", b"", 2, 3, 4, 0x1F),
            "auto",
            '{"type":"put","key":"L/8=","key_encoding":"base64","value":"","create_revision":2,"mod_revision":3,'
            '"version":4,"lease":"1f"',
        ),
        (
            KeyValue(b"/a", b"1", 2, 3, 4, -1),
            "base64",
            '{"type":"put","key":"L2E=","key_encoding":"base64","value":"MQ==","encoding":"base64",'
            '"create_revision":2,"mod_revision":3,"version":4,"lease":"ffffffffffffffff"',
        ),
        (KeyValue(b"k", "\u00e9\u2028".encode(), 1, 1, 1), "auto", '{"type":"put","key":"k","value":"\u00e9\\u2028",'),
        (Delete(b"/a", 9), "auto", '{"type":"delete","key":"/a","mod_revision":9'),
        (Delete(b"/a", 9), "base64", '{"type":"delete","key":"L2E=","key_encoding":"base64","mod_revision":9'),
    ],
)
def test_bodies_to_the_letter(event: Event, encoding: Encoding, body: str) -> None:
    """The members are in order, without spaces, and without the closing brace."""
    assert event_body(event, encoding).decode().startswith(body)
    if '"value":"\u00e9' not in body:
        assert event_body(event, encoding) == body.encode()


@given(item=items, encoding=encodings)
def test_keys_only_leaves_out_the_value_and_nothing_else(item: KeyValue, encoding: Encoding) -> None:
    """`keys_only` omits the value and its encoding, and nothing else."""
    whole = json.loads("{" + item_fields(item, encoding) + "}")
    found = json.loads("{" + item_fields(item, encoding, keys_only=True) + "}")
    assert found == {name: value for name, value in whole.items() if name not in ("value", "encoding")}


@given(
    listed=st.lists(items, max_size=4),
    encoding=encodings,
    keys_only=st.booleans(),
    revision=counts,
    page=st.sampled_from([None, "bm8"]),
)
def test_a_list_is_json(
    listed: list[KeyValue], encoding: Encoding, keys_only: bool, revision: int, page: str | None
) -> None:
    """A list is one line with its items, and has a next page only if there is one."""
    kvs = list_items(listed, encoding, keys_only=keys_only)
    head, tail = list_head(revision, f"16214fff-{revision}"), list_tail(7, more=page is not None)
    body = head + kvs.encode() + tail + (page_tail(page) if page is not None else b"")
    wanted: dict[str, object] = {
        "revision": revision,
        "cursor": f"16214fff-{revision}",
        "kvs": [json.loads("{" + item_fields(item, encoding, keys_only=keys_only) + "}") for item in listed],
        "count": 7,
    }
    if page is not None:
        wanted["next_page"] = page
    assert body.decode() == dumps(wanted) + "\n"


@given(item=items, encoding=encodings, revision=counts)
def test_an_item_is_json(item: KeyValue, encoding: Encoding, revision: int) -> None:
    """An item is one line that includes the key."""
    kv = json.loads("{" + item_fields(item, encoding) + "}")
    wanted = {"revision": revision, "cursor": "16214fff-5", "kv": kv}
    assert item_body(revision, "16214fff-5", item, encoding).decode() == dumps(wanted) + "\n"


@given(st.dictionaries(st.text(max_size=4), st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8))))
def test_compact_is_json_without_spaces(value: dict[str, object]) -> None:
    """Compact JSON decodes to the same value, and text stays readable."""
    assert json.loads(compact(value)) == value
    assert compact({"a": [1, "\u00e9"]}) == '{"a":[1,"\u00e9"]}'
