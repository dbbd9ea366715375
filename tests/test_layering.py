"""Which room may import which: the core imports no other room; its shells import the core and not each other."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

import app
from tools.draw_map import rooms
from tools.imports import imports_of
from tools.sources import nodes_of, tree_of

APP = Path(app.__file__).parent

# For each room of ``app/``, the rooms that it imports, from the lowest to the highest: docs/map.svg in words. A room is
# a folder, or one file beside the folders. Every other import is forbidden. Before you add an import, ask whether the
# name that you want is in the right room.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "prefixes": set(),
    "urls": set(),
    "units": set(),
    "settings": {"prefixes", "units", "urls"},
    "settings_text": {"settings", "units"},
    "page": set(),
    "signals": set(),
    "stdio": set(),
    "arguments": {"settings", "settings_text", "stdio", "units"},
    "files": set(),
    "event_loop": set(),
    "logs": set(),
    "allocator": set(),
    "descriptors": {"settings"},
    "memory_limit": {"settings"},
    "memory": {"core"},
    "shared_reads": {"core"},
    "ports": {"core"},
    "etcd": {"core", "files", "memory", "ports", "shared_reads"},
    "dial": set(),
    "tier": {"core", "dial", "ports", "shared_reads"},
    "watch": {"core", "ports"},
    "file_watch": {"event_loop", "files", "settings"},
    "access": {"core", "dial", "file_watch", "files", "logs", "ports", "settings", "urls"},
    "tls": {"core", "file_watch", "files", "ports", "settings"},
    "check": {"access", "core", "dial", "settings", "stdio", "urls"},
    "stream": {"core", "logs", "ports", "watch"},
    "gateway": {"access", "core", "descriptors", "etcd", "ports", "settings", "stream", "tier", "tls", "urls", "watch"},
    "metrics": {"core", "etcd", "gateway", "logs", "tls", "watch"},
    "api": {
        "access",
        "core",
        "gateway",
        "memory",
        "metrics",
        "page",
        "ports",
        "stream",
        "tier",
        "units",
        "urls",
        "watch",
    },
    "main": {"api", "core", "gateway", "metrics", "ports", "settings"},
    "server": {
        "allocator",
        "api",
        "core",
        "descriptors",
        "gateway",
        "main",
        "ports",
        "settings",
        "signals",
        "stream",
        "tls",
    },
    "workers": {
        "access",
        "allocator",
        "core",
        "event_loop",
        "gateway",
        "logs",
        "main",
        "ports",
        "server",
        "settings",
        "signals",
        "stdio",
        "tls",
        "watch",
    },
    "config": {
        "access",
        "core",
        "descriptors",
        "gateway",
        "memory_limit",
        "settings",
        "settings_text",
        "tls",
        "workers",
        "urls",
    },
    "dev": {"core", "descriptors", "etcd", "server", "settings", "stdio", "urls"},
    "cli": {
        "access",
        "allocator",
        "arguments",
        "check",
        "config",
        "descriptors",
        "dev",
        "event_loop",
        "logs",
        "memory_limit",
        "ports",
        "server",
        "settings",
        "settings_text",
        "signals",
        "stdio",
        "workers",
    },
}
# These rooms need the standard library and nothing else.
STANDARD = {"core", "ports", "watch"}
# Modules of the standard library that the core may not import, because they wait, tell the time, draw random numbers or
# log.
IMPURE = {"asyncio", "concurrent", "logging", "os", "random", "secrets", "select", "socket", "threading", "time"}
WAITING = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)


def files_of(room: str) -> list[Path]:
    """The source files of a room."""
    return sorted((APP / room).rglob("*.py")) or [APP / f"{room}.py"]


def package_of(path: Path) -> str:
    """The package that contains a file of ``app/``."""
    return ".".join(path.parent.relative_to(APP.parent).parts)


def forbidden(room: str, source: Path | str, package: str) -> list[str]:
    """The imports in *source*, a module in *package*, that *room* may not have. *source*: a file, or its text."""
    found = []
    for name in imports_of(source, package):
        top, _, rest = name.partition(".")
        if top == "app":
            other = rest.partition(".")[0]
            wrong = other in MAY_IMPORT and other not in {room, *MAY_IMPORT[room]}
        else:
            wrong = (room in STANDARD and top not in sys.stdlib_module_names) or (room == "core" and top in IMPURE)
        if wrong:
            found.append(name)
    return found


ROOMS = "|".join(sorted(path.stem for path in APP.iterdir() if not path.name.startswith("_")))
SAID = re.compile(rf"\bapp\.({ROOMS})\b|-m app\b|\b(from|import) app\b")


def own_names(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """The places among *nodes* with the name ``app``, except docstrings: the wheel installs it under another name."""
    prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        match node:
            case ast.Import(names=names) if any(name.name.partition(".")[0] == "app" for name in names):
                yield ast.unparse(node)
            case ast.ImportFrom(level=0, module=str(module)) if module.partition(".")[0] == "app":
                yield ast.unparse(node)
            case ast.Constant(value=str(text)) if id(node) not in prose and SAID.search(text):
                yield text


def waits(nodes: Iterable[ast.AST]) -> bool:
    """Whether one of *nodes* is an ``async`` or ``await``."""
    return any(isinstance(node, WAITING) or (isinstance(node, ast.comprehension) and node.is_async) for node in nodes)


def test_the_code_does_not_know_the_name_of_its_package() -> None:
    """The package is ``app`` in a checkout and ``etcd_watch_gateway`` in the wheel, so the code uses neither name."""
    found = {str(path.relative_to(APP)): list(own_names(nodes_of(path))) for path in sorted(APP.rglob("*.py"))}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("import app", 1),
        ("import app.core.log as log", 1),
        ("def late():\n    from app import logs", 1),
        ("from app.core import log", 1),
        ("files('app.api')", 1),
        ("def f():\n    'Like app.core does.'\n    run('-m app serve')", 1),
        ("from . import logs\nfrom ..core.log import Log", 0),
        ("app.state.admin = 'https://app.example'", 0),
        ("'As python -m app does.'", 0),
    ],
)
def test_the_name_is_found(source: str, named: int) -> None:
    """The name is found in an import and in a string, but not in a docstring."""
    assert len(list(own_names(list(ast.walk(ast.parse(source)))))) == named


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    """A room imports only the rooms in the table; a failure names the file and the import."""
    found = {str(path.relative_to(APP)): forbidden(room, path, package_of(path)) for path in files_of(room)}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_the_table_is_the_map() -> None:
    """The table has every room, and allows no import that no file makes."""
    assert {name: room.imports for name, room in rooms().items()} == MAY_IMPORT


def test_no_import_goes_back() -> None:
    """A room imports only rooms above it in the table, so no arrow of docs/map.svg is red."""
    above: set[str] = set()
    for room, others in MAY_IMPORT.items():
        assert others <= above, room
        above.add(room)


def test_files_import_each_other_in_no_circle() -> None:
    """No files import each other in a circle, not even for types or within a room: they could not be read apart."""
    files = {".".join(path.relative_to(APP.parent).with_suffix("").parts): path for path in APP.rglob("*.py")}
    imported: dict[str, set[str]] = {}
    for name, path in files.items():
        names = set(imports_of(path, package_of(path)))
        # ``from app.core.log import Log`` names app.core.log.Log: a file, or a name in a file.
        imported[name] = ({other for one in names for other in (one, one.rpartition(".")[0])} & set(files)) - {name}

    graphlib.TopologicalSorter(imported).prepare()  # raises CycleError, with the files


def at_import(path: Path) -> Iterator[str]:
    """The names that a file imports as soon as it is imported itself."""
    imports: list[ast.stmt] = [node for node in tree_of(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    yield from imports_of(ast.Module(imports, []), package_of(path))


def test_only_who_follows_a_gateway_imports_httpx() -> None:
    """The import takes 60 ms of CPU at the start of ``serve``; only an edge and a worker need httpx."""
    files = {".".join(path.relative_to(APP.parent).with_suffix("").parts): path for path in APP.rglob("*.py")}
    found, ahead = set[str](), {"app.cli", "app.server.run"}
    seen = set(ahead)
    while ahead:
        names = set(at_import(files[ahead.pop()]))
        found |= names
        new = {other for one in names for other in (one, one.rpartition(".")[0]) if other in files} - seen
        seen |= new
        ahead |= new

    assert {"app.gateway", "app.api.from_hub"} <= seen
    assert "httpx" not in found


def test_the_core_never_waits() -> None:
    """A step of the core is complete when it returns: no other step can come in between."""
    assert [path.name for path in files_of("core") if waits(nodes_of(path))] == []


@pytest.mark.parametrize(
    ("room", "source"),
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
        ("ports", "from app.watch.feed import Feed"),
        ("ports", "from .watch.feed import Feed"),
        ("settings", "from app.core.slow_reader import Limits"),
        ("watch", "from app.etcd.link import Link"),
        ("watch", "from ..etcd.link import Link"),
        ("watch", "from .. import etcd"),
        ("watch", "import app.etcd"),
        ("watch", "import grpc"),
        ("etcd", "from app.watch import feed"),
        ("etcd", "from app.access.token import TokenFile"),
        ("stream", "from ..api.problems import problem"),
        ("gateway", "from .api import watch"),
        ("check", "from ..server.run import serve"),
    ],
)
def test_a_forbidden_import_is_found(room: str, source: str) -> None:
    """A forbidden import is found in any form that an import can have."""
    assert forbidden(room, source, f"app.{room}" if (APP / room).is_dir() else "app")


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("core", "import json.encoder\nfrom app.core.log import Log"),
        ("core", "from . import log\nfrom .log import Log"),
        ("watch", "import asyncio\nfrom app.core.log import Log\nfrom app.ports import Etcd"),
        ("watch", "from ..core.log import Log\nfrom ..ports import Etcd\nfrom .feed import Feed"),
        ("etcd", "import grpc\nfrom app.etcd.link import Link"),
        ("api", "from app import __version__"),
    ],
)
def test_an_allowed_import_is_not_found(room: str, source: str) -> None:
    """An import that the table allows is not reported."""
    assert forbidden(room, source, f"app.{room}") == []


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
    """The syntax is found, not the word."""
    assert waits(ast.walk(ast.parse(source))) is found
