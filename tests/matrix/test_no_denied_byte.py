"""No byte of a denied key reaches anybody: a million events. The short form: tests/api/test_no_denied_byte.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.gateway import Gateway
from tests.api.test_no_denied_byte import Walk, _guarded, _policy
from tests.stream.conftest import _fake
from tests.support.fake_etcd import FakeEtcd

__all__ = ["_fake", "_guarded", "_policy"]

# Of each of the two kinds of gateways: with feeds for each range, and with one pin for all.
EVENTS = int(os.environ.get("EVENTS", "1000000")) // 2
STEPS = 50
COUNTS = ("events", "values", "refused", "closed", "listed", "unchanged")


@pytest.mark.process
async def test_no_denied_byte(guarded: Gateway, fake: FakeEtcd, policy: Path, figures: Callable[[str], None]) -> None:
    """Walk with more streams, changes and reads at a time than the short form, until all events are checked."""
    counts = dict.fromkeys(COUNTS, 0)
    seed = 100
    while counts["events"] < EVENTS:
        walk = Walk(seed, guarded, fake, policy, joins=6, puts=100, reads=6)
        await walk.run(STEPS)
        for name in COUNTS:
            counts[name] += getattr(walk, name)
        seed += 1
    figures(f"{counts} in {seed - 100} walks")

    assert min(counts.values()) > 0
