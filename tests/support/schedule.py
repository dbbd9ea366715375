"""Which tests one worker runs together, and which tests start first.

pytest-xdist's own ``--dist=loadgroup`` does the first, by a mark, but knows no order. And with pytest 9.2 it groups
nothing, in silence, because it writes the group to an attribute that pytest no longer reads (pytest-xdist issue 1386):
four workers each waited for the image.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

# One worker runs all tests of each of these, one after the other: they share what is expensive to start, or too much at
# once would run beside them.
TOGETHER = (
    "tests/deploy/test_image.py",  # builds the image
    "tests/consistency/",  # each torture has three members, two gateways and 40 clients
    "tests/examples/test_mirrors.py",  # a browser
    "tests/examples/test_page.py",  # a browser
    "tests/contract/",  # an etcd of each version
    "tests/deploy/test_chart.py::test_kinds_of_the_operator",  # models that take 3 s of CPU to import
    "tests/access/test_access.py",  # an etcd and gateways
    "tests/api/test_bad_input.py",
    "tests/api/test_kv.py",
    "tests/api/test_operations.py",
    "tests/test_suite.py::test_no_test_depends_on_how_fast_the_machine_is",  # parses all tests
)
# The longest first, so that at the end of a run no worker is alone with one of them. By the seconds that they took.
FIRST = (
    "tests/deploy/test_image.py",
    "tests/consistency/",
    "tests/examples/test_mirrors.py",
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
    "tests/integration/test_release.py",
    "tests/integration/test_rollout.py",
    "tests/slow_readers/",
    "tests/access/test_access.py",
    "tests/api/test_kv.py",
    "tests/api/test_operations.py",
    "tests/examples/test_page.py",
)


def turn(nodeid: str) -> int:
    """The place of a test in the order of a run."""
    return next((place for place, prefix in enumerate(FIRST) if nodeid.startswith(prefix)), len(FIRST))


class Schedule(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """Gives each worker that is free the next test, or the next group, in the order of the collection."""

    def schedule(self) -> None:
        """Called by pytest-xdist."""
        self.config.option.loadscopereorder = False  # or the group with the most tests would come first
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        if "[python" in nodeid:  # a reference client that needs no browser
            return nodeid
        return next((prefix for prefix in TOGETHER if nodeid.startswith(prefix)), nodeid)
