"""Rules that the source keeps, each for a defect that nothing else would find."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import app
from tools.rooms import functions_of, lengths

APP = Path(app.__file__).parent
SOURCES = sorted(APP.rglob("*.py"))


# Tasks that nothing need hear the death of, and why; all others are made by ``app.ports.spawn``.
UNHEARD = {
    "ports.py": "spawn itself",
    "server/run.py": "awaited where they are made",
    "dev/sample.py": "awaited where it is made",
    "etcd/upstream.py": "of a TaskGroup, which ends the upstream with them",
    "etcd/stream.py": "whatever ends them ends the stream, which its watches are told",
    "etcd/shared_reads.py": "what it raises is given to those who wait for it",
    "watch/feed.py": "the refresh: what it raises is given to those who wait for it",
}


def makes_tasks(source: str) -> bool:
    """Whether *source* makes a task by itself."""
    makers = {"create_task", "ensure_future", "TaskGroup", "run_in_executor"}
    return any(isinstance(node, ast.Attribute) and node.attr in makers for node in ast.walk(ast.parse(source)))


def test_no_task_dies_unheard() -> None:
    """A task that nobody awaits keeps what it raised to itself: the gateway went on without its upstream."""
    found = {str(path.relative_to(APP)) for path in SOURCES if makes_tasks(path.read_text())}
    assert found == set(UNHEARD)


def falsy_classes(source: str) -> Iterator[str]:
    """The classes in *source* that have a length, and are taken for false when it is 0."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
            if "__len__" in methods and "__bool__" not in methods and "Sized" not in bases:
                yield node.name


def test_an_empty_object_is_an_object() -> None:
    """``stream or another`` must not mean another because no watch is on the stream yet."""
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
    """By its name."""
    assert list(falsy_classes(source)) == falsy


# Lines. Most files have about 110, and most functions 5: what is longer than these holds two things.
LONGEST_FILE = 530
LONGEST_FUNCTION = 60


def test_no_file_and_no_function_is_too_long() -> None:
    """``python -m tools.rooms`` prints the longest of each room."""
    measured = {str(path.relative_to(APP)): lengths(path) for path in SOURCES}

    assert {name: file.lines for name, (file, _) in measured.items() if file.lines > LONGEST_FILE} == {}
    assert [one for _, functions in measured.values() for one in functions if one.lines > LONGEST_FUNCTION] == []


def test_a_function_is_measured_without_its_docstring() -> None:
    """Those within a class or a function, too."""
    source = "class A:\n  def f(self):\n    '''Two\n    lines.'''\n    def g():\n      return 1\n    return g"

    assert [(one.name, one.lines) for one in functions_of(source)] == [("A.f", 4), ("A.f.g", 2)]
