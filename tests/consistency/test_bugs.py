"""The checker finds the bugs that mirrors are known for: each bug is injected into a gateway, and must be found."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from app.core.versions import parse_version, progress_is_trusted
from tests.consistency import bugs
from tests.consistency.bugs import BUGS, IN_ONE_PROCESS
from tests.consistency.follower import PIN, QUIET, STAY
from tests.consistency.history import Several, Watched
from tests.consistency.torture import SLOWLY, torture
from tests.consistency.writer import RATE
from tests.core.test_reader_latest import LatestMachine
from tests.support.versions import real_etcds

# A run ends at the first violation, which most bugs show within 10 s, and 300 s on two cores beside 20 busy processes.
# Only an undetected bug takes all these seconds.
SECONDS = 1800
# The faults that provoke a bug. A bug that is missing here needs any fault, or only the followers' own coming and
# going.
FAULTS = {
    "resume-at-header": ["cut", "cut all", "black hole"],
    "restart-at-compact-revision": ["cut all", "compact all", "compact", "black hole"],
    "deletes-lost-after-reconnect": ["cut", "cut all"],
    "cursor-advanced-by-a-time-out": ["cut", "cut all", "black hole"],
    "untrusted-progress": ["cut", "kill a root"],
    "restore-not-noticed": ["restore, lower", "restore, passed"],
    "reader-survives-generation": ["restore, lower"],
    "revision-released-by-an-old-answer": ["cut all", "cut", "black hole"],
    "projected-tip-that-stands-still": ["compact"],
    "edge-survives-reset": ["restore, lower"],
    "merge-survives-generation": ["cut all", "compact all", "compact", "black hole"],
}
# A gateway that follows another one has these.
OF_TIERS = {"edge-survives-reset"}
IN_THE_PIN = (Several((Watched("prefix", PIN + b"k"), Watched("key", QUIET), Watched("prefix", PIN + b"b/"))),)
OF_SEVERAL_FEEDS = (
    Several((Watched("prefix", b"/z"), Watched("key", b"/nl/\n\x00/k1"), Watched("prefix", PIN))),
    Several((Watched("prefix", b"/bin/\xff"), Watched("prefix", b"/z"))),
)
TWO_PREFIXES = (Watched("prefix", b"/a/"), Watched("prefix", b"/z"))
NEVER_WRITTEN = (Several((Watched("key", QUIET), Watched("key", b"/zquiet"))),)
# What shows a bug sooner than a crowd does that draws what it follows. Of such a crowd only one follower or two can see
# the bug: a bug took up to 70 s of CPU.
DIRECTED: dict[str, dict[str, Any]] = {
    "etag-without-the-count": {
        "readers": 1,
        "followers": 10,
        "rate": 40.0,
        "selections": (Watched("prefix", b"/a/"), Watched("prefix", b"/z")),
    },
    "merge-survives-generation": {"selections": OF_SEVERAL_FEEDS, "followers": 12},
    "projected-tip-that-stands-still": {"selections": NEVER_WRITTEN, "followers": 4, "rate": 40.0},
    "reader-survives-generation": {"selections": IN_THE_PIN, "followers": 8},
    "revision-released-by-an-old-answer": {"selections": OF_SEVERAL_FEEDS, "followers": 12},
    "transaction-divided-between-ranges": {"selections": OF_SEVERAL_FEEDS, "followers": 12},
}
# A cut, a restore or a follower that comes back shows these as soon with few writes as with many. At the usual rate the
# seven took 25 s of CPU, not 16.
WITH_FEW_WRITES = {
    "cursor-kept-through-a-reset",
    "cursor-of-another-request",
    "id-ahead-of-its-subscriber",
    "merge-survives-generation",
    "reader-survives-generation",
    "restore-not-noticed",
    "revision-released-by-an-old-answer",
}
# Only where etcd's progress can be trusted, there are merges of several feeds, and quiet mirrors move on.
NEED_TRUST = {
    "revision-released-by-an-old-answer",
    "transaction-divided-between-ranges",
    "projected-tip-that-stands-still",
    "merge-survives-generation",
}
# A bug that only a flush of several pieces shows, which the writers of the torture are too slow for. The walks of a
# reader on its own find the bug, without a process.
OF_READERS = "id-from-the-end-of-a-flush"


@pytest.mark.etcd
@pytest.mark.slow
@pytest.mark.parametrize("bug", sorted(set(BUGS) - IN_ONE_PROCESS - {OF_READERS}))
async def test_a_known_bug_is_caught(bug: str) -> None:
    """The checker finds each known bug on etcd 3.5.1, whose on-demand progress overtakes events.

    The bugs of merges need the newest etcd.
    """
    newest = max(real_etcds(), key=lambda candidate: parse_version(candidate.version))
    if bug in NEED_TRUST and not progress_is_trusted(parse_version(newest.version)):
        pytest.skip(f"NOT RUN: {bug} needs a newer etcd than {newest.version}")
    report = await torture(
        "bug",
        SECONDS,
        folder=newest.folder if bug in NEED_TRUST else None,
        program=("tests.consistency.bugs", bug),
        kinds=FAULTS.get(bug, ["cut", "delay", "compact"]),
        # Nothing here depends on a quorum, and three members take three times the CPU of one.
        members=1,
        # The bugs without faults of their own show when a follower comes back.
        stay=STAY if bug in FAULTS else 2.0,
        # Some bugs take twice the time to show with faults as rare as in the long runs.
        pause=0.15 if bug in FAULTS else 0.4,
        apart=0.0,
        tiers=1 if bug in OF_TIERS else 0,
        workers=1,  # a worker is a program of its own, without the bug
        javascript=(),
        log=print,
        **{"followers": 20, "rate": SLOWLY if bug in WITH_FEW_WRITES else RATE, **DIRECTED.get(bug, {})},
    )

    seen = ("follower", "mirror.py", "etcd_watch_client")
    assert any(violation.startswith(seen) for violation in report.violations), f"{bug} was not seen: {report}"


class Flushed(LatestMachine):
    """A reader that is always flushed."""

    def join(self) -> None:
        """Open a stream at the mirror's cursor."""
        self.interval, self.wanted = 0.5, 0
        super().join()


def test_a_known_bug_of_flushes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walks of ``tests.core.test_reader_latest`` find a mirror that its cursor does not describe."""
    monkeypatch.setattr("app.core.view.MAX_BYTES", 1)
    monkeypatch.setattr("app.core.flush.PIECE_SIZE", 1)
    monkeypatch.setattr(bugs, "_replace", monkeypatch.setattr)
    BUGS[OF_READERS]()
    # Long walks: of those with 40 steps, only one in 700 finds the bug. The search ends with the walk that finds it.
    most = 500
    walks = settings(
        max_examples=most, stateful_step_count=200, derandomize=True, database=None, phases=[Phase.generate]
    )

    with pytest.raises(AssertionError, match=r"assert \{.*\} == \{"):
        run_state_machine_as_test(Flushed, settings=walks)
