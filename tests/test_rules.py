"""Rules that the source follows, each for a defect that nothing else would find."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import app
from tools.rooms import functions_of, lengths
from tools.sources import nodes_of

APP = Path(app.__file__).parent
SOURCES = sorted(APP.rglob("*.py"))


# Files that may create tasks directly, and why a failure there is still noticed; ``app.ports.spawn`` makes all others.
UNHEARD = {
    "ports.py": "spawn itself",
    "workers/team.py": "awaited in the function that creates them",
    "workers/hub.py": "the task that waits for the workers' start is awaited, and so are the waits",
    "server/run.py": "awaited in the function that creates them",
    "check/through.py": "awaited in the function that cancels them, which raises what they have raised",
    "dev/sample.py": "awaited in the function that creates it",
    "etcd/upstream.py": "in a TaskGroup, which ends the upstream when a task fails",
    "etcd/stream.py": "their end ends the stream, and the stream notifies its watches",
    "shared_reads.py": "the callers that wait for it get its exception",
    "dial.py": "awaited in the function that creates them; what comes too late is closed",
    "watch/fresh_snapshots.py": "the read: the callers that wait for it get its exception",
}


def makes_tasks(path: Path) -> bool:
    """Whether a file creates a task directly."""
    makers = {"create_task", "ensure_future", "TaskGroup", "run_in_executor"}
    return any(isinstance(node, ast.Attribute) and node.attr in makers for node in nodes_of(path))


def test_no_task_dies_unheard() -> None:
    """A task that nobody awaits keeps its exception to itself: the gateway once went on without its upstream."""
    found = {str(path.relative_to(APP)) for path in SOURCES if makes_tasks(path)}
    assert found == set(UNHEARD)


def falsy_classes(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The classes among *nodes* that have a length, and are falsy when the length is 0."""
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
            if "__len__" in methods and "__bool__" not in methods and "AlwaysTrue" not in bases:
                yield node.name


def test_an_empty_object_is_an_object() -> None:
    """``stream or another`` must not select the other one because the stream has no watch yet."""
    found = {path.name: list(falsy_classes(nodes_of(path))) for path in SOURCES}
    assert {name: classes for name, classes in found.items() if classes} == {}


@pytest.mark.parametrize(
    ("source", "falsy"),
    [
        ("class A:\n    def __len__(self): return 0", ["A"]),
        ("class A(Base):\n    def __len__(self): return 0", ["A"]),
        ("class A(AlwaysTrue):\n    def __len__(self): return 0", []),
        ("class A:\n    def __len__(self): return 0\n    def __bool__(self): return True", []),
        ("class A:\n    pass", []),
    ],
)
def test_a_falsy_class_is_found(source: str, falsy: list[str]) -> None:
    """A falsy class is found by its name."""
    assert list(falsy_classes(ast.walk(ast.parse(source)))) == falsy


def ports_given_away(source: str) -> Iterator[int]:
    """The lines of *source* where a port is taken from a socket that is closed before the port is used."""
    if "getsockname" not in source:
        return
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for block in ast.walk(function):
            if not isinstance(block, ast.With) or not isinstance(block.items[0].optional_vars, ast.Name):
                continue
            closed = f"{block.items[0].optional_vars.id}.getsockname"
            ports = {
                ast.unparse(line.targets[0])
                for line in block.body
                if isinstance(line, ast.Assign) and closed in ast.unparse(line.value)
            }
            returned = [ast.unparse(line.value) for line in block.body if isinstance(line, ast.Return) and line.value]
            later = [
                name.id
                for name in ast.walk(function)
                if isinstance(name, ast.Name) and name.lineno > (block.end_lineno or 0)
            ]
            if any(closed in value or value in ports for value in returned) or ports.intersection(later):
                yield block.lineno


def test_a_port_is_used_while_it_is_held_or_is_not_ephemeral() -> None:
    """The kernel gives an ephemeral port that was closed to any outgoing connection: use ``free_ports`` instead.

    A test that asked for two listeners at one closed port found the port taken by a test beside it.
    """
    top = APP.parent
    sources = [path for folder in ("tests", "benchmarks", "tools", "clients") for path in (top / folder).rglob("*.py")]
    found = {str(path.relative_to(top)): list(ports_given_away(path.read_text())) for path in sources}
    assert {name: lines for name, lines in found.items() if lines} == {}


BOUND = "def f():\n    with socket.socket() as s:\n        s.bind(A)\n"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        (BOUND + "        port = s.getsockname()[1]\n    use(port)", [2]),
        (BOUND + "        port = s.getsockname()[1]\n        return port", [2]),
        (BOUND + "        return s.getsockname()[1]", [2]),
        (BOUND + "        port = s.getsockname()[1]\n        use(port)", []),
        (BOUND + "        yield s.getsockname()[1]", []),
    ],
)
def test_a_port_that_is_given_away_is_found(source: str, lines: list[int]) -> None:
    """A port that leaves its socket's block is found."""
    assert list(ports_given_away(source)) == lines


# In lines. Most files have about 110, and most functions 5: a file or function that is longer than this does two
# things.
LONGEST_FILE = 540
LONGEST_FUNCTION = 60


def test_no_file_and_no_function_is_too_long() -> None:
    """``python -m tools.rooms`` prints the longest file and function of each room."""
    measured = {str(path.relative_to(APP)): lengths(path) for path in SOURCES}

    assert {name: file.lines for name, (file, _) in measured.items() if file.lines > LONGEST_FILE} == {}
    assert [one for _, functions in measured.values() for one in functions if one.lines > LONGEST_FUNCTION] == []


def test_a_function_is_measured_without_its_docstring() -> None:
    """Functions within a class or a function are measured, too."""
    source = "class A:\n  def f(self):\n    '''Two\n    lines.'''\n    def g():\n      return 1\n    return g"

    assert [(one.name, one.lines) for one in functions_of(source)] == [("A.f", 4), ("A.f.g", 2)]
