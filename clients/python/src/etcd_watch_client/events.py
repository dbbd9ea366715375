"""The events of a stream: JSON in, values out. Pure: no I/O, no clock.

An event that cannot be read whole raises `StreamEnd`: an event that failed while it is applied would corrupt the
mirror. Events and members that are not known are ignored, as the wire contract asks.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .errors import StreamEnd


@dataclass(frozen=True, slots=True)
class Entry:
    """A key with its value, as etcd has it. ``value`` is None in a stream of keys alone."""

    key: bytes
    value: bytes | None
    create_revision: int
    mod_revision: int
    version: int
    lease: str | None = None


@dataclass(frozen=True, slots=True)
class Reset:
    """The state of these ranges follows, for this reason."""

    reason: str
    ranges: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Put:
    """The key has this entry. ``more``: other events of the same revision follow."""

    entry: Entry
    more: bool


@dataclass(frozen=True, slots=True)
class Delete:
    """The key does not exist since ``revision``."""

    key: bytes
    revision: int
    more: bool


@dataclass(frozen=True, slots=True)
class Synced:
    """The mirror is complete at ``revision``. The stream is never silent for longer than ``heartbeat`` seconds."""

    revision: int
    heartbeat: float


@dataclass(frozen=True, slots=True)
class Bookmark:
    """The mirror is exact at ``revision``."""

    revision: int
    stale: bool


@dataclass(frozen=True, slots=True)
class Status:
    """Whether etcd proves that the stream is current. ``expires``: the credentials of the stream are about to end.

    If the stream is stale, the last proof was ``age`` seconds ago. An older gateway says only ``since``: the time of
    the proof in seconds since 1970, by the gateway's clock.
    """

    stale: bool
    expires: bool = False
    since: float | None = None
    age: float | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """The gateway ends the stream; reconnect after ``retry`` seconds."""

    reason: str
    retry: float


Event = Reset | Put | Delete | Synced | Bookmark | Status | Close


@dataclass(frozen=True, slots=True)
class Message:
    """One event with its cursor, if it has one. ``event`` is None if this version does not know its type."""

    event: Event | None
    cursor: str | None


def parse(data: bytes | bytearray, cursor: str | None = None) -> Message:
    """Return one event. *cursor* is the ``id`` of an SSE block; in NDJSON the cursor is a member of the object."""
    try:
        members = json.loads(data)
        own = members.get("cursor", cursor)
        return Message(_event(members), None if own is None else _text(own))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        shown = bytes(data[:200]).decode(errors="replace")
        raise StreamEnd(f"not an event of the gateway: {shown}") from None


def parse_entry(members: Any) -> Entry:
    """Return the entry of an item, as `/v1/kv` and the stream have it."""
    value = members.get("value")
    lease = members.get("lease")
    return Entry(
        key=_key(members),
        value=None if value is None else _bytes(value, members.get("encoding")),
        create_revision=_revision(members.get("create_revision", 0)),
        mod_revision=_revision(members["mod_revision"]),
        version=_revision(members.get("version", 0)),
        lease=None if lease is None else _text(lease),
    )


def _event(members: Any) -> Event | None:
    match _text(members["type"]):
        case "reset":
            return Reset(_text(members["reason"]), tuple(map(_text, members.get("ranges", []))))
        case "put":
            return Put(parse_entry(members), _flag(members.get("more", False)))
        case "delete":
            return Delete(_key(members), _revision(members["mod_revision"]), _flag(members.get("more", False)))
        case "synced":
            return Synced(_revision(members["revision"]), _seconds(members["heartbeat"]))
        case "bookmark":
            return Bookmark(_revision(members["revision"]), _text(members["state"]) == "stale")
        case "status":
            since, age = _time(members.get("since")), _age(members.get("age"))
            return Status(_text(members["state"]) == "stale", "expires" in members, since, age)
        case "close":
            return Close(_text(members["reason"]), _seconds(members["retry_ms"]) / 1000)
        case _:
            return None


def _key(members: Any) -> bytes:
    # A key's identity is its bytes: a text key may look like the base64 of another key.
    return _bytes(members["key"], members.get("key_encoding"))


def _bytes(value: object, encoding: object) -> bytes:
    if encoding is None:
        return _text(value).encode()
    if encoding != "base64":
        raise ValueError(encoding)
    return base64.b64decode(_text(value), validate=True)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _revision(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(value)
    return value


def _time(value: object) -> float | None:
    # It is only the age that a client shows: a stream is not broken by a time that cannot be read.
    try:
        return datetime.fromisoformat(_text(value)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _age(value: object) -> float | None:
    try:
        return _seconds(value)
    except ValueError:
        return None


def _seconds(value: object) -> float:
    # An upper bound that a timer accepts. NaN and Infinity are not JSON, but Python's parser takes them.
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1e15:
        raise ValueError(value)
    return float(value)
