"""Which tests are measured when ``make test`` measures the tests' coverage.

Only the rooms' own tests are, and of a test that runs on several etcds only the first variant. The tracer stops for
everything else, and the environment variable by which ``coverage run`` reaches every Python process is removed. The
other tests are about bytes, time, crowds and faults: the tracer would change what they measure (500 mirrors in one
process took 172 s instead of 27 s), and it doubles the CPU of what it measures. The rooms' own tests reach the same
lines.

A process that starts without the fork server is measured for the commands of ``dev`` alone, which start no other way:
coverage.py takes 0.35 s more of CPU in each, most of it while the product is imported.

What runs when a module is imported is measured in the process that collects the tests, of which the workers are forks
(tests/support/workers.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

import app
from tests.support.forkserver import MEASURED, OF_FORKS
from tests.support.versions import is_repetition

ROOMS = {path.name for path in Path(app.__file__).parent.iterdir() if path.is_dir()}
TESTS = Path(__file__).parents[1]
# Not measured either: property tests outside the core, and files whose tests reach at most ten branches that no other
# test reaches; the last four look at the source, and run next to nothing of it. Without the core's property tests,
# 97.4 % of its branches were reached, which is below the floor.
REPEATING = {
    "access/test_attacks.py",
    "api/test_generated_requests.py",
    "api/test_kv_bypass.py",
    "api/test_kv_gzip.py",
    "api/test_kv_scope.py",
    "core/test_feed_machine.py",
    "etcd/test_stream.py",
    "test_docs.py",
    "test_layering.py",
    "test_rules.py",
    "test_suite.py",
}
CORE = "core"
# The rooms whose processes start without the fork server.
FRESH = {"dev"}


def is_measured(item: pytest.Item) -> bool:
    """Whether a test is measured."""
    repeats = is_repetition(item) or (item.get_closest_marker("hypothesis") and item.path.parent.name != CORE)
    return is_of_a_room(item.path) and not repeats


def is_of_a_room(path: Path) -> bool:
    """Whether a test file is in a folder that mirrors a room, or directly in ``tests``."""
    if not path.is_relative_to(TESTS):
        return False  # the tests of a client's package, which measure nothing of the gateway
    where = path.relative_to(TESTS)
    return (path.parent == TESTS or where.parts[0] in ROOMS) and where.as_posix() not in REPEATING


TRACER = coverage.Coverage.current()
if TRACER is not None:
    # At each start, coverage.py would look up the file of every module that is imported, to warn of it: 13 ms of CPU
    # for each test.
    TRACER._warn_preimported_source = False


def stop() -> None:
    """Measure nothing, here and in processes that start from now on."""
    if TRACER is not None:
        TRACER.stop()
        os.environ.pop(MEASURED, None)
        OF_FORKS.clear()


def save() -> None:
    """Save what a worker has measured, at its end."""
    if TRACER is not None:
        TRACER.save()


def pytest_collection_finish() -> None:
    """What is imported from here on, a test imports."""
    stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure the tests of the rooms."""
    stop()
    if TRACER is not None and is_measured(item):
        TRACER.start()  # this also sets the variable
        if item.path.parent.name not in FRESH:
            OF_FORKS[MEASURED] = os.environ.pop(MEASURED)
    try:
        return (yield)
    finally:
        stop()
