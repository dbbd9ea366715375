"""Every test here runs on each etcd of this machine; tests marked `slow` or `one_etcd`, which are about the gateway
itself, run on the first etcd only, and tests marked `trust` on two (tests/conftest.py). What differs between the
versions is proven by tests/contract, and by the torture on each version.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE
from tests.support.versions import Candidate, real_etcds


@pytest.fixture(name="etcd", params=real_etcds(), ids=lambda candidate: candidate.version)
async def _etcd(request: pytest.FixtureRequest) -> AsyncIterator[EmbeddedEtcd]:
    """A fresh etcd for each test, of each version."""
    async with EmbeddedEtcd(folder=request.param.folder, args=ALONE) as etcd:
        yield etcd


@pytest.fixture(name="version")
def _version(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """The version of ``etcd``."""
    candidate: Candidate = request.node.callspec.params["etcd"]
    return tuple(int(part) for part in candidate.version.split("."))
