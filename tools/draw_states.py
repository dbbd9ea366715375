"""Draws the states of a feed, and of its backfill, from the transition tables of the code: a picture of each in docs/,
and a table of each in docs/architecture.md.

Usage: ``python -m tools.draw_states``, from the top of the checkout. The pictures need Graphviz, and are drawn only if
their machine has changed. ``tests/test_docs.py`` checks that document and pictures are up to date.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
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

    name: str  # in the markers that enclose the diagram in the document, and of the picture
    alt: str
    states: Iterable[Enum]
    table: Mapping[tuple[Any, type], Any]
    ignore: Callable[..., Any]
    first: str
    end: Enum  # where ``Stop`` leads from every state: the diagram shows that by one arrow

    @property
    def picture(self) -> Path:
        """The file of the picture."""
        return DOC.with_name(f"{self.name}.svg")

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
    "The states of a feed, and the inputs that lead from one to another; the table below says the same",
    feed.State,
    feed.TABLE,
    feed.FeedCore._ignore,  # noqa: SLF001  # the table uses this method
    "idle",
    feed.State.CLOSED,
)
HISTORY = Machine(
    "stages",
    "The stages of a read of history, and the inputs that lead from one to another; the table below says the same",
    backfill.Stage,
    backfill.TABLE,
    backfill.Backfill._ignore,  # noqa: SLF001
    "resting",
    backfill.Stage.RESTING,
)
END = LIFE.end_mark


def stoppable(machine: Machine) -> bool:
    """Whether ``Stop`` leads to the end from every state, so that one note can show it."""
    states = (state for state in machine.states if state is not feed.State.CLOSED)
    return all(machine.table[state, Stop].leads_to == (machine.end,) for state in states)


def source(machine: Machine) -> str:
    """Return the diagram for Graphviz. A transition to the same state is not drawn."""
    assert stoppable(machine), "draw Stop by itself"
    arrows: dict[tuple[Enum, Enum], list[str]] = {}
    for (state, given), entry in machine.table.items():
        for target in entry.leads_to:
            if given is not Stop and target is not state:
                arrows.setdefault((state, target), []).append(given.__name__)
    lines = [f'"{state.value}"' for state in machine.states]
    lines += [f'"begin" -> "{machine.first}"', f'"stop" -> "{machine.end.value}" [style=dashed, label="Stop"]']
    for (old, new), inputs in arrows.items():
        label = ",\\n".join(", ".join(inputs[at : at + 2]) for at in range(0, len(inputs), 2))
        lines.append(f'"{old.value}" -> "{new.value}" [label="{label}"]')
    return "\n".join(["digraph {", *STYLE, *lines, "}"])


STYLE = (
    'graph [bgcolor="white", pad="0.2", nodesep="0.5", ranksep="0.6"]',
    'node [shape=box, style="rounded,filled", fillcolor="#f8fafc", color="#64748b"]',
    'node [fontcolor="#1f2937", fontname="sans-serif"]',
    'edge [color="#64748b", fontcolor="#1f2937", fontname="sans-serif", fontsize="10"]',
    '"begin" [shape=point, label=""]',
    '"stop" [shape=none, style="", label="any"]',
)


def digest(machine: Machine) -> str:
    """Return the line by which a picture says what it was drawn from."""
    return f"<!-- drawn by python -m tools.draw_states from {hashlib.sha256(source(machine).encode()).hexdigest()} -->"


def is_drawn(machine: Machine) -> bool:
    """Whether the picture shows the machine as it is."""
    return machine.picture.exists() and machine.picture.read_text(encoding="utf-8").startswith(digest(machine))


def picture(machine: Machine) -> str:
    """Draw the diagram with Graphviz."""
    dot = shutil.which("dot")
    if dot is None:
        raise SystemExit("dot is not installed: apt-get install graphviz, or brew install graphviz")
    done = subprocess.run([dot, "-Tsvg"], input=source(machine), capture_output=True, text=True, check=True)  # noqa: S603  # of this tool alone
    svg = done.stdout[done.stdout.index("<svg") :]
    return f"{digest(machine)}\n{re.sub(r'<!--.*?-->', '', svg, flags=re.DOTALL)}"


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
        shown = f"![{machine.alt}]({machine.picture.name})"
        text = f"{before}{begin}\n\n{shown}\n\n{table(machine)}\n\n{end}{after}"
    return text


def main() -> None:
    """Write the document, and the pictures whose machine has changed."""
    for machine in (LIFE, HISTORY):
        if not is_drawn(machine):
            machine.picture.write_text(picture(machine), encoding="utf-8")
            sys.stdout.write(f"{machine.picture}: drawn anew\n")
    text = DOC.read_text(encoding="utf-8")
    new = drawn(text)
    DOC.write_text(new, encoding="utf-8")
    sys.stdout.write(f"{DOC}: {'unchanged' if new == text else 'drawn anew'}\n")


if __name__ == "__main__":
    main()
