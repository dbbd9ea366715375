"""The query of ``/v1/watch``, parsed: all of a request that depends neither on its headers nor on who sends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from ..core.errors import BadRequestError
from ..core.frames import Format
from ..core.interned import interned
from ..core.query import parse_choice, parse_flag, parse_query, parse_ranges, parse_revision, text
from ..core.selection import Selection
from ..units import seconds
from .parsed_queries import parsed_once
from .requests import encoding_of, scope_of

# Query parameters that hold a cursor, the newest cursor first. event-source-polyfill and reconnecting-eventsource
# cannot send the header, or do not send it: when they reconnect, they append `lastEventId` to the URL that they were
# given. That URL may already have `last_event_id`, and even an older `lastEventId`.
_APPENDED = "lastEventId"
CURSORS = (_APPENDED, "last_event_id")
FORMATS: tuple[str, ...] = get_args(Format)
MODES = ("latest",)
# Seconds between two flushes of ``mode=latest``. The least is a slot of the timers (``app.stream.timers``).
LEAST_INTERVAL, MOST_INTERVAL, DEFAULT_INTERVAL = 0.05, 60.0, 0.5
_KNOWN = frozenset({
    "key", "prefix", "scope", "snapshot", "keys_only", "encoding", "format", "mode", "interval", "min_revision",
    "last_event_id", "lastEventId",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class WatchQuery:
    """See the module."""

    selection: Selection
    format: str | None  # the parameter; None: the headers decide
    snapshot: bool
    interval: float  # of ``mode=latest``, in seconds; 0: every event is sent
    min_revision: int
    permitted_only: bool  # ``scope=permitted``
    cursor: bytes | None  # the newest one


@parsed_once
def parse(raw: bytes) -> WatchQuery:
    """Parse a query. Raises BadRequestError if the query is wrong."""
    query = parse_query(raw, _KNOWN, lenient=set(CURSORS), appended={_APPENDED})
    ranges = parse_ranges(query)
    encoding = encoding_of(query)
    keys_only = parse_flag(query, "keys_only", default=False)
    return WatchQuery(
        interned(Selection(ranges, encoding=encoding, keys_only=keys_only)),
        snapshot=parse_flag(query, "snapshot", default=True),
        interval=interval_of(query),
        min_revision=parse_revision(query, "min_revision"),
        format=parse_choice(query, "format", FORMATS),
        permitted_only=scope_of(query),
        cursor=newest_cursor(query),
    )


def newest_cursor(query: Mapping[str, bytes]) -> bytes | None:
    """Return the newest cursor in a query; None if there is none. A cursor that is present counts, even if empty."""
    return next((query[name] for name in CURSORS if name in query), None)


def interval_of(query: Mapping[str, bytes]) -> float:
    """Return the seconds between two flushes of ``mode=latest``; 0 for a stream of every event.

    Raises:
        BadRequestError: the interval is not allowed, or has no mode that it belongs to.
    """
    latest = parse_choice(query, "mode", MODES) == "latest"
    value = query.get("interval")
    if value is None:
        return DEFAULT_INTERVAL if latest else 0.0
    if not latest:
        raise BadRequestError(
            "'interval' is for 'mode=latest' only; add 'mode=latest', or leave 'interval' out",
            code="conflicting-parameters",
            parameter="interval",
        )
    try:
        interval = float(seconds(text(value)))
    except ValueError:
        interval = 0.0
    if not LEAST_INTERVAL <= interval <= MOST_INTERVAL:
        raise BadRequestError(
            f"'interval' must be a duration from 50ms to 60s, like 500ms, 1s or 2, not {text(value)!r}",
            parameter="interval",
        )
    return interval
