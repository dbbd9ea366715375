"""The query of a request, as bytes: what is asked for, and what is wrong with how it is asked.

Starlette decodes query bytes with replacement characters; keys are bytes, so the raw query is read here. ``+`` is a
space, as every form-encoding client writes it; a literal plus is ``%2B``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from urllib.parse import unquote_to_bytes

from .errors import BadRequestError
from .keys import KeyRange

# etcd itself takes keys up to its request limit (1.5 MiB); in a URL that is not a key any more.
MAX_KEY_BYTES = 4096
# What clients append so that no cache answers them (jQuery's name for it): any value, any number of times.
CACHE_BUSTER = "_"
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_FLAGS = {b"1": True, b"true": True, b"0": False, b"false": False}


def parse_query(
    raw: bytes, known: Set[str], *, lenient: Set[str] = frozenset(), appended: Set[str] = frozenset()
) -> dict[str, bytes]:
    """Parameter names to percent-decoded values.

    Args:
        raw: the query as it came.
        known: the names that may be there; ``CACHE_BUSTER`` may always be there, and is not among what is returned.
        lenient: those of them whose values are taken as they are, broken percent-escapes too.
        appended: those of them that a library appends to a URL which may have one already: the last one counts.

    Raises:
        BadRequestError: a parameter is unknown, stands twice, or has a broken percent-escape.
    """
    found: dict[str, bytes] = {}
    for part in raw.split(b"&"):
        if not part:
            continue
        name_bytes, _, value = part.partition(b"=")
        name = unquote_to_bytes(name_bytes).decode("utf-8", "backslashreplace")
        if name == CACHE_BUSTER:
            continue
        if name not in known:
            raise BadRequestError(
                f"unknown parameter {name[:64]!r}; known are {', '.join(sorted(known))}",
                code="unknown-parameter",
                parameter=name[:64],
            )
        if name in found and name not in appended:
            detail = f"parameter {name!r} stands more than once"
            if name in ("key", "prefix"):
                detail += "; several ranges on one stream are not supported yet"
            raise BadRequestError(detail, code="repeated-parameter", parameter=name)
        if name not in lenient and _BROKEN_ESCAPE.search(value):
            # Taken as it is, "100%25" and "100%" would be the same key, and a typo another key.
            raise BadRequestError(
                f"{name!r} has a '%' without two hex digits behind it; a percent sign is '%25'", parameter=name
            )
        found[name] = unquote_to_bytes(value.replace(b"+", b" "))
    return found


def parse_range(query: Mapping[str, bytes]) -> KeyRange:
    """The range of ``key=`` or ``prefix=``, of which exactly one must stand.

    Raises:
        BadRequestError: neither or both stand, or the key is empty or too long.
    """
    if "key" in query and "prefix" in query:
        raise BadRequestError(
            "either 'key' or 'prefix' may stand, not both", code="conflicting-parameters", parameter="key"
        )
    if "prefix" in query:
        return KeyRange("prefix", _bounded("prefix", query["prefix"]))
    if "key" not in query:
        raise BadRequestError(
            "'key' or 'prefix' must stand; an empty 'prefix=' means all keys",
            code="missing-parameter",
            parameter="prefix",
        )
    if not query["key"]:
        raise BadRequestError("'key' is empty, and etcd has no empty key", parameter="key")
    return KeyRange("key", _bounded("key", query["key"]))


def _bounded(name: str, value: bytes) -> bytes:
    if len(value) > MAX_KEY_BYTES:
        raise BadRequestError(
            f"{name!r} has {len(value)} bytes, at most {MAX_KEY_BYTES} may be", code="too-long", parameter=name
        )
    return value


def parse_flag(query: Mapping[str, bytes], name: str, *, default: bool) -> bool:
    """A parameter that is 1 or 0 (or true, false)."""
    value = query.get(name)
    if value is None:
        return default
    if value.lower() not in _FLAGS:
        raise BadRequestError(f"{name!r} is 1 or 0, not {text(value)!r}", parameter=name)
    return _FLAGS[value.lower()]


def parse_choice(query: Mapping[str, bytes], name: str, choices: tuple[str, ...]) -> str | None:
    """A parameter that is one of *choices*; None when it is absent."""
    value = query.get(name)
    if value is None:
        return None
    if text(value) not in choices:
        raise BadRequestError(f"{name!r} is one of {', '.join(choices)}, not {text(value)!r}", parameter=name)
    return text(value)


def parse_number(query: Mapping[str, bytes], name: str, *, default: int, most: int) -> int:
    """A parameter that is a whole number from 1 to *most*."""
    value = query.get(name)
    if value is None:
        return default
    if not value.isdigit() or len(value) > 18 or not 1 <= int(value) <= most:
        raise BadRequestError(f"{name!r} is a whole number from 1 to {most}, not {text(value)!r}", parameter=name)
    return int(value)


def text(value: bytes) -> str:
    """A value for people, shortened; undecodable bytes escaped."""
    return value[:64].decode("utf-8", "backslashreplace")
