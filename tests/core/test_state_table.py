"""``app.core.state_table``: the code runs by the table, and an input that the table lacks is refused."""

from __future__ import annotations

from enum import Enum

import pytest

from app.core.feed_messages import CloseWatch, Commands
from app.core.state_table import InvalidTransitionError, Transition, find_action, transition


class Light(Enum):
    """States of a machine."""

    RED = "red"
    GREEN = "green"


class Button:
    """An input."""


def press(_machine: object) -> Commands:
    """An action."""
    return (CloseWatch(),)


TABLE: dict[tuple[Light, type], Transition[Light]] = {(Light.RED, Button): transition(press, Light.GREEN, Light.RED)}


def test_an_input_that_a_state_knows_has_an_action() -> None:
    """A known input has its action and the states that it may lead to, in the docs' order."""
    assert find_action(TABLE, Light.RED, Button()) is press
    assert TABLE[Light.RED, Button].leads_to == (Light.GREEN, Light.RED)


def test_an_input_that_a_state_does_not_know_is_refused() -> None:
    """An unknown input is refused by name, and so is a kind of input that no state knows."""
    with pytest.raises(InvalidTransitionError, match="Button in state green"):
        find_action(TABLE, Light.GREEN, Button())
    with pytest.raises(InvalidTransitionError, match="int in state red"):
        find_action(TABLE, Light.RED, 1)
