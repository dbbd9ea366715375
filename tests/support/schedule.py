"""Which tests run together on one worker, and which tests start first.

pytest-xdist's own ``--dist=loadgroup`` does the first, by a mark, but has no order. With pytest 9.2 it silently groups
nothing: it writes the group to an attribute that pytest no longer reads (pytest-xdist issue 1386). Then four workers
each waited for the image.
"""

from __future__ import annotations

import functools
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

TOP = Path(__file__).parents[2]
# A file with these words has fixtures, or an event loop, that all its tests share: a browser, an etcd, an installed
# wheel. One worker runs the file, one test after the other. Otherwise each worker would start them anew.
SHARED = 'scope="module"'
# What else one worker runs: the tests share something expensive to start, or would overload the machine if they ran at
# once.
TOGETHER = (
    "tests/consistency/",  # each torture run has three members, two gateways and 40 clients
    "tests/contract/",  # starts an etcd of each version
    "tests/test_docs.py",  # keeps what all files of app/ say
    "tests/test_layering.py",  # keeps what they import
    "tests/deploy/test_chart",  # keeps what Helm has rendered, and imports models that take 3 s of CPU
)
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
def shares(path: str) -> bool:
    """Whether the tests of a file share what they start."""
    return SHARED in (TOP / path).read_text(encoding="utf-8")


class Schedule(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """Gives each free worker the next test, or the next group, in the order of collection."""

    def schedule(self) -> None:
        """Called by pytest-xdist."""
        self.config.option.loadscopereorder = False  # otherwise the group with the most tests would come first
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        if "[python" in nodeid:  # a reference client that needs no browser
            return nodeid
        path, _, _ = nodeid.partition("::")
        return path if shares(path) else next((prefix for prefix in TOGETHER if nodeid.startswith(prefix)), nodeid)
