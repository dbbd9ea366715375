"""The names that a source file imports, in full: what a relative import leaves out is added."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def imports_of(source: str | ast.AST, package: str) -> Iterator[str]:
    """Every name that *source*, a module in *package*, imports, in functions and under ``TYPE_CHECKING`` too.

    Raises:
        ImportError: for a relative import that leaves the top of *package*.
    """
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
