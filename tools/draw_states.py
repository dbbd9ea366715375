"""Draws the life of a feed into docs/architecture.md, from the table that the code runs by.

Usage: ``python -m tools.draw_states``, from the top of the checkout. ``tests/test_docs.py`` compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

from app.core.feed import TABLE, FeedCore, State
from app.core.feedwords import Stop

DOC = Path("docs/architecture.md")
BEGIN = "<!-- states: written by python -m tools.draw_states -->"
END = "<!-- /states -->"


def _name(state: State) -> str:
    """Mermaid takes a hyphen in a name for an arrow's."""
    return state.value.replace("-", "_")


def stoppable() -> bool:
    """Whether ``Stop`` closes a feed from everywhere: then one arrow says it."""
    return all(TABLE[state, Stop].leads_to == (State.CLOSED,) for state in State if state is not State.CLOSED)


def diagram() -> str:
    """The states and what leads from one to another. What an input leaves where it is, is not drawn."""
    assert stoppable(), "draw Stop by itself"
    arrows: dict[tuple[State, State], list[str]] = {}
    for (state, given), entry in TABLE.items():
        for target in entry.leads_to:
            if given is not Stop and target is not state:
                arrows.setdefault((state, target), []).append(given.__name__)
    lines = ["stateDiagram-v2", "    [*] --> idle"]
    lines += [f'    state "{state.value}" as {_name(state)}' for state in State if "-" in state.value]
    lines += [f"    {_name(old)} --> {_name(new)}: {', '.join(inputs)}" for (old, new), inputs in arrows.items()]
    lines += ["    closed --> [*]", "    note right of closed: Stop leads here from every state"]
    return "\n".join(lines)


def table() -> str:
    """Every input that each state knows, and where it may lead; an ignored one is in parentheses."""
    rows = ["| state | input → state |", "|---|---|"]
    for state in State:
        cells = []
        for (known, given), entry in TABLE.items():
            if known is not state or given is Stop:
                continue
            if entry.action is FeedCore._ignore:  # noqa: SLF001  # the table names it
                cells.append(f"({given.__name__})")
            else:
                cells.append(f"{given.__name__} → {' / '.join(f'`{target.value}`' for target in entry.leads_to)}")
        rows.append(f"| `{state.value}` | {'; '.join(cells) or '-'} |")
    return "\n".join(rows)


def drawn(text: str) -> str:
    """*text*, a document, with the picture between its markers drawn anew."""
    before, begin, rest = text.partition(BEGIN)
    _old, end, after = rest.partition(END)
    assert begin, f"no {BEGIN}"
    assert end, f"no {END}"
    return f"{before}{BEGIN}\n\n```mermaid\n{diagram()}\n```\n\n{table()}\n\n{END}{after}"


def main() -> None:
    """Write it."""
    text = DOC.read_text(encoding="utf-8")
    new = drawn(text)
    DOC.write_text(new, encoding="utf-8")
    sys.stdout.write(f"{DOC}: {'unchanged' if new == text else 'drawn anew'}\n")


if __name__ == "__main__":
    main()
