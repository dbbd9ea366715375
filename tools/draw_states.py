"""Draws the states of a feed, and of its backfill, into docs/architecture.md, from the transition tables of the code.

Usage: ``python -m tools.draw_states``, from the top of the checkout. ``tests/test_docs.py`` checks that the document is
up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from app.core import backfill, feed
from app.core.feed_messages import Stop

DOC = Path("docs/architecture.md")


@dataclass(frozen=True)
class Machine:
    """A transition table, and what its diagram needs besides the table."""

    name: str  # in the markers that enclose the diagram in the document
    states: Iterable[Enum]
    table: Mapping[tuple[Any, type], Any]
    ignore: Callable[..., Any]
    first: str
    end: Enum  # where ``Stop`` leads from every state: the diagram shows that by one note
    last_lines: tuple[str, ...]

    @property
    def begin_mark(self) -> str:
        """The marker before the diagram."""
        return f"<!-- {self.name}: written by python -m tools.draw_states -->"

    @property
    def end_mark(self) -> str:
        """The marker after the diagram."""
        return f"<!-- /{self.name} -->"


LIFE = Machine(
    "states",
    feed.State,
    feed.TABLE,
    feed.FeedCore._ignore,  # noqa: SLF001  # the table uses this method
    "idle",
    feed.State.CLOSED,
    ("    closed --> [*]", "    note right of closed: Stop leads here from every state"),
)
HISTORY = Machine(
    "stages",
    backfill.Stage,
    backfill.TABLE,
    backfill.Backfill._ignore,  # noqa: SLF001
    "resting",
    backfill.Stage.RESTING,
    ("    note right of resting: Stop leads here from every stage",),
)
END = LIFE.end_mark


def _name(state: Enum) -> str:
    """Return a state's name for Mermaid, which takes a hyphen in a name for a part of an arrow."""
    return str(state.value).replace("-", "_")


def stoppable(machine: Machine) -> bool:
    """Whether ``Stop`` leads to the end from every state, so that one note can show it."""
    states = (state for state in machine.states if state is not feed.State.CLOSED)
    return all(machine.table[state, Stop].leads_to == (machine.end,) for state in states)


def diagram(machine: Machine) -> str:
    """Return the diagram of the states and transitions. A transition to the same state is not drawn."""
    assert stoppable(machine), "draw Stop by itself"
    arrows: dict[tuple[Enum, Enum], list[str]] = {}
    for (state, given), entry in machine.table.items():
        for target in entry.leads_to:
            if given is not Stop and target is not state:
                arrows.setdefault((state, target), []).append(given.__name__)
    lines = ["stateDiagram-v2", f"    [*] --> {machine.first}"]
    lines += [f'    state "{state.value}" as {_name(state)}' for state in machine.states if "-" in state.value]
    lines += [f"    {_name(old)} --> {_name(new)}: {', '.join(inputs)}" for (old, new), inputs in arrows.items()]
    return "\n".join([*lines, *machine.last_lines])


def table(machine: Machine) -> str:
    """Return a table of each state's inputs and the states to which they lead. Ignored inputs are in parentheses."""
    rows = ["| state | input → state |", "|---|---|"]
    for state in machine.states:
        cells = []
        for (known, given), entry in machine.table.items():
            if known is not state or given is Stop:
                continue
            if entry.action is machine.ignore:
                cells.append(f"({given.__name__})")
            else:
                cells.append(f"{given.__name__} → {' / '.join(f'`{target.value}`' for target in entry.leads_to)}")
        rows.append(f"| `{state.value}` | {'; '.join(cells) or '-'} |")
    return "\n".join(rows)


def drawn(text: str) -> str:
    """Return the document *text* with new diagrams between their markers."""
    for machine in (LIFE, HISTORY):
        before, begin, rest = text.partition(machine.begin_mark)
        _old, end, after = rest.partition(machine.end_mark)
        assert begin, f"no {machine.begin_mark}"
        assert end, f"no {machine.end_mark}"
        text = f"{before}{begin}\n\n```mermaid\n{diagram(machine)}\n```\n\n{table(machine)}\n\n{end}{after}"
    return text


def main() -> None:
    """Write the document."""
    text = DOC.read_text(encoding="utf-8")
    new = drawn(text)
    DOC.write_text(new, encoding="utf-8")
    sys.stdout.write(f"{DOC}: {'unchanged' if new == text else 'drawn anew'}\n")


if __name__ == "__main__":
    main()
