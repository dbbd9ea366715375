"""Writes the figures of docs/benchmarks.md into the pages that repeat them: ``python -m tools.figures``.

``make reference`` calls it, and a test fails if a page differs from what it would write. A table that repeats figures
has a mark above: the section of docs/benchmarks.md, and for each of its rows the row there, such as
``<!-- figures: What etcd spends: gateway, 5,000 subscribers; etcd's JSON gateway, 5,000 subscribers -->``. Its columns
are the first columns there. In text, ``<!-- figure: SECTION: ROW: COLUMN -->`` stands after a figure.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_TABLE = re.compile(r"(<!-- figures: ([^:]+): (.+) -->\n\|.*\n\|[-|]+\n)((?:\|.*\n)+)")
_FIGURE = re.compile(r"[\d.,]*\d(?=[^\d]*<!-- figure: ([^:]+): ([^:]+): (\d+) -->)")
_NUMBER = re.compile(r"[\d.,]*\d")


def cells(row: str) -> list[str]:
    """The cells of a row."""
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def measured(text: str) -> dict[str, dict[str, list[str]]]:
    """The medians of docs/benchmarks.md, by section and row."""
    found: dict[str, dict[str, list[str]]] = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        rows = [cells(line) for line in section.splitlines() if line.startswith("| ")]
        found[section.partition("\n")[0]] = {row[0]: [cell.partition(" ")[0] for cell in row[1:]] for row in rows}
    return found


def written(page: str, figures: dict[str, dict[str, list[str]]]) -> str:
    """The text of a page with the figures as they were measured."""

    def table(match: re.Match[str]) -> str:
        rows = []
        for row, source in zip(match[4].splitlines(), match[3].split("; "), strict=True):
            name, *own = cells(row)
            columns = figures[match[2]][source]
            own = [_NUMBER.sub(columns[at], cell, count=1) for at, cell in enumerate(own)]
            rows.append(f"| {' | '.join([name, *own])} |\n")
        return match[1] + "".join(rows)

    def figure(match: re.Match[str]) -> str:
        return figures[match[1]][match[2]][int(match[3]) - 1]

    return _FIGURE.sub(figure, _TABLE.sub(table, page))


def main() -> None:
    figures = measured(BENCHMARKS.read_text(encoding="utf-8"))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(written(text, figures), encoding="utf-8")


if __name__ == "__main__":
    main()
