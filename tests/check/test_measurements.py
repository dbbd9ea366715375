"""``app.check.measurements``: what the measurements of a stream say about it."""

from __future__ import annotations

import pytest

from app.check.lines import Line
from app.check.measurements import DEFAULT_HEARTBEAT, Arrival, Followed, heartbeat_of, host_of

STREAM = Followed(
    began=1.0,
    until=9.0,
    status=200,
    arrivals=(
        Arrival(1.5, Line("reset", "e-0", reason="initial")),
        Arrival(1.5, Line("put")),
        Arrival(1.75, Line("synced", "e-12", heartbeat=15.0)),
        Arrival(4.0, Line("put", "e-13")),
        Arrival(5.0, Line("bookmark", "e-13")),
        Arrival(6.0, Line("close", reason="drain")),
    ),
)


def test_what_a_stream_says() -> None:
    """A cursor is that of ``synced``: an earlier one resumes nothing."""
    assert STREAM.first_event == 0.5
    assert STREAM.cursor == "e-12"
    assert STREAM.closed == "drain"
    assert STREAM.times("put", "delete") == {"e-13": 4.0}


def test_what_a_silent_stream_says() -> None:
    """Nothing is known."""
    silent = Followed(began=1.0, until=9.0)

    assert (silent.first_event, silent.heartbeat, silent.cursor, silent.closed) == (None, None, "", "")


def test_the_heartbeat_is_what_any_stream_says() -> None:
    """The default is used only if no stream says it."""
    silent = Followed(began=1.0, until=9.0)

    assert heartbeat_of([silent, STREAM]) == 15.0
    assert heartbeat_of([silent]) == DEFAULT_HEARTBEAT


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.0.0.1:80", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("[::1]:80", "::1"),
        ("fe80::1", "fe80::1"),
        ("", ""),
    ],
)
def test_an_address_without_its_port(address: str, host: str) -> None:
    """Addresses are compared without the port: each connection has its own."""
    assert host_of(address) == host
