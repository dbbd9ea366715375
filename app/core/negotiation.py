"""The format that an ``Accept`` header asks for."""

from __future__ import annotations

SSE = "text/event-stream"
_NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")


def _media_types(accept: str) -> list[str]:
    return [part.partition(";")[0].strip().lower() for part in accept.split(",")]


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
