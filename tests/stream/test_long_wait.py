"""``app.stream.long_wait``: the limit of a stream's wait, and the reason that its client sees, for each trouble."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from app.core.keys import KeyRange
from app.stream.long_wait import LONGEST_WAIT, NO_STATE, wait_limit, why_unavailable
from app.stream.streams import Streams
from app.watch.channel import Channel

TOLD = "etcd is away"
RANGES = (KeyRange("prefix", b"/svc/"),)


def made(
    state: str = "ready",
    trouble: str = "",
    *,
    stale_after: float = 10.0,
    goes_on: bool = True,
    joinable: bool = False,
    denied: bool = False,
) -> tuple[Streams, Channel]:
    """The state of the streams and of one channel, as far as a wait depends on it."""
    channel = SimpleNamespace(trouble=trouble, denied=denied, ranges=RANGES, history=SimpleNamespace(joinable=joinable))
    streams = SimpleNamespace(
        settings=SimpleNamespace(stale_after=stale_after),
        etcd=SimpleNamespace(condition=SimpleNamespace(state=state, told=TOLD)),
        registry=SimpleNamespace(channel=lambda _ranges: channel if goes_on else None),
    )
    return cast("Streams", streams), cast("Channel", channel)


@pytest.mark.parametrize(
    ("state", "trouble", "stale_after", "limit"),
    [
        ("ready", "", 10.0, LONGEST_WAIT),
        ("ready", "", LONGEST_WAIT + 1, LONGEST_WAIT + 1),
        ("ready", "a read failed", 10.0, 10.0),
        ("down", "", 10.0, 10.0),
    ],
)
def test_how_long(state: str, trouble: str, stale_after: float, limit: float) -> None:
    """As long as no error is known, a large state may take two minutes."""
    assert wait_limit(*made(state, trouble, stale_after=stale_after)) == limit


@pytest.mark.parametrize(
    ("state", "goes_on", "joinable", "denied", "told"),
    [
        ("down", True, False, False, TOLD),
        ("ready", True, False, False, NO_STATE),
        ("ready", True, False, True, "etcd's roles do not let the gateway read prefix=/svc/"),
        ("ready", False, False, False, ""),
        ("ready", False, False, True, ""),
        ("ready", True, True, False, ""),
    ],
)
def test_what_is_told(state: str, goes_on: bool, joinable: bool, denied: bool, told: str) -> None:
    """A channel that has ended has ended for another reason, and one that has a state lacks something else."""
    assert why_unavailable(*made(state, goes_on=goes_on, joinable=joinable, denied=denied)) == told
