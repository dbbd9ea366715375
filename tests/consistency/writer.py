"""Writes at random: puts, deletes, transactions of several keys, expiring leases, keys that are created again."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from typing import Any

from aetcd import rpc

from tests.consistency.access import TIMEOUT, Access, Metadata

# Prefixes that contain one another, are not text, or end in the byte that carries.
PREFIXES = (b"/a/", b"/a/b/", b"/bin/\xff", b"/nl/\n\x00/", b"/z")
KEYS = 24
# How many keys a transaction draws, some of them twice. Most deliveries are of large transactions: each revision wakes
# all gateways and followers, while the judge needs only 15 us of CPU for one more event.
TRANSACTIONS = (2, 3, 5, 20, 60)
# Writes a second of all writers, if etcd takes no time.
RATE = 200.0
# How many writes a writer sends at once: etcd commits such a burst in one step, and a gateway gets it in one piece.
BURSTS = (1, 1, 1, 1, 1, 2, 3, 10)


def key_of(rng: random.Random) -> bytes:
    """One of a few keys, so that keys are deleted and created again; some are not text, some look like base64."""
    return rng.choice(PREFIXES) + rng.choice((b"k%d", b"%d=", b"L3g%d", b"\xfe%d")) % rng.randrange(KEYS // 4)


def value_of(rng: random.Random) -> bytes:
    """Mostly a small value; some values are not text, some are so large that a catch-up comes in fragments."""
    draw = rng.random()
    if draw < 0.015:
        return rng.randbytes(30_000)
    if draw < 0.1:
        return rng.randbytes(12)
    return f"v{rng.randrange(10**6)}\n\u2028".encode()


class Writer:
    """A client of etcd that never stops writing. *rate*: its writes a second, on average, if etcd takes no time."""

    def __init__(self, endpoints: Sequence[str], seed: str, access: Access, rate: float) -> None:
        self._endpoints = endpoints
        self._rate = rate
        self._access = access
        self._rng = random.Random(seed)
        self.running = asyncio.Event()
        self.running.set()

    async def run(self) -> None:
        """Run until cancelled; after an error, try again at another member."""
        while True:
            endpoint = self._rng.choice(self._endpoints)
            with contextlib.suppress(rpc.AioRpcError):
                async with self._access.channel(endpoint) as (channel, metadata):
                    kv, lease = rpc.KVStub(channel), rpc.LeaseStub(channel)
                    while True:
                        await self.running.wait()
                        burst = self._rng.choice(BURSTS)
                        writes = (self._write(kv, lease, metadata) for _ in range(burst))
                        for failure in await asyncio.gather(*writes, return_exceptions=True):
                            if isinstance(failure, BaseException):
                                raise failure
                        await asyncio.sleep(self._rng.expovariate(self._rate / burst))
            await asyncio.sleep(0.1)

    async def _write(self, kv: Any, lease: Any, metadata: Metadata) -> None:
        rng, draw = self._rng, self._rng.random()
        options = {"timeout": TIMEOUT, "metadata": metadata}
        if draw < 0.5:
            await kv.Put(rpc.PutRequest(key=key_of(rng), value=value_of(rng)), **options)
        elif draw < 0.7:
            await kv.DeleteRange(rpc.DeleteRangeRequest(key=key_of(rng)), **options)
        elif draw < 0.72:
            prefix = rng.choice(PREFIXES)
            end = prefix.rstrip(b"\xff")
            await kv.DeleteRange(
                rpc.DeleteRangeRequest(key=prefix, range_end=end[:-1] + bytes([end[-1] + 1])), **options
            )
        elif draw < 0.74:
            granted = await lease.LeaseGrant(rpc.LeaseGrantRequest(TTL=1), **options)
            operations = [_put(key, b"leased", granted.ID) for key in {key_of(rng) for _ in range(6)}]
            await kv.Txn(rpc.TxnRequest(success=operations), **options)
        elif draw < 0.76:
            await kv.Txn(rpc.TxnRequest(success=_put_and_deleted(key_of(rng))), **options)
        else:
            keys = sorted({key_of(rng) for _ in range(rng.choice(TRANSACTIONS))})
            rng.shuffle(keys)
            operations = [_delete(key) if rng.random() < 0.3 else _put(key, value_of(rng), 0) for key in keys]
            await kv.Txn(rpc.TxnRequest(success=operations), **options)


def _put(key: bytes, value: bytes, lease: int) -> Any:
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease))


def _delete(key: bytes) -> Any:
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))


def _put_and_deleted(key: bytes) -> list[Any]:
    """One key twice in a revision: etcd rejects that between nested and outer operations, but not among nested ones.

    Not a delete and a put after it: compacted at that revision, 3.5.16 silently loses the key (etcd #22376).
    """
    return [rpc.RequestOp(request_txn=rpc.TxnRequest(success=[one])) for one in (_put(key, b"", 0), _delete(key))]
