"""State tables: the action that each state takes on each input, and the states that may follow.

The code runs by these tables, the tests check each action against its row, and ``tools/draw_states.py`` draws them into
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
    """The state does not accept this input. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Transition(Generic[S]):
    """The action of a state on an input, and the states that may follow."""

    action: Callable[..., Commands]
    leads_to: tuple[S, ...]


def transition(action: Callable[..., Commands], *leads_to: S) -> Transition[S]:
    """Return one row of a table."""
    return Transition(action, leads_to)


def find_action(table: Mapping[tuple[S, type], Transition[S]], state: S, given: object) -> Callable[..., Commands]:
    """Return the action of *state* on the input *given*.

    Raises:
        InvalidTransitionError: *table* has no such row.
    """
    found = table.get((state, type(given)))
    if found is None:
        msg = f"unexpected {type(given).__name__} in state {state.value}"
        raise InvalidTransitionError(msg)
    return found.action
