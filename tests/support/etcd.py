"""Plain access to an etcd for tests: put, delete, transactions, compaction, the truth."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from aetcd import rpc

# For an etcd that is alone: it waits for others to stand for election before it does, which is most of the 0.9 s that a
# start takes; with these it takes 0.25 s. A member among others would lose its leadership on a busy machine.
ALONE = ("--heartbeat-interval=10", "--election-timeout=100")


class EtcdClient:
    """A thin client, not through the gateway."""

    def __init__(self, channel: Any) -> None:
        self.kv = rpc.KVStub(channel)
        self.lease = rpc.LeaseStub(channel)
        self.maintenance = rpc.MaintenanceStub(channel)

    async def put(self, key: str | bytes, value: str | bytes = b"", lease: int = 0) -> int:
        """Returns the revision."""
        response = await self.kv.Put(rpc.PutRequest(key=_bytes(key), value=_bytes(value), lease=lease))
        return int(response.header.revision)

    async def delete(self, key: str | bytes) -> int:
        """Returns the revision."""
        response = await self.kv.DeleteRange(rpc.DeleteRangeRequest(key=_bytes(key)))
        return int(response.header.revision)

    async def txn(self, **changes: str | bytes | None) -> int:
        """One transaction: keys to values, None deletes. Keys are written with ``__`` for ``/``. The revision."""
        return await self.transact({name.replace("__", "/"): value for name, value in changes.items()})

    async def transact(self, changes: dict[Any, Any]) -> int:
        """One transaction: keys to values, None deletes. The revision."""
        operations = [
            rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=_bytes(key)))
            if value is None
            else rpc.RequestOp(request_put=rpc.PutRequest(key=_bytes(key), value=_bytes(value)))
            for key, value in changes.items()
        ]
        response = await self.kv.Txn(rpc.TxnRequest(success=operations))
        return int(response.header.revision)

    async def compact(self, revision: int) -> None:
        """Forget history before *revision*, and wait until that is done."""
        await self.kv.Compact(rpc.CompactionRequest(revision=revision, physical=True))

    async def state(self, prefix: str | bytes) -> tuple[int, dict[bytes, Any]]:
        """The revision, and all keys under *prefix*."""
        start = _bytes(prefix)
        end = start[:-1] + bytes([start[-1] + 1]) if start else b"\0"
        response = await self.kv.Range(rpc.RangeRequest(key=start or b"\0", range_end=end))
        return int(response.header.revision), {kv.key: kv for kv in response.kvs}


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


@asynccontextmanager
async def etcd_client(endpoint: str) -> AsyncIterator[EtcdClient]:
    """A client on a channel of its own."""
    async with grpc.aio.insecure_channel(endpoint.removeprefix("http://")) as channel:
        yield EtcdClient(channel)
