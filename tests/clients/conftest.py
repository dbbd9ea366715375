"""Fixtures of the tests of the client packages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.clients.gateways import Gateways
from tests.support.embedded import EmbeddedEtcd


@pytest.fixture(name="gateways")
async def _gateways(etcd: EmbeddedEtcd) -> AsyncIterator[Gateways]:
    """Two gateways in front of ``etcd``."""
    gateways = Gateways(etcd.endpoint)
    await asyncio.gather(gateways.start(0), gateways.start(1))
    yield gateways
    for at in list(gateways.running):
        await gateways.kill(at)
