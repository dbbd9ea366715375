"""The checker finds the bugs that mirrors are known for: each bug is injected into a gateway, and must be found."""

from __future__ import annotations

import pytest

from tests.consistency.bugs import BUGS
from tests.consistency.torture import torture

# A run ends at the first violation, which most bugs show within 10 s. Only an undetected bug takes all these seconds.
SECONDS = 600
# The faults that provoke a bug. A bug that is missing here needs any fault, or only the followers' own coming and
# going.
FAULTS = {
    "resume-at-header": ["cut", "cut all", "black hole"],
    "restart-at-compact-revision": ["cut all", "compact all", "compact", "black hole"],
    "deletes-lost-after-reconnect": ["cut", "cut all"],
    "cursor-advanced-by-a-time-out": ["cut", "cut all", "black hole"],
    "untrusted-progress": ["cut", "kill a gateway"],
    "restore-not-noticed": ["restore, lower", "restore, passed"],
    "reader-survives-generation": ["restore, lower", "restore, passed"],
}


@pytest.mark.etcd
@pytest.mark.slow
@pytest.mark.parametrize("bug", sorted(BUGS))
async def test_a_known_bug_is_caught(bug: str) -> None:
    """The checker finds each known bug on etcd 3.5.1, whose on-demand progress overtakes events."""
    report = await torture(
        "bug",
        SECONDS,
        program=("tests.consistency.bugs", bug),
        kinds=FAULTS.get(bug, ["cut", "delay", "compact"]),
        followers=40,
        log=print,
    )

    assert any("follower" in violation for violation in report.violations), f"{bug} was not seen: {report}"
