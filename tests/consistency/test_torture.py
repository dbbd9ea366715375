"""A short run of the torture on every etcd of this machine; ``make torture MINUTES=10`` is the long run."""

from __future__ import annotations

import pytest

from app.core.versions import parse_version
from tests.consistency.torture import Least, torture
from tests.support.versions import Candidate, real_etcds
from tests.support.waiting import HANG

# Fixed, so that a failure comes again; the long runs draw their own seed and print it.
SEED = "7"
SECONDS = 12


@pytest.mark.etcd
@pytest.mark.slow
@pytest.mark.parametrize("candidate", real_etcds(), ids=lambda candidate: candidate.version)
async def test_every_stream_tells_the_truth(candidate: Candidate) -> None:
    """Every subscriber sees etcd's history, and nothing else, under every fault that the nemesis can cause."""
    newest = max(real_etcds(), key=lambda other: parse_version(other.version))
    report = await torture(
        SEED,
        SECONDS,
        folder=candidate.folder,
        upgrade_to=newest.folder if candidate.version != newest.version else None,
        auth=candidate.version == newest.version,
        followers=30,
        tiers=2 if candidate.version == newest.version else 0,
        workers=2 if candidate.version == newest.version else 1,
        javascript=(1, 3),  # over SSE, and through a shared worker over NDJSON
        least=Least(deliveries=1_001, faults=11, renewals=1),
        bound=HANG,  # the long runs measure how late a mirror may be, on a machine without other load
        log=print,
    )

    assert report.violations == [], str(report)
    assert report.deliveries > 1_000
    assert report.faults.total() > 10
    assert report.renewals > 0
    assert 0 < report.gzip_streams < report.streams
