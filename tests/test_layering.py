"""Who may import whom: the core decides and knows nobody, its shells know it and not each other."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import app
from tools.imports import imports_of

APP = Path(app.__file__).parent

# Of each part of ``app``, the parts of ``app`` that it may import. Those that are not listed may import all.
MAY_IMPORT = {
    "core": {"core"},
    "ports": {"core"},
    "watch": {"watch", "ports", "core"},
    "stream": {"stream", "watch", "ports", "core"},
    "etcd": {"etcd", "ports", "core"},
}
# What the core may not have, though it is in the standard library: waiting, time, chance, and telling of it.
IMPURE = {"asyncio", "concurrent", "logging", "os", "random", "secrets", "select", "socket", "threading", "time"}
WAITING = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)


def files_of(part: str) -> list[Path]:
    """The source files of one part: a package, or a module."""
    return sorted((APP / part).rglob("*.py")) or [APP / f"{part}.py"]


def package_of(path: Path) -> str:
    """The package that a file of ``app/`` is in."""
    return ".".join(path.parent.relative_to(APP.parent).parts)


def strangers(part: str, source: str, package: str) -> list[str]:
    """The imports in *source*, a module of *package*, that *part* may not have."""
    found = []
    for name in imports_of(source, package):
        top, _, rest = name.partition(".")
        if top == "app":
            wrong = rest.partition(".")[0] not in MAY_IMPORT[part]
        else:
            # Only the core must do without other packages.
            wrong = part == "core" and (top not in sys.stdlib_module_names or top in IMPURE)
        if wrong:
            found.append(name)
    return found


def waits(source: str) -> bool:
    """Whether there is an ``async`` or ``await`` in it."""
    return any(
        isinstance(node, WAITING) or (isinstance(node, ast.comprehension) and node.is_async)
        for node in ast.walk(ast.parse(source))
    )


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_every_part_keeps_to_its_side(part: str) -> None:
    """No file imports what its part may not."""
    files = files_of(part)
    found = {str(path.relative_to(APP)): strangers(part, path.read_text(), package_of(path)) for path in files}
    assert files
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_the_core_never_waits() -> None:
    """Whatever it does is done when it returns: no step of it can be interleaved with another."""
    assert [path.name for path in files_of("core") if waits(path.read_text())] == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("core", "import asyncio"),
        ("core", "from time import monotonic"),
        ("core", "import concurrent.futures"),
        ("core", "import grpc"),
        ("core", "from app import logs"),
        ("core", "from app.ports import Clock"),
        ("core", "from .. import logs"),
        ("core", "from ..ports import Clock"),
        ("core", "def late():\n    import random"),
        ("core", "if TYPE_CHECKING:\n    from app.watch.feed import Feed"),
        ("core", "if TYPE_CHECKING:\n    from ..watch.feed import Feed"),
        ("watch", "from app.etcd.link import Link"),
        ("watch", "from ..etcd.link import Link"),
        ("watch", "from .. import etcd"),
        ("watch", "import app.etcd"),
        ("watch", "from app.api import stream"),
        ("watch", "from app.stream.sink import Sink"),
        ("stream", "from app.api.problems import problem"),
        ("etcd", "from app.watch import feed"),
        ("etcd", "from app.access.policy import AccessPolicy"),
        ("ports", "from app.watch.feed import Feed"),
    ],
)
def test_a_stranger_is_found(part: str, source: str) -> None:
    """In any form that an import can be written in."""
    assert strangers(part, source, "app" if part == "ports" else f"app.{part}")


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("core", "import json.encoder\nfrom app.core.log import Log"),
        ("core", "from . import log\nfrom .log import Log"),
        ("watch", "from ..core.log import Log\nfrom ..ports import Etcd\nfrom .feed import Feed"),
        ("watch", "import asyncio\nfrom app.core.log import Log\nfrom app.ports import Etcd"),
        ("etcd", "import grpc\nfrom app.etcd.link import Link"),
    ],
)
def test_a_friend_is_none(part: str, source: str) -> None:
    """What the table allows is allowed."""
    assert strangers(part, source, f"app.{part}") == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("async def f(): pass", True),
        ("async def f():\n    await g()", True),
        ("f = [x async for x in y]", True),
        ("def f():\n    'async and await are only words here'", False),
    ],
)
def test_waiting_is_found(source: str, found: bool) -> None:
    """The syntax, not the word."""
    assert waits(source) is found
