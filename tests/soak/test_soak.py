"""A short form of ``make soak``: what leaks per stream shows within a minute."""

from __future__ import annotations

import sys

import pytest

from tests.soak.soak import soak

# Bytes per stream. A task, a scope or a reader that is kept for each is more; the allocator's noise over so short a run
# is less (seen: -400 to 700).
MOST = 3_000


@pytest.mark.etcd
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_nothing_grows() -> None:
    """Neither descriptors nor tasks nor threads, nor memory per stream served; at etcd nothing is left in any round."""
    report = await soak("7", 30, log=print)

    assert report.grown() == [], str(report)
    assert report.slope < MOST, str(report)
