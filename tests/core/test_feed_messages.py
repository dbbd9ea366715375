"""``app.core.feed_messages``: the machine knows every input, and all messages are values."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import get_args

import pytest

from app.core import backfill, feed
from app.core.feed_messages import BackfillInput, Command, FeedInput, OpenWatch, Probed


def test_every_input_is_known_to_some_state() -> None:
    """Every input is known to some state, and no state knows another input."""
    assert {given for _state, given in feed.TABLE} == set(get_args(FeedInput))
    assert {given for _stage, given in backfill.TABLE} == set(get_args(BackfillInput))


@pytest.mark.parametrize("kind", sorted({*get_args(FeedInput), *get_args(BackfillInput), *get_args(Command)}, key=str))
def test_all_are_values(kind: type) -> None:
    """Messages are equal if their contents are, and immutable: a caller can keep, compare and resend them."""
    one, other = (kind(*[1] * len(fields(kind))) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    with pytest.raises((FrozenInstanceError, TypeError, AttributeError)):
        one.anything = 1


def test_they_differ_by_what_they_say() -> None:
    """Messages with different contents are unequal."""
    assert OpenWatch(5) == OpenWatch(5, "live")
    assert OpenWatch(5) != OpenWatch(6)
    assert Probed("ok") != Probed("compacted")
