"""Rules that the source follows, each for a defect that nothing else would find."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import app
from tools.rooms import functions_of, lengths

APP = Path(app.__file__).parent
SOURCES = sorted(APP.rglob("*.py"))


# Files that may create tasks directly, and why a failure there is still noticed; ``app.ports.spawn`` makes all others.
UNHEARD = {
    "ports.py": "spawn itself",
    "server/run.py": "awaited in the function that creates them",
    "dev/sample.py": "awaited in the function that creates it",
    "etcd/upstream.py": "in a TaskGroup, which ends the upstream when a task fails",
    "etcd/stream.py": "their end ends the stream, and the stream notifies its watches",
    "etcd/shared_reads.py": "the callers that wait for it get its exception",
    "watch/state_reader.py": "the refresh: the callers that wait for it get its exception",
}


def makes_tasks(source: str) -> bool:
    """Whether *source* creates a task directly."""
    makers = {"create_task", "ensure_future", "TaskGroup", "run_in_executor"}
    return any(isinstance(node, ast.Attribute) and node.attr in makers for node in ast.walk(ast.parse(source)))


def test_no_task_dies_unheard() -> None:
    """A task that nobody awaits keeps its exception to itself: the gateway once went on without its upstream."""
    found = {str(path.relative_to(APP)) for path in SOURCES if makes_tasks(path.read_text())}
    assert found == set(UNHEARD)


def falsy_classes(source: str) -> Iterator[str]:
    """The classes in *source* that have a length, and are falsy when the length is 0."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
            if "__len__" in methods and "__bool__" not in methods and "Sized" not in bases:
                yield node.name


def test_an_empty_object_is_an_object() -> None:
    """``stream or another`` must not select the other one because the stream has no watch yet."""
    found = {path.name: list(falsy_classes(path.read_text())) for path in SOURCES}
    assert {name: classes for name, classes in found.items() if classes} == {}


@pytest.mark.parametrize(
    ("source", "falsy"),
    [
        ("class A:\n    def __len__(self): return 0", ["A"]),
        ("class A(Base):\n    def __len__(self): return 0", ["A"]),
        ("class A(Sized):\n    def __len__(self): return 0", []),
        ("class A:\n    def __len__(self): return 0\n    def __bool__(self): return True", []),
        ("class A:\n    pass", []),
    ],
)
def test_a_falsy_class_is_found(source: str, falsy: list[str]) -> None:
    """A falsy class is found by its name."""
    assert list(falsy_classes(source)) == falsy


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
