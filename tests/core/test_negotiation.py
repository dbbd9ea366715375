"""``app.core.negotiation``: the format and the coding that headers ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.keys import KeyRange
from app.core.negotiation import Coding, asks_for_gzip, coding_of, format_of, names_event_stream


@pytest.mark.parametrize(
    ("accept", "names"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("application/json, text/event-stream;q=0.5", True),
        ("*/*", False),
        ("text/*", False),
        ("text/event-streams", False),
        ("text/event-stream;q=0", False),
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
        ("text/event-stream; q=0.0, application/x-ndjson", None, "ndjson"),
        ("application/x-ndjson;q=0", None, "sse"),
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


@pytest.mark.parametrize(
    ("accept_encoding", "asks"),
    [
        ("gzip", True),
        ("gzip, deflate, br, zstd", True),  # browsers
        ("deflate, gzip, br, zstd", True),  # curl --compressed
        ("br;q=1.0, GZIP;q=0.8, *;q=0.1", True),
        ("gzip;q=0.001", True),
        ("gzip ; Q=1.000", True),
        ("x-gzip", True),
        ("*", True),
        ("*;q=0.5", True),
        ("identity;q=0.5, gzip", True),
        ("identity;q=0, gzip;q=0.1", True),
        ("", False),
        ("identity", False),
        ("br, zstd, deflate", False),
        ("gzip;q=0", False),
        ("gzip;q=0.000", False),
        ("*, gzip;q=0", False),  # the name itself beats the wildcard
        ("*;q=0", False),
        ("identity, gzip;q=0.5", False),  # rather plain
        ("gzip;q=2", False),  # not a weight
        ("gzip;q=", False),
        ("gzipped", False),
    ],
)
def test_gzip_only_for_who_asks(accept_encoding: str, asks: bool) -> None:
    """The header's weights count, ``*`` stands for what is not named, and plain is never wrong."""
    assert asks_for_gzip(accept_encoding) == asks


@given(st.text())
def test_any_header_asks_for_something(accept_encoding: str) -> None:
    """No header is refused."""
    asks_for_gzip(accept_encoding)


@pytest.mark.parametrize(
    ("ranges", "prefixes", "coding"),
    [
        ((KeyRange("prefix", b"/svc/"),), [b"/svc/"], Coding.GZIP),
        ((KeyRange("prefix", b"/svc/a"), KeyRange("key", b"/cfg/b")), [b"/svc/", b"/cfg/"], Coding.GZIP),
        ((KeyRange("prefix", b"/svc/a"), KeyRange("prefix", b"/secret/")), [b"/svc/"], Coding.FIXED),
        ((KeyRange("prefix", b"/"),), [b"/svc/"], Coding.FIXED),  # also what is not listed
        ((KeyRange("prefix", b"/svc/"),), [], Coding.FIXED),
        ((), [b"/svc/"], Coding.FIXED),  # nothing of what was asked is permitted
    ],
)
def test_only_where_all_ranges_are_listed(ranges: tuple[KeyRange, ...], prefixes: list[bytes], coding: Coding) -> None:
    """A stream of several ranges is plain if one is not listed: a size would tell about its values."""
    assert coding_of(ranges, prefixes, "gzip") is coding
    refused = Coding.PLAIN if coding is Coding.GZIP else coding
    assert coding_of(ranges, prefixes, "gzip;q=0") is refused
