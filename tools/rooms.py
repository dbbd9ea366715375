"""Prints the rooms of ``app/`` with their size, their longest file and their longest function.

Usage: ``python -m tools.rooms``, from the top of the checkout. ``tests/test_rules.py`` checks the limits.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.sources import tree_of

APP = Path("app")


@dataclass(frozen=True, slots=True, order=True)
class Length:
    """The number of lines of a file or of a function. A function is counted without its docstring."""

    lines: int
    name: str

    def __str__(self) -> str:
        """Return the cell of the table."""
        return f"{self.lines:4}  {self.name}"


def functions_of(source: str) -> Iterator[Length]:
    """Yield every function in *source*, nested functions too. A method's name begins with its class."""
    yield from _functions(ast.parse(source), "")


def _functions(parent: ast.AST, prefix: str) -> Iterator[Length]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.expr):
            continue  # no statement is in an expression
        name = prefix
        if isinstance(node, ast.ClassDef):
            name = f"{prefix}{node.name}."
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}{node.name}."
            yield Length(_lines(node), name[:-1])
        yield from _functions(node, name)


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def lengths(path: Path) -> tuple[Length, list[Length]]:
    """Return the length of a file of ``app/``, and of each of its functions."""
    source = path.read_text(encoding="utf-8")
    functions = [Length(one.lines, f"{path.name}: {one.name}") for one in _functions(tree_of(path), "")]
    return Length(source.count("\n"), path.name), functions


def main() -> None:
    """Print the table, with the largest room first."""
    rows = []
    for place in APP.iterdir():
        measured = [lengths(path) for path in (place.rglob("*.py") if place.is_dir() else [place])]
        if measured and (place.is_dir() or place.suffix == ".py"):
            files = [file for file, _ in measured]
            functions = [function for _, found in measured for function in found]
            total = sum(file.lines for file in files)
            rows.append((total, len(files), place.name, max(files), max(functions, default=Length(0, "-"))))
    sys.stdout.write(f"{'room':16} {'files':>5} {'lines':>6}   {'longest file':32} longest function\n")
    for total, number, name, file, function in sorted(rows, reverse=True):
        sys.stdout.write(f"{name:16} {number:5} {total:6}   {file!s:32} {function}\n")


if __name__ == "__main__":
    main()
