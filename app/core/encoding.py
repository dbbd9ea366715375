"""Events and items as the JSON objects of the wire contract. The view and the log keep the bytes, and count them.

``json.encoder.encode_basestring`` is the standard library's C implementation. With it, a put costs a third of a
``json.dumps`` of the same dict, and the text is the same (``tests/core/test_encoding.py``).
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from json.encoder import encode_basestring
from typing import Literal

from .events import Delete, Event, KeyValue

Encoding = Literal["auto", "base64"]

# JSON allows these characters unescaped, but ``str.splitlines`` treats them as line ends, and so do the line iterators
# of requests, httpx and httpx-sse: a value with one of them would split its event in the client.
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
# The end of every REST answer.
END = "}\n"


def _text(name: str, data: bytes, encoding: str, mark: str) -> str:
    """Return ``"name":"…"``, followed by ``,"mark":"base64"`` if the bytes are not text or base64 is requested."""
    if encoding == "auto":
        try:
            text = encode_basestring(data.decode())
        except UnicodeDecodeError:
            pass
        else:
            return f'"{name}":{text if text.isascii() else text.translate(_LINE_ENDS)}'
    return f'"{name}":"{b64encode(data).decode()}","{mark}":"base64"'


def item_fields(item: KeyValue, encoding: str, *, keys_only: bool = False) -> str:
    """Return the members of a key's JSON object, without the braces."""
    parts = [_text("key", item.key, encoding, "key_encoding")]
    if not keys_only:
        parts.append(_text("value", item.value, encoding, "encoding"))
    parts.append(
        f'"create_revision":{item.create_revision},"mod_revision":{item.mod_revision},"version":{item.version}'
    )
    if item.lease:
        # etcd's own tools print leases as hex; the id is an int64 whose top bit may be set.
        parts.append(f'"lease":"{item.lease & 0xFFFFFFFFFFFFFFFF:x}"')
    return ",".join(parts)


def event_body(event: Event, encoding: str, *, keys_only: bool = False) -> bytes:
    """Return an event's JSON object without its closing brace, so that ``more`` or a cursor can follow."""
    if isinstance(event, Delete):
        key = _text("key", event.key, encoding, "key_encoding")
        return f'{{"type":"delete",{key},"mod_revision":{event.mod_revision}'.encode()
    return f'{{"type":"put",{item_fields(event, encoding, keys_only=keys_only)}'.encode()


def list_items(items: Sequence[KeyValue], encoding: str, *, keys_only: bool) -> str:
    """Return the items of a REST list, separated by commas."""
    return ",".join([f"{{{item_fields(item, encoding, keys_only=keys_only)}}}" for item in items])


def list_head(revision: int, cursor: str) -> bytes:
    """Return the beginning of a REST list. The items of ``list_items`` follow, separated by commas."""
    return f'{{"revision":{revision},"cursor":"{cursor}","kvs":['.encode()


def list_tail(count: int, *, more: bool) -> bytes:
    """Return the end of a REST list. With *more*, ``page_tail`` must follow."""
    return f'],"count":{count}{"" if more else END}'.encode()


def page_tail(next_page: str) -> bytes:
    """Return the end of a REST list that has another page, after ``list_tail``."""
    return f',"next_page":"{next_page}"{END}'.encode()


def count_body(revision: int, cursor: str, count: int) -> bytes:
    """Return a REST list as JSON that has only a count."""
    return list_head(revision, cursor) + list_tail(count, more=False)


def item_body(revision: int, cursor: str, item: KeyValue, encoding: str) -> bytes:
    """Return the REST answer for a single key as JSON."""
    return f'{{"revision":{revision},"cursor":"{cursor}","kv":{{{item_fields(item, encoding)}}}{END}'.encode()


# ``json.dumps`` with these options makes an encoder for each call: a third of its time, for the events of a stream.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def compact(value: object) -> str:
    """Return *value* as JSON without spaces, and with non-ASCII text unescaped, but for what may end a line."""
    text = _ENCODER.encode(value)
    return text if text.isascii() else text.translate(_LINE_ENDS)
