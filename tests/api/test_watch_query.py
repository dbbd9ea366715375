"""The query of ``/v1/watch``: every text is parsed or refused, and a query that comes again is parsed once."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.api.parsed_queries import LONGEST
from app.api.watch_query import LEAST_INTERVAL, MOST_INTERVAL, interval_of, parse
from app.core.errors import BadRequestError


@given(st.one_of(st.binary(max_size=20), st.text("0123456789.ms+-e", max_size=8).map(str.encode)))
@example(b"nan")
@example(b"inf")
@example(b"1e-5")
@example(b"9" * 10_000)
@example("\u0661s".encode())
def test_any_interval_is_allowed_or_refused(value: bytes) -> None:
    """No text of an interval raises anything else, and none leads out of the bounds."""
    found, parameter = None, None
    try:
        found = interval_of({"mode": b"latest", "interval": value})
    except BadRequestError as error:
        parameter = error.parameter

    assert parameter == (None if found is not None else "interval")
    assert found is None or LEAST_INTERVAL <= found <= MOST_INTERVAL


def test_a_herd_s_query_is_parsed_once() -> None:
    """Equal queries have one parsed form; long ones are parsed each time, so that clients cannot fill the memory."""
    short, long = b"prefix=/herd/", b"prefix=/" + LONGEST * b"a"
    assert parse(short) is parse(short)
    assert parse(long) == parse(long)
    assert parse(long) is not parse(long)
    for _ in range(2):
        with pytest.raises(BadRequestError):
            parse(b"prefix=/herd/&interval=1s")
