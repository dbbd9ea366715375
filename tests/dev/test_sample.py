"""The sample data: it changes in etcd until the writer is stopped."""

from __future__ import annotations

import asyncio

import pytest

from app.dev.etcd import EtcdFailedError
from app.dev.sample import SERVICES, ZONES, change, sample
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.waiting import eventually


def test_every_change() -> None:
    """The sample makes puts, transactions of two keys, and deletes, all of known keys."""
    turns = [change(turn) for turn in range(1, 4 * 3 * 5 * 7 + 1)]  # then the changes repeat

    assert {key for changes in turns for key in changes} == {
        f"/svc/{service}/{zone}" for service in SERVICES for zone in ZONES
    }
    assert {len(changes) for changes in turns} == {1, 2}
    assert {None in changes.values() for changes in turns} == {True, False}


@pytest.mark.etcd
async def test_it_is_there_and_changes(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """The sample is there from the start, changes, and no longer changes after the end."""
    async with sample(etcd.endpoint, 0.01):
        first, state = await kv.state("/svc/")

        async def changed() -> bool:
            return (await kv.state("/svc/"))[0] > first + 10

        await eventually(changed)
    last, _state = await kv.state("/svc/")
    await asyncio.sleep(0.05)

    assert len(state) == len(SERVICES) * len(ZONES)
    assert (await kv.state("/svc/"))[0] == last
    assert [task for task in asyncio.all_tasks() if task.get_name() == "sample"] == []


async def test_an_etcd_that_has_gone() -> None:
    """``dev`` says so, without a traceback."""
    with pytest.raises(EtcdFailedError, match="does not take the sample data"):
        async with sample("http://127.0.0.1:1"):
            raise AssertionError("nothing is there")
