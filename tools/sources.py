"""The syntax trees of source files: each file is parsed, and its tree walked, once in a process."""

from __future__ import annotations

import ast
import gc
from functools import cache
from pathlib import Path


def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file.

    The garbage collector waits: a tree is thousands of objects and no garbage, and half of the time would be its.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))
    finally:
        if collects:
            gc.enable()


@cache
def tree_of(path: Path) -> ast.Module:
    """Return the syntax tree of a file, which all callers share: do not change it."""
    return parse(path)


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Return every node of a file's syntax tree, as ``ast.walk`` does."""
    return tuple(ast.walk(tree_of(path)))
