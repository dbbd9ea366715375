"""A short run of the torture on every etcd of this machine; ``make torture MINUTES=10`` is the long run."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.versions import parse_version
from tests.consistency.history import Chronicle, Watched
from tests.consistency.nemesis import PROCESSES, STORM, until_storm
from tests.consistency.reads import ReadingFollower
from tests.consistency.report import Least, Report
from tests.consistency.torture import parser, torture
from tests.support.versions import Candidate, real_etcds
from tests.support.waiting import HANG

# Fixed, so that a failure comes again; the long runs draw their own seed and print it.
SEED = "7"
SECONDS = 12
# On an etcd whose run has neither tiers nor workers, more faults come in a second.
FEWER_SECONDS = 8
# Seconds between the faults of one hand. With the 0.4 s of the long runs most streams are cut before they deliver, and
# on a busy machine the 1,001 deliveries took 150 s.
PAUSE = 1.5


@pytest.mark.etcd
@pytest.mark.slow
@pytest.mark.parametrize("candidate", real_etcds(), ids=lambda candidate: candidate.version)
async def test_every_stream_tells_the_truth(candidate: Candidate) -> None:
    """Every subscriber sees etcd's history, and nothing else, under every fault that the nemesis can cause."""
    newest = max(real_etcds(), key=lambda other: parse_version(other.version))
    # Tiers, workers, users and the JavaScript client do not depend on etcd's version: they take part once.
    whole = candidate.version == newest.version
    report = await torture(
        SEED,
        SECONDS if whole else FEWER_SECONDS,
        folder=candidate.folder,
        upgrade_to=None if whole else newest.folder,
        auth=whole,
        followers=30 if whole else 20,
        pause=PAUSE,
        tiers=2 if whole else 0,
        workers=2 if whole else 1,
        javascript=(1, 3) if whole else (),  # over SSE, and through a shared worker over NDJSON
        least=Least(deliveries=1_001, faults=11, renewals=1),
        bound=HANG,  # the long runs measure how late a mirror may be, on a machine without other load
        log=print,
    )

    assert report.violations == [], str(report)
    assert report.deliveries > 1_000
    assert report.faults.total() > 10
    assert report.renewals > 0
    assert 0 < report.gzip_streams < report.streams


@given(st.integers(0, 10_000), st.integers(0, 100))
def test_after_a_storm_comes_a_calm(passed: int, calm: int) -> None:
    """A hand that waits for the next storm finds one, and without a calm a storm never ends."""
    wait = until_storm(passed, calm)
    assert 0 <= wait <= calm
    assert wait == 0 or until_storm(passed + wait + STORM / 2, calm) == 0


def test_a_run_that_had_too_little_shows_nothing() -> None:
    """Each bound is compared with what the run had, and each kind of fault by itself."""
    had = Report("seed", delivered=Counter({0: 70, 1: 20, 2: 10}), moves=2, renewals=1)
    had.faults.update(dict.fromkeys(PROCESSES, 2) | {"kill a hub": 1, "cut": 5})

    assert Least(100, 30, 28, 1, 2, 1).lacking(had) == []
    assert Least(of_each=2).lacking(had) == ["only 1 of 2 times 'kill a hub'"]
    assert Least(101, 31, 29, 0, 3, 2).lacking(had) == [
        "only 100 of 101 deliveries",
        "only 30 of 31 deliveries by edges",
        "only 28 of 29 faults",
        "only 2 of 3 moves to another tier",
        "only 1 of 2 streams that end with their tokens",
    ]


def test_no_reader_asks_for_what_the_contract_has_not() -> None:
    """A read of one key has no `keys_only`. A reader that asked for it had no answer in a whole run, and was late."""
    readers = [ReadingFollower(0, f"seed {number}", [""], Chronicle(), 1.0, trusted=True) for number in range(300)]
    of_one_key = [one for one in readers if isinstance(one.judge.watched, Watched) and one.judge.watched.kind == "key"]

    assert [one.request for one in of_one_key if "keys_only" in one.request] == []
    assert any("keys_only" in one.request for one in readers)


def test_the_documented_runs_have_these_options() -> None:
    """The commands in docs/guarantees.md can be copied."""
    page = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text(encoding="utf-8")
    found = [parser().parse_args(shlex.split(options)) for options in re.findall(r"ARGS='([^']+)'", page)]
    assert [one.least for one in found if one.least] == [1_000_000]
