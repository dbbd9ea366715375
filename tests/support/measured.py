"""Which tests are measured when ``make test`` measures the tests' coverage.

Only the rooms' own tests are, and of a test that runs on several etcds only the first variant. The tracer stops for all
others, and the environment variable by which ``coverage run`` reaches every Python process is removed. Those tests are
about bytes, time, crowds and faults: the tracer would change what they measure (500 mirrors in one process took 172 s
instead of 27 s), and it adds about 40 % to the CPU of a test with gateways. The rooms' own tests reach the same lines.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

import app
from tests.support.forkserver import MEASURED
from tests.support.versions import is_repetition

ROOMS = {path.name for path in Path(app.__file__).parent.iterdir() if path.is_dir()}
TESTS = Path(__file__).parents[1]
# Random walks that reach no branch which the named examples beside them do not reach. Measured, they took 24 s of CPU
# instead of 10 s.
WALKS = {"core/test_feed_machine.py"}


def is_of_a_room(path: Path) -> bool:
    """Whether a test file is in a folder that mirrors a room, or directly in ``tests``."""
    if not path.is_relative_to(TESTS):
        return False  # the tests of a client's package, which measure nothing of the gateway
    where = path.relative_to(TESTS)
    return (path.parent == TESTS or where.parts[0] in ROOMS) and where.as_posix() not in WALKS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure nothing while another test runs."""
    tracer = coverage.Coverage.current()
    if tracer is None or (is_of_a_room(item.path) and not is_repetition(item)):
        return (yield)
    hidden = os.environ.pop(MEASURED, None)
    tracer.stop()
    try:
        return (yield)
    finally:
        tracer.start()
        if hidden is not None:
            os.environ[MEASURED] = hidden
