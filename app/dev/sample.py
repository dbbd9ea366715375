"""The sample data of ``dev``: a small registry of services under ``/svc/`` that keeps changing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping

import grpc
from aetcd import rpc

from ..etcd.grpc_channels import OPTIONS
from .etcd import EtcdFailedError

# Seconds between two changes.
PACE = 1.0
PREFIX = "/svc/"
SERVICES = ("api", "billing", "search", "mail")
ZONES = ("a", "b", "c")


@contextlib.asynccontextmanager
async def sample(endpoint: str, pace: float = PACE) -> AsyncIterator[None]:
    """Write the registry, and change it every *pace* seconds until the context ends.

    Raises:
        EtcdFailedError: etcd does not take the registry.
    """
    async with grpc.aio.insecure_channel(endpoint.removeprefix("http://"), options=OPTIONS) as channel:
        kv = rpc.KVStub(channel)
        try:
            for service, zone in itertools.product(SERVICES, ZONES):
                await _write(kv, {_key(service, zone): _value(service, zone, 0)})
        except rpc.AioRpcError as error:
            raise EtcdFailedError(f"etcd does not take the sample data: {error.details()}") from None
        task = asyncio.create_task(_change(kv, pace), name="sample")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _change(kv: rpc.KVStub, pace: float) -> None:
    for turn in itertools.count(1):
        await asyncio.sleep(pace)
        with contextlib.suppress(rpc.AioRpcError):  # etcd may be about to stop
            await _write(kv, change(turn))


def change(turn: int) -> dict[str, str | None]:
    """Return the writes of a turn: a put, a transaction of two keys, or a delete (None).

    Only keys of the last zone are ever deleted, so that the keys that the quick start reads always exist.
    """
    service, zone = SERVICES[turn % len(SERVICES)], ZONES[turn % len(ZONES)]
    if turn % 7 == 0:
        return {_key(service, ZONES[-1]): None}
    zones = ZONES[:2] if turn % 5 == 0 else (zone,)
    return {_key(service, each): _value(service, each, turn) for each in zones}


async def _write(kv: rpc.KVStub, changes: Mapping[str, str | None]) -> None:
    operations = [
        rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key.encode()))
        if value is None
        else rpc.RequestOp(request_put=rpc.PutRequest(key=key.encode(), value=value.encode()))
        for key, value in changes.items()
    ]
    await kv.Txn(rpc.TxnRequest(success=operations))


def _key(service: str, zone: str) -> str:
    return f"{PREFIX}{service}/{zone}"


def _value(service: str, zone: str, load: int) -> str:
    address = f"10.0.{SERVICES.index(service)}.{ZONES.index(zone) + 1}:8080"
    return f'{{"address":"{address}","load":{load}}}'
