"""Direct access to an etcd for tests: puts, deletes, transactions, compaction, and the true state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from aetcd import rpc

from app.dev.etcd import LOOPBACK_OPTIONS

# For an etcd without other members. An etcd waits for other candidates before it stands for election, which is most of
# the 0.9 s that a start takes. With these flags a start takes 0.25 s. A member of a real cluster would lose its
# leadership on a busy machine.
ALONE = ("--heartbeat-interval=10", "--election-timeout=100")


class EtcdClient:
    """A thin etcd client that bypasses the gateway."""

    def __init__(self, channel: Any) -> None:
        self.kv = rpc.KVStub(channel)
        self.lease = rpc.LeaseStub(channel)
        self.maintenance = rpc.MaintenanceStub(channel)

    async def put(self, key: str | bytes, value: str | bytes = b"", lease: int = 0) -> int:
        """Put a key; return the revision."""
        response = await self.kv.Put(rpc.PutRequest(key=_bytes(key), value=_bytes(value), lease=lease))
        return int(response.header.revision)

    async def settle(self) -> None:
        """Return when all acknowledged writes are in etcd's log, so that a kill cannot lose them.

        A single member before 3.4.21 and 3.5.5 acknowledges a write while it still writes its log (etcd #14370). When
        the next proposal is acknowledged, the log has the writes before. A lease has no revision.
        """
        await self.lease.LeaseGrant(rpc.LeaseGrantRequest(TTL=600))

    async def delete(self, key: str | bytes) -> int:
        """Delete a key; return the revision."""
        response = await self.kv.DeleteRange(rpc.DeleteRangeRequest(key=_bytes(key)))
        return int(response.header.revision)

    async def txn(self, **changes: str | bytes | None) -> int:
        """Run one transaction and return its revision: *changes* maps keys to values, None deletes.

        Write ``__`` for ``/`` in keys.
        """
        return await self.transact({name.replace("__", "/"): value for name, value in changes.items()})

    async def transact(self, changes: dict[Any, Any]) -> int:
        """Run one transaction and return its revision: *changes* maps keys to values, None deletes."""
        operations = [
            rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=_bytes(key)))
            if value is None
            else rpc.RequestOp(request_put=rpc.PutRequest(key=_bytes(key), value=_bytes(value)))
            for key, value in changes.items()
        ]
        response = await self.kv.Txn(rpc.TxnRequest(success=operations))
        return int(response.header.revision)

    async def compact(self, revision: int) -> None:
        """Compact history before *revision*, and wait until etcd has done so."""
        await self.kv.Compact(rpc.CompactionRequest(revision=revision, physical=True))

    async def state(self, prefix: str | bytes) -> tuple[int, dict[bytes, Any]]:
        """The current revision, and all keys under *prefix* with their values."""
        start = _bytes(prefix)
        end = start[:-1] + bytes([start[-1] + 1]) if start else b"\0"
        response = await self.kv.Range(rpc.RangeRequest(key=start or b"\0", range_end=end))
        return int(response.header.revision), {kv.key: kv for kv in response.kvs}


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


@asynccontextmanager
async def etcd_client(endpoint: str) -> AsyncIterator[EtcdClient]:
    """A client on its own channel."""
    async with grpc.aio.insecure_channel(endpoint.removeprefix("http://"), LOOPBACK_OPTIONS) as channel:
        yield EtcdClient(channel)
