"""One etcd and one gateway for all blocks of code in the documentation, as ``make run`` has them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from app.dev import sample
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE
from tests.support.gateway import GatewayProcess, gateway


@pytest_asyncio.fixture(name="etcd", scope="module", loop_scope="module")
async def _etcd() -> AsyncIterator[EmbeddedEtcd]:
    """An etcd with the sample data of ``dev``, which change five times a second."""
    async with EmbeddedEtcd(args=ALONE) as etcd, sample.sample(etcd.endpoint, 0.2):
        yield etcd


@pytest_asyncio.fixture(name="server", scope="module", loop_scope="module")
async def _server(etcd: EmbeddedEtcd) -> AsyncIterator[GatewayProcess]:
    """A gateway that pins the sample data, as ``dev`` does, and lets every page read."""
    settings = {"GATEWAY_PIN": sample.PREFIX, "GATEWAY_CORS_ORIGINS": "*"}
    async with gateway(etcd.endpoint, settings=settings) as running:
        yield running
