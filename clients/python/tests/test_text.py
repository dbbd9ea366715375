"""Keys and values as text."""

from __future__ import annotations

import json
import re

from etcd_watch_client.changes import Change, View
from etcd_watch_client.cli.text import change_json, change_lines, fit, item, printable, table, width
from etcd_watch_client.events import Entry
from etcd_watch_client.replica import Commit, Update
from hypothesis import given
from hypothesis import strategies as st

A = Entry(b"/a", b"1", 5, 9, 2)


def change(**members: object) -> Change[bytes, bytes]:
    """A put of text, a put of bytes, a delete."""
    odd = Entry(b"/\xff", b"\0\xff", 1, 9, 1, "7f")
    updates = {b"/a": Update(A, None), b"/\xff": Update(odd, None), b"/gone": Update(None, A)}
    view = View[bytes, bytes](bytes, lambda entry: entry.value or b"")
    return Change(Commit(9, updates, **members), view)  # type: ignore[arg-type]


@given(st.binary())
def test_what_is_printed_cannot_steer_a_terminal(data: bytes) -> None:
    """One line of printable characters, and different for different bytes."""
    text = printable(data)
    assert all(one.isprintable() for one in text)
    if "\\" not in text:
        assert text.encode() == data


def test_what_is_not_printable_is_escaped() -> None:
    """As a shell's $'…' writes it."""
    assert printable(b"a\\b\n\t\x1b[2J\xff \xc2\x85\xe2\x80\xae\xf3\xa0\x80\x81\xc3\xa9") == (
        r"a\\b\n\t\x1b[2J\xff \x85\u202e\U000e0001é"
    )


@given(st.text(), st.integers(1, 20))
def test_a_column_has_its_width(text: str, columns: int) -> None:
    """Also with wide characters, and what was cut says so."""
    shown = fit(printable(text.encode("utf-8", "replace")), columns)
    assert width(shown) == columns


def test_wide_characters_take_two_columns() -> None:
    """A character is not a column."""
    assert (width("日本e\u0301"), fit("日本語", 4), fit("abc", 3)) == (5, "日… ", "abc")


def test_json_of_a_change() -> None:
    """The members of the wire contract; what is not text is base64."""
    assert json.loads(change_json(change(reset="initial"))) == {
        "revision": 9,
        "reset": "initial",
        "events": [
            {"type": "put", "key": "/a", "value": "1", "create_revision": 5, "mod_revision": 9, "version": 2},
            {
                "type": "put", "key": "L/8=", "key_encoding": "base64", "value": "AP8=", "encoding": "base64",
                "create_revision": 1, "mod_revision": 9, "version": 1, "lease": "7f",
            },
            {"type": "delete", "key": "/gone"},
        ],
    }  # fmt: skip
    assert "reset" not in json.loads(change_json(change()))
    assert "value" not in item(Entry(b"/a", None, 1, 1, 1))


def test_lines_of_a_change() -> None:
    """Revision, what happened, key, value."""
    lines = ["9\tput\t/a\t1", "9\tput\t/\\xff\t\\x00\\xff", "9\tdelete\t/gone"]
    assert change_lines(change(), colours=False) == lines
    coloured = change_lines(change(), colours=True)
    assert coloured != lines
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in coloured] == lines


@given(st.integers(0, 30), st.integers(4, 200), st.integers(3, 40), st.booleans())
def test_a_table_fits_its_screen(number: int, columns: int, rows: int, colours: bool) -> None:
    """It never has more lines, and says when keys are missing."""
    entries = [Entry(b"/key/%d" % one, b"v" * one, 1, 100 + one, 1) for one in range(number)]
    lines = [re.sub(r"\x1b\[\d+m", "", one) for one in table(entries, columns, rows, recent=0, colours=colours)]
    assert len(lines) <= rows
    shown = sum("/k" in line or "…" in line for line in lines[1:])
    if number > rows - 1:
        assert lines[-1] == f"{rows - 2} of {number} keys, the last changed first"
    elif columns > 30:
        assert shown == number


def test_a_table_marks_what_is_new() -> None:
    """What changed since the last drawing is bold."""
    old = Entry(b"/b", b"2", 1, 7, 1)
    head, first, second = table([old, A], 40, 10, recent=8, colours=True)
    assert "KEY" in head
    assert "\x1b[1m" in first
    assert "\x1b" not in second
