"""Quotas: how much one identity, and one client address, may hold and ask for at a time.

Must live here: what each caller holds, and when it may have more. Must not: clocks, requests, subscribers.

A selection is chosen by the client, and each distinct one costs the gateway, and perhaps etcd, a watch. So without
quotas one client can use up the limits of all. A quota that is 0 is off, and then nothing is counted for it.

Memory: a caller is known while it holds something (at most GATEWAY_MAX_SUBSCRIBERS streams do), and its token bucket
while the bucket is not full (at most MOST_BUCKETS do).
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol, TypeVar

from .always_true import AlwaysTrue
from .errors import OverCapacityError
from .keys import KeyRange
from .selection import Ranges
from .token_bucket import TokenBuckets

T = TypeVar("T")

Whose = Literal["identity", "address"]
# Bytes of an IPv6 address that count: a client usually has a whole /64 to choose its addresses from.
IPV6_BYTES = 8


@dataclass(frozen=True, slots=True)
class QuotaSettings:
    """The settings of the same names. 0 is off."""

    identity_streams: int = 0
    identity_selections: int = 0
    identity_feeds: int = 0
    identity_joins: int = 0
    identity_reads: int = 0
    address_streams: int = 0
    address_joins: int = 0
    address_reads: int = 0

    @property
    def off(self) -> bool:
        """Whether there is no quota at all."""
        return not any(getattr(self, each.name) for each in fields(self))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who holds a stream, or reads. *address* must be a ``client_address``."""

    identity: str
    address: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one stream holds: the selection of *ranges*, and the *feeds* that are there for such streams alone.

    A pinned feed is not among *feeds*: it costs the same whoever follows it.
    """

    ranges: Ranges
    feeds: Ranges = ()


def client_address(host: str) -> str:
    """Return what all addresses have in common among which one client can choose: the /64 of an IPv6 address.

    *host* is an address that a socket or a proxy names. Text that is not an address counts as it is.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host[:64]
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    # Not by `ip_network`, which takes 85 us, six times as long as all the rest of the quotas.
    return f"{address.packed[:IPV6_BYTES].hex(':', 2)}::/64"


class Quota(AlwaysTrue):
    """The quota of each identity, or of each address.

    Args:
        whose: the beginning of the settings' names and of the errors' codes.
        streams: the maximum number of streams at a time.
        selections: the maximum number of distinct selections at a time.
        feeds: the maximum number of distinct feeds that the selections need at a time.
        joins: the maximum number of streams that are opened in a second.
        reads: the maximum number of reads at a time.
    """

    def __init__(
        self, whose: Whose, *, streams: int = 0, selections: int = 0, feeds: int = 0, joins: int = 0, reads: int = 0
    ) -> None:
        self._whose = whose
        self._reads = reads
        self._reading: Counter[str] = Counter()
        self._streams = streams
        self._selections = selections
        self._feeds = feeds
        self._joins = joins
        self._counts = bool(streams or selections or feeds)  # whether anything is counted that a stream holds
        self._held: dict[str, _Held] = {}
        self._buckets = TokenBuckets(joins) if joins else None

    def __len__(self) -> int:
        """Return the number of holders that hold something."""
        return len(self._held)

    @property
    def reading(self) -> int:
        """The number of reads that are counted now."""
        return self._reading.total()

    @property
    def buckets(self) -> int:
        """The number of token buckets that are kept."""
        return len(self._buckets) if self._buckets is not None else 0

    def check(self, name: str, wanted: Wanted, now: float) -> None:
        """Raise OverCapacityError unless *name* may open one more stream, of what is *wanted*."""
        self.check_joins(name, now)
        held, ranges = self._held.get(name, _NOTHING), wanted.ranges
        if self._streams and held.streams >= self._streams:
            raise self._over("streams", f"has {held.streams} streams open", self._streams, "close one, or retry later")
        if self._selections and ranges not in held.selections and len(held.selections) >= self._selections:
            follows = f"follows {len(held.selections)} distinct selections"
            raise self._over("selections", follows, self._selections, "follow one of them again, or close one")
        feeds = len(held.feeds.keys() | wanted.feeds) if self._feeds else 0
        if feeds > self._feeds:
            follows = f"would follow {feeds} distinct ranges"
            raise self._over("feeds", follows, self._feeds, "follow fewer, wider ranges, or close a stream")

    def check_joins(self, name: str, now: float) -> None:
        """Raise OverCapacityError unless *name* may open a stream now, as far as its rate goes."""
        if self._buckets is not None and self._buckets.wait(name, now):
            raise self._over("joins", "opens streams too fast, or with wrong credentials", self._joins, "retry later")

    def take_join(self, name: str, now: float) -> None:
        """Count one join."""
        if self._buckets is not None:
            self._buckets.take(name, now)

    def acquire(self, name: str, wanted: Wanted, now: float) -> None:
        """Count a join, and a stream that is held until ``release``. Checks nothing."""
        self.take_join(name, now)
        if self._counts:
            held = self._held.setdefault(name, _Held())
            held.streams += 1
            if self._selections:
                held.selections[wanted.ranges] += 1
            if self._feeds:
                held.feeds.update(wanted.feeds)

    def release(self, name: str, wanted: Wanted) -> None:
        """Stop counting a stream. Call this once for each ``acquire``."""
        if not self._counts:
            return
        held = self._held[name]
        held.streams -= 1
        if not held.streams:
            del self._held[name]
            return
        if self._selections:
            _give_back(held.selections, (wanted.ranges,))
        if self._feeds:
            _give_back(held.feeds, wanted.feeds)

    def check_reads(self, name: str) -> None:
        """Raise OverCapacityError unless *name* may begin one more read."""
        if self._reads and self._reading[name] >= self._reads:
            raise self._over("reads", f"has {self._reading[name]} reads under way", self._reads, "wait for one of them")

    def begin_read(self, name: str) -> None:
        """Count a read until ``end_read``."""
        if self._reads:
            self._reading[name] += 1

    def end_read(self, name: str) -> None:
        """Stop counting a read. Call this once for each ``begin_read``."""
        if self._reads:
            _give_back(self._reading, (name,))

    def _over(self, cap: str, excess: str, limit: int, then: str) -> OverCapacityError:
        setting = f"GATEWAY_{self._whose}_{cap}".upper()
        return OverCapacityError(
            f"this {self._whose} {excess}; {setting} is {limit}: {then}", code=f"{self._whose}-{cap}"
        )


@dataclass(slots=True)
class _Held:
    streams: int = 0
    selections: Counter[Ranges] = field(default_factory=Counter)
    feeds: Counter[KeyRange] = field(default_factory=Counter)


_NOTHING = _Held()


def _give_back(counter: Counter[T], names: Iterable[T]) -> None:
    for name in names:
        counter[name] -= 1
        if not counter[name]:
            del counter[name]


class Releasable(Protocol):
    """Something that counts until it is released."""

    def release(self) -> None:
        """Stop counting it. Synchronous and idempotent."""


class ActiveRead:
    """A read that counts for its caller until ``release``, which is synchronous and idempotent."""

    __slots__ = ("_caller", "_quotas", "_released")

    def __init__(self, quotas: Quotas, caller: Caller) -> None:
        self._quotas = quotas
        self._caller = caller
        self._released = False
        quotas.addresses.begin_read(caller.address)
        quotas.identities.begin_read(caller.identity)

    def release(self) -> None:
        """Stop counting the read."""
        if not self._released:
            self._released = True
            self._quotas.addresses.end_read(self._caller.address)
            self._quotas.identities.end_read(self._caller.identity)


class Quotas:
    """The quotas of identities and of addresses, and the failed authentications of each address."""

    def __init__(self, settings: QuotaSettings) -> None:
        self.identities = Quota(
            "identity",
            streams=settings.identity_streams,
            selections=settings.identity_selections,
            feeds=settings.identity_feeds,
            joins=settings.identity_joins,
            reads=settings.identity_reads,
        )
        self.addresses = Quota(
            "address", streams=settings.address_streams, joins=settings.address_joins, reads=settings.address_reads
        )
        self.counts_reads = bool(settings.identity_reads or settings.address_reads)
        # Apart from the joins: an address that opens streams at its full rate may still read.
        self._failures = Quota("address", joins=settings.address_joins)

    def check(self, caller: Caller, wanted: Wanted, now: float) -> None:
        """Raise OverCapacityError unless *caller* may open one more stream, of what is *wanted*. Takes nothing."""
        self.addresses.check(caller.address, wanted, now)
        self.identities.check(caller.identity, wanted, now)

    def acquire(self, caller: Caller, wanted: Wanted, now: float) -> None:
        """Count a stream that *caller* has opened, until ``release``."""
        self.addresses.acquire(caller.address, wanted, now)
        self.identities.acquire(caller.identity, wanted, now)

    def release(self, caller: Caller, wanted: Wanted) -> None:
        """Stop counting a stream. Call this once for each ``acquire``."""
        self.addresses.release(caller.address, wanted)
        self.identities.release(caller.identity, wanted)

    def begin_read(self, caller: Caller) -> ActiveRead:
        """Count a read until the result is released. Raises OverCapacityError if *caller* has too many."""
        self.addresses.check_reads(caller.address)
        self.identities.check_reads(caller.identity)
        return ActiveRead(self, caller)

    def check_credentials(self, address: str, now: float) -> None:
        """Raise OverCapacityError if wrong credentials came from *address* too fast. Comes before any cryptography."""
        self._failures.check_joins(address, now)

    def failed(self, address: str, now: float) -> None:
        """Count wrong credentials that came from *address*: for further credentials, and for joins."""
        self._failures.take_join(address, now)
        self.addresses.take_join(address, now)
