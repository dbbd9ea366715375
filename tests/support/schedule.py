"""Which tests run together on one worker (tests/support/workers.py), and which tests start first."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

# A file with these words has fixtures, or an event loop, that all its tests share: a browser, an etcd, an installed
# wheel. One worker runs the file, one test after the other. Otherwise each worker would start them anew.
SHARED = 'scope="module"'
# Tests that read the sources of app/. One worker runs them all, because parsing takes 0.5 s of CPU (tools/sources.py).
SOURCES = (
    "tests/test_docs.py",
    "tests/test_layering.py",
    "tests/test_rules.py",
    "tests/test_suite.py",
    "tests/test_settings.py::test_every_field_of_a_group_is_read",
    "tests/test_settings.py::test_every_group_is_known_here",
    "tests/test_settings.py::test_every_setting_is_read",
    "tests/api/test_schemas.py::test_every_code_has_its_status",
)
# What else one worker runs: the tests share something expensive to start, or would overload the machine if they ran at
# once.
TOGETHER = (
    "tests/consistency/",  # each torture run has three members, two gateways and 40 clients
    "tests/contract/",  # starts an etcd of each version
    "tests/deploy/test_chart",  # keeps what Helm has rendered, and imports models that take 3 s of CPU
)
# Tests of a file that start no process, and that a worker runs together: pytest sets a file up again for each unit.
MOST = 20
# The longest tests first, so that no worker is alone with one of them at the end of a run. In order of their measured
# seconds.
FIRST = (
    "tests/deploy/test_image.py",
    "tests/consistency/",
    "tests/examples/test_mirrors.py",
    "tests/page/",
    "tests/soak/",
    "tests/benchmarks/",
    "tests/cases/test_neighbours.py",
    "tests/check/",
    "tests/deploy/test_monitoring.py",
    "tests/integration/test_faults.py",
    "tests/contract/",
    "tests/api/test_bad_input.py",
    "tests/integration/test_memory.py",
    "tests/server/test_process.py",
    "tests/deploy/test_chart",
    "tests/docs/test_snippets.py",
    "tests/integration/test_release.py",
    "tests/integration/test_rollout.py",
    "tests/slow_readers/",
    "tests/access/test_access.py",
    "tests/api/test_kv.py",
    "tests/api/test_operations.py",
    "tests/access/test_modes.py",
)


def turn(nodeid: str) -> int:
    """A test's place in the order of a run."""
    return next((place for place, prefix in enumerate(FIRST) if nodeid.startswith(prefix)), len(FIRST))


@functools.cache
def shares(path: Path) -> bool:
    """Whether the tests of a file share what they start."""
    return SHARED in path.read_text(encoding="utf-8")


def units(items: Sequence[pytest.Item]) -> list[list[int]]:
    """The tests that one worker runs, one after the other, as places in *items*; in the order of *items*."""
    found: dict[str, list[int]] = {}
    small: Counter[Path] = Counter()
    for place, item in enumerate(items):
        unit = _group_of(item)
        if unit is None and item.get_closest_marker("process") is None:
            small[item.path] += 1
            unit = f"{item.path} {small[item.path] // MOST}"
        found.setdefault(unit or item.nodeid, []).append(place)
    return list(found.values())


def _group_of(item: pytest.Item) -> str | None:
    if "[python" in item.nodeid:  # a reference client that needs no browser
        return item.nodeid
    if shares(item.path):
        return str(item.path)
    if item.nodeid.startswith(SOURCES):
        return "sources"
    return next(filter(item.nodeid.startswith, TOGETHER), None)
