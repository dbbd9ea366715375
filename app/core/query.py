"""The query of a request, parsed as bytes, and the errors in it.

Starlette decodes query bytes with replacement characters, but keys are bytes. So this module parses the raw query.
``+`` is a space, as every form-encoding client writes it; a literal plus is ``%2B``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from urllib.parse import unquote_to_bytes

from .errors import BadRequestError
from .keys import KeyRange, Kind
from .selection import MOST_RANGES, Ranges, canonical

# etcd accepts keys up to its request limit (1.5 MiB), but no sensible URL holds such a key.
MAX_KEY_BYTES = 4096
# Bytes of all ranges of one request, percent-encoded. A gateway that follows another one asks that one for the same
# ranges, in its own spelling, which escapes more than clients must. The upstream takes heads of 64 KiB
# (`app.server.protocol.MAX_HEAD`), and a page's token and a JWT need room beside the ranges.
MOST_WRITTEN = 48 * 1024
# The parameter that clients append so that no cache answers (jQuery's name for it): any value, any number of times.
CACHE_BUSTER = "_"
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_KINDS: dict[str, Kind] = {"prefix": "prefix", "key": "key"}
_FLAGS = {b"1": True, b"true": True, b"0": False, b"false": False}


class Query(dict[str, bytes]):
    """The percent-decoded parameters by name. ``ranges`` has every ``key`` and ``prefix``, in the order received."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[Kind, bytes]] = []


def parse_query(
    raw: bytes, known: Set[str], *, lenient: Set[str] = frozenset(), appended: Set[str] = frozenset()
) -> Query:
    """Return the parameters of a query. ``key`` and ``prefix`` may be repeated.

    Args:
        raw: the query as received.
        known: the allowed names. ``CACHE_BUSTER`` is always allowed, and never returned.
        lenient: the names whose values are taken literally where a percent-escape is broken.
        appended: the names that a library appends to a URL which may have one already: the last value counts.

    Raises:
        BadRequestError: a parameter is unknown, is given twice, or has a broken percent-escape.
    """
    found = Query()
    for part in raw.split(b"&"):
        if not part:
            continue
        name_bytes, _, value = part.partition(b"=")
        name = unquote_to_bytes(name_bytes).decode("utf-8", "backslashreplace")
        if name == CACHE_BUSTER:
            continue
        if name not in known:
            raise BadRequestError(
                f"unknown parameter {name[:64]!r}; known parameters are {', '.join(sorted(known))}",
                code="unknown-parameter",
                parameter=name[:64],
            )
        kind = _KINDS.get(name)
        if name in found and name not in appended and kind is None:
            raise BadRequestError(
                f"parameter {name!r} must be given only once", code="repeated-parameter", parameter=name
            )
        if name not in lenient and _BROKEN_ESCAPE.search(value):
            # Taken literally, "100%25" and "100%" would be the same key, and a typo would be another key.
            raise BadRequestError(
                f"{name!r} has a '%' without two hex digits after it; write a percent sign as '%25'", parameter=name
            )
        found[name] = unquote_to_bytes(value.replace(b"+", b" "))
        if kind is not None:
            found.ranges.append((kind, found[name]))
    return found


def parse_ranges(query: Query) -> Ranges:
    """Return the canonical ranges of all ``key=`` and ``prefix=``. At least one of them is required.

    Raises:
        BadRequestError: none is given, too many are, a key is empty, or a value, or all together, are too long.
    """
    if not query.ranges:
        raise BadRequestError(
            "'key' or 'prefix' is required; an empty 'prefix=' means all keys",
            code="missing-parameter",
            parameter="prefix",
        )
    # Before the check of each: sorting thousands of ranges would take long.
    if len(query.ranges) > MOST_RANGES:
        raise BadRequestError(
            f"{len(query.ranges)} ranges are requested; use at most {MOST_RANGES} on one request",
            code="selection-too-wide",
            parameter=query.ranges[MOST_RANGES][0],
        )
    return bounded(canonical(_range(kind, name) for kind, name in query.ranges))


def bounded(ranges: Ranges) -> Ranges:
    """Return *ranges*, which are not empty. Raises BadRequestError if all of them are too long for one request."""
    # An escape has three bytes, and no name of a kind more than six.
    if sum(7 + 3 * len(one.name) for one in ranges) > MOST_WRITTEN:
        written = len("&".join(map(str, ranges)))
        if written > MOST_WRITTEN:
            raise BadRequestError(
                f"the ranges have {written} bytes together, percent-encoded; use at most {MOST_WRITTEN} on one request",
                code="selection-too-wide",
                parameter=ranges[-1].kind,
            )
    return ranges


def _range(kind: Kind, name: bytes) -> KeyRange:
    if kind == "key" and not name:
        raise BadRequestError(
            "'key' is empty, and etcd has no empty key; for all keys use an empty 'prefix='", parameter="key"
        )
    return KeyRange(kind, _short(kind, name))


def _short(name: str, value: bytes) -> bytes:
    if len(value) > MAX_KEY_BYTES:
        raise BadRequestError(
            f"{name!r} has {len(value)} bytes; use at most {MAX_KEY_BYTES}", code="too-long", parameter=name
        )
    return value


def parse_flag(query: Mapping[str, bytes], name: str, *, default: bool) -> bool:
    """Parse a parameter that is 1 or 0 (or true, false)."""
    value = query.get(name)
    if value is None:
        return default
    if value.lower() not in _FLAGS:
        raise BadRequestError(f"{name!r} must be 1 or 0, not {text(value)!r}", parameter=name)
    return _FLAGS[value.lower()]


def parse_choice(query: Mapping[str, bytes], name: str, choices: tuple[str, ...]) -> str | None:
    """Parse a parameter that is one of *choices*. Return None if it is absent."""
    value = query.get(name)
    if value is None:
        return None
    if text(value) not in choices:
        allowed = f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
        raise BadRequestError(f"{name!r} must be {allowed}, not {text(value)!r}", parameter=name)
    return text(value)


def parse_number(query: Mapping[str, bytes], name: str, *, default: int, most: int) -> int:
    """Parse a parameter that is a whole number from 1 to *most*."""
    value = query.get(name)
    if value is None:
        return default
    if not value.isdigit() or len(value) > 18 or not 1 <= int(value) <= most:
        raise BadRequestError(f"{name!r} must be a whole number from 1 to {most}, not {text(value)!r}", parameter=name)
    return int(value)


def parse_revision(query: Mapping[str, bytes], name: str) -> int:
    """Parse a parameter that is a revision: a whole number that fits etcd's int64. Return 0 if it is absent."""
    value = query.get(name, b"0")
    if not value.isdigit() or len(value) > 19 or int(value) >= 1 << 63:
        raise BadRequestError(f"{name!r} must be a whole number from 0 to 2^63-1, not {text(value)!r}", parameter=name)
    return int(value)


def text(value: bytes) -> str:
    """Return a value for people: shortened, with undecodable bytes escaped."""
    return value[:64].decode("utf-8", "backslashreplace")
