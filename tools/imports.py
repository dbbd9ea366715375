"""Finds the names that a source file imports, with relative imports made absolute."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from tools.sources import nodes_of


@cache
def imports_of(source: Path | str | ast.AST, package: str) -> tuple[str, ...]:
    """Return every name that *source*, a module in *package*, imports, also in functions and under ``TYPE_CHECKING``.

    *source*: a file, its text or its tree.

    Raises:
        ImportError: a relative import goes above the top of *package*.
    """
    if isinstance(source, Path):
        return tuple(_imports_of(nodes_of(source), package))
    return tuple(_imports_of(ast.walk(ast.parse(source) if isinstance(source, str) else source), package))


def _imports_of(nodes: Iterable[ast.AST], package: str) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")
            if node.level > len(above):
                msg = f"line {node.lineno} of a module of {package} imports from above {above[0]}"
                raise ImportError(msg)
            parts = above[: len(above) - node.level + 1] if node.level else []
            module = ".".join([*parts, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
