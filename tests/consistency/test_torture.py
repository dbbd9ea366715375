"""A short run of the torture on every etcd that is there; ``make torture MINUTES=10`` is the long one."""

from __future__ import annotations

import pytest

from app.core.versions import parse_version
from tests.consistency.torture import torture
from tests.support.versions import Candidate, real_etcds
from tests.support.waiting import HANG

# Kept, so that a failure comes again; the long runs draw their own and print it.
SEED = "7"
SECONDS = 25


@pytest.mark.etcd
@pytest.mark.slow
@pytest.mark.parametrize("candidate", real_etcds(), ids=lambda candidate: candidate.version)
async def test_every_stream_tells_the_truth(candidate: Candidate) -> None:
    """Under every fault that we can make, every subscriber saw etcd's history, and nothing else."""
    newest = max(real_etcds(), key=lambda other: parse_version(other.version))
    report = await torture(
        SEED,
        SECONDS,
        folder=candidate.folder,
        upgrade_to=newest.folder if candidate.version != newest.version else None,
        auth=candidate.version == newest.version,
        followers=30,
        least=(1_001, 11),
        bound=HANG,  # how late a mirror may be is what the long runs measure, on a machine of their own
        log=print,
    )

    assert report.violations == [], str(report)
    assert report.deliveries > 1_000
    assert report.faults.total() > 10
