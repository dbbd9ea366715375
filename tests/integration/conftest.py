"""Every test here runs on each etcd of this machine; tests marked `slow` or `one_etcd`, which are about the gateway
itself, run on the first etcd only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE
from tests.support.versions import Candidate, real_etcds


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Keep one variant of each test that needs only one etcd."""
    first = real_etcds()[0].version if real_etcds() else ""
    dropped = [
        item
        for item in items
        if (item.get_closest_marker("slow") or item.get_closest_marker("one_etcd"))
        and hasattr(item, "callspec")
        and isinstance(candidate := item.callspec.params.get("etcd"), Candidate)
        and candidate.version != first
    ]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


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
