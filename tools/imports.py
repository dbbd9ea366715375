"""Finds the names that a source file imports, with relative imports made absolute."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache


@cache
def imports_of(source: str | ast.AST, package: str) -> tuple[str, ...]:
    """Return every name that *source*, a module in *package*, imports, also in functions and under ``TYPE_CHECKING``.

    Raises:
        ImportError: a relative import goes above the top of *package*.
    """
    return tuple(_imports_of(source, package))


def _imports_of(source: str | ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source) if isinstance(source, str) else source):
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
