"""Keys and values on a terminal and in JSON. Pure.

A value may contain anything: control characters are escaped, so that a writer to etcd cannot steer a terminal.
"""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from ..changes import Change
from ..events import Entry

COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
_ESCAPES = {ord("\\"): "\\\\", ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}


def paint(text: str, colour: str, *, on: bool) -> str:
    """Return *text* in a colour of COLOURS."""
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if on and colour else text


def printable(data: bytes) -> str:
    """Return bytes as one line of text: what is not printable is escaped."""
    text = data.decode("utf-8", "surrogateescape").translate(_ESCAPES)
    if text.isprintable():
        return text
    return "".join(one if one == " " or one.isprintable() else _escape(one) for one in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def width(text: str) -> int:
    """Return how many columns of a terminal *text* takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def fit(text: str, columns: int) -> str:
    """Return *text* in exactly this many columns. An ellipsis says that it was cut."""
    if (taken := width(text)) <= columns:
        return text + " " * (columns - taken)
    kept, taken = "", 0
    for one in text:
        if taken + width(one) > columns - 1:
            break
        kept, taken = kept + one, taken + width(one)
    return kept + "…" + " " * (columns - 1 - taken) if columns > 0 else ""


def item(entry: Entry) -> dict[str, Any]:
    """Return an entry with the members of the wire contract."""
    members: dict[str, Any] = _member("key", "key_encoding", entry.key)
    if entry.value is not None:
        members |= _member("value", "encoding", entry.value)
    members |= {"create_revision": entry.create_revision, "mod_revision": entry.mod_revision, "version": entry.version}
    return members | ({"lease": entry.lease} if entry.lease is not None else {})


def change_json(change: Change[bytes, bytes]) -> str:
    """Return a change as one line of JSON."""
    events = [
        {"type": "delete", **_member("key", "key_encoding", event.key)}
        if event.entry is None
        else {"type": "put", **item(event.entry)}
        for event in change
    ]
    reset = {"reset": change.reset} if change.reset is not None else {}
    return json.dumps({"revision": change.revision, **reset, "events": events}, ensure_ascii=False)


def change_lines(change: Change[bytes, bytes], *, colours: bool) -> list[str]:
    """Return a change as lines of text: revision, what happened, key, value."""
    lines = []
    for event in change:
        kind = paint(event.type, "red" if event.entry is None else "green", on=colours)
        value = "" if event.entry is None or event.entry.value is None else f"\t{printable(event.entry.value)}"
        lines.append(f"{change.revision}\t{kind}\t{printable(event.key)}{value}")
    return lines


def table(entries: Sequence[Entry], columns: int, rows: int, *, recent: int, colours: bool) -> list[str]:
    """Return the entries as at most *rows* lines. Those above revision *recent* are bold.

    If not all fit, those that changed last are shown, and the last line says so.
    """
    cut = len(entries) > rows - 1
    shown = sorted(entries, key=lambda one: -one.mod_revision)[: max(rows - 2, 0)] if cut else entries
    if not cut:
        shown = sorted(entries, key=lambda one: one.key)
    keys = [printable(one.key) for one in shown]
    left = min(max([3, *map(width, keys)]), max(columns // 2, 3))
    right = max([8, *(len(str(one.mod_revision)) for one in shown)])
    middle = max(columns - left - right - 4, 1)
    lines = [paint(f"{fit('KEY', left)}  {fit('VALUE', middle)}  {'REVISION':>{right}}", "dim", on=colours)]
    for key, one in zip(keys, shown, strict=True):
        line = f"{fit(key, left)}  {fit(printable(one.value or b''), middle)}  {one.mod_revision:>{right}}"
        lines.append(paint(line, "bold" if one.mod_revision > recent else "", on=colours))
    if cut:
        lines.append(paint(f"{len(shown)} of {len(entries):,} keys, the last changed first", "dim", on=colours))
    return lines


def _member(name: str, encoding: str, data: bytes) -> dict[str, str]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {name: base64.b64encode(data).decode("ascii"), encoding: "base64"}
