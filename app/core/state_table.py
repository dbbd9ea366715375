"""State tables: what each state makes of each input, and where that may lead.

The code runs by these tables, the tests hold each action to its line, and ``tools/draw_states.py`` draws them into
docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from .feed_messages import Commands

S = TypeVar("S", bound=Enum)


class InvalidTransitionError(Exception):
    """The state does not know this input. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Transition(Generic[S]):
    """What a state makes of an input, and the states that this may lead to."""

    action: Callable[..., Commands]
    leads_to: tuple[S, ...]


def transition(action: Callable[..., Commands], *leads_to: S) -> Transition[S]:
    """One line of a table."""
    return Transition(action, leads_to)


def find_action(table: Mapping[tuple[S, type], Transition[S]], state: S, given: object) -> Callable[..., Commands]:
    """What *state* makes of the input *given*.

    Raises:
        InvalidTransitionError: *table* has no such line.
    """
    found = table.get((state, type(given)))
    if found is None:
        msg = f"{type(given).__name__} in state {state.value}"
        raise InvalidTransitionError(msg)
    return found.action
