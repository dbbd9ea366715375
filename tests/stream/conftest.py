"""A gateway in the test's own process, on the fake etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.gateway import Gateway
from app.settings import load
from tests.support.asgi_client import OURS
from tests.support.fake_etcd import FakeEtcd


@pytest.fixture(name="fake")
async def _fake() -> AsyncIterator[FakeEtcd]:
    async with FakeEtcd() as fake:
        fake.put(b"/svc/a", b"1")
        yield fake


@pytest.fixture(name="gateway")
async def _gateway(fake: FakeEtcd) -> AsyncIterator[Gateway]:
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": 0, "send_timeout": 0.2}))
    async with gateway.running():
        yield gateway
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith(OURS)] == []
