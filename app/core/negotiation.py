"""What an ``Accept`` header asks for."""

from __future__ import annotations

SSE = "text/event-stream"
_NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")


def _media_types(accept: str) -> list[str]:
    return [part.partition(";")[0].strip().lower() for part in accept.split(",")]


def names_event_stream(accept: str) -> bool:
    """Whether it names SSE: then a transient refusal is a short stream, for an EventSource gives up on any non-200."""
    return SSE in _media_types(accept)


def format_of(accept: str, asked: str | None) -> str:
    """``sse`` or ``ndjson``: the parameter *asked* decides, then the header's first of the two, then SSE."""
    if asked is not None:
        return asked
    for media_type in _media_types(accept):
        if media_type == SSE:
            return "sse"
        if media_type in _NDJSON:
            return "ndjson"
    return "sse"
