"""What a client asks for: the format that its ``Accept`` header names, and the coding of ``Accept-Encoding``."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from enum import Enum

from .selection import Ranges

SSE = "text/event-stream"
_NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")
# A weight (RFC 9110, section 12.4.2).
_WEIGHT = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")


class Coding(Enum):
    """How the bytes of an answer are coded, and whether ``Accept-Encoding`` decides that."""

    FIXED = "fixed"  # plain, whatever the client accepts
    PLAIN = "plain"  # plain, because the client does not ask for gzip
    GZIP = "gzip"


# A join looks twice at a header that nearly all clients send alike. 64 of the longest heads take 12 MiB.
@functools.lru_cache(maxsize=64)
def _media_types(accept: str) -> tuple[str, ...]:
    """Return the types that the header names, without those of weight 0, which the client does not accept."""
    found = []
    for member in accept.lower().split(","):
        name, *parameters = member.split(";")
        if not parameters or _weight(parameters) > 0:
            found.append(name.strip())
    return tuple(found)


def names_event_stream(accept: str) -> bool:
    """Whether the header names SSE.

    If so, a transient refusal is a short stream, because an EventSource never retries after any status but 200.
    """
    return SSE in _media_types(accept)


def format_of(accept: str, asked: str | None) -> str:
    """Return ``sse`` or ``ndjson``: the parameter *asked*, or else the first of the two in the header, or else SSE."""
    if asked is not None:
        return asked
    for media_type in _media_types(accept):
        if media_type == SSE:
            return "sse"
        if media_type in _NDJSON:
            return "ndjson"
    return "sse"


def coding_of(ranges: Ranges, prefixes: Collection[bytes], accept_encoding: str) -> Coding:
    """Return how an answer with keys of *ranges* is coded.

    Args:
        prefixes: what may be compressed. An answer that has keys of any other range is plain: its size would tell about
            them.
        accept_encoding: the header; empty if there is none.
    """
    if not prefixes or not ranges or not all(any(one.within(prefix) for prefix in prefixes) for one in ranges):
        return Coding.FIXED
    return Coding.GZIP if asks_for_gzip(accept_encoding) else Coding.PLAIN


def asks_for_gzip(accept_encoding: str) -> bool:
    """Whether the header asks for gzip (RFC 9110, section 12.5.3): by name or by ``*``, and not for identity rather."""
    weights: dict[str, float] = {}
    for member in accept_encoding.lower().split(","):
        name, *parameters = (part.strip() for part in member.split(";"))
        weights["gzip" if name == "x-gzip" else name] = _weight(parameters)
    gzip = weights.get("gzip", weights.get("*", 0.0))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


def _weight(parameters: list[str]) -> float:
    """Return the weight; 0 if it is not one: then what the header names is not sent."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            value = value.strip()
            return float(value) if _WEIGHT.fullmatch(value) else 0.0
    return 1.0
