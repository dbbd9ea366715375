"""Which processes are measured when ``make test`` measures the tests' coverage.

``coverage run`` passes its settings to every Python process in an environment variable. This plugin removes the
variable while a test outside the rooms' folders runs. Those tests are about bytes, time, crowds and faults: the tracer
would change what they measure, and it adds about 40 % to the CPU of a test with gateways. The rooms' own tests reach
the same lines.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import app
from tests.support.forkserver import MEASURED

ROOMS = {path.name for path in Path(app.__file__).parent.iterdir() if path.is_dir()}
TESTS = Path(__file__).parents[1]


def is_of_a_room(path: Path) -> bool:
    """Whether a test file is in a folder that mirrors a room, or directly in ``tests``."""
    return path.parent == TESTS or path.relative_to(TESTS).parts[0] in ROOMS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Remove the variable while a test of another folder runs."""
    hidden = None if is_of_a_room(item.path) else os.environ.pop(MEASURED, None)
    try:
        return (yield)
    finally:
        if hidden is not None:
            os.environ[MEASURED] = hidden
