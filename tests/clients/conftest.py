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
    async with Gateways(etcd.endpoint) as gateways:
        await asyncio.gather(gateways.start(0), gateways.start(1))
        yield gateways
