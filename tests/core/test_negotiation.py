"""``app.core.negotiation``: the format that a header asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.negotiation import format_of, names_event_stream


@pytest.mark.parametrize(
    ("accept", "names"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("application/json, text/event-stream;q=0.5", True),
        ("*/*", False),
        ("text/*", False),
        ("text/event-streams", False),
        ("", False),
    ],
)
def test_only_the_name_itself_makes_an_event_source(accept: str, names: bool) -> None:
    """Only the type's own name marks an EventSource; a wildcard is curl, which can read a status."""
    assert names_event_stream(accept) == names


@pytest.mark.parametrize(
    ("accept", "asked", "form"),
    [
        ("", None, "sse"),
        ("*/*", None, "sse"),
        ("application/json", None, "sse"),
        ("application/x-ndjson", None, "ndjson"),
        ("application/ndjson", None, "ndjson"),
        ("application/jsonl; q=1", None, "ndjson"),
        ("text/event-stream, application/x-ndjson", None, "sse"),
        ("application/x-ndjson, text/event-stream", None, "ndjson"),
        ("text/event-stream", "ndjson", "ndjson"),
        ("application/x-ndjson", "sse", "sse"),
    ],
)
def test_the_parameter_beats_the_header(accept: str, asked: str | None, form: str) -> None:
    """``format=`` decides, then the first type that the gateway supports, then SSE."""
    assert format_of(accept, asked) == form


@given(st.text())
def test_any_header_is_some_format(accept: str) -> None:
    """Every header selects some format; none is refused."""
    assert format_of(accept, None) in ("sse", "ndjson")
    names_event_stream(accept)
