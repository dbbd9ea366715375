"""What ``check --through`` measures, as values. ``app.check.findings`` says what they mean.

Times are seconds on the check's clock, which starts at 0; durations are in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .lines import Line

# Seconds: the gateway's default, until a stream states its own.
DEFAULT_HEARTBEAT = 15.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event of a stream, and when its last byte arrived."""

    at: float
    event: Line


@dataclass(frozen=True, slots=True)
class Followed:
    """One stream, from its request until it ended or until the check stopped following it."""

    began: float  # when the request was sent
    until: float
    connecting: float = 0.0  # how long the connection took: the network's distance
    answered: float | None = None  # when the head of the answer came
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    arrivals: tuple[Arrival, ...] = ()
    last_byte: float = 0.0
    ended: str = ""  # why the answer ended before *until*; "" if it did not
    unreadable: str = ""
    problem: str = ""  # with which the gateway itself refuses the stream for now

    @property
    def served(self) -> bool:
        """Whether the answer is a stream."""
        return self.status == 200

    @property
    def first_event(self) -> float | None:
        """How long the first event took."""
        return self.arrivals[0].at - self.began if self.arrivals else None

    @property
    def heartbeat(self) -> float | None:
        """The longest silence, as the gateway promises it."""
        return next((each.event.heartbeat for each in self.arrivals if each.event.heartbeat), None)

    @property
    def cursor(self) -> str:
        """The cursor of ``synced``, or "" before it."""
        return next((each.event.cursor for each in self.arrivals if each.event.type == "synced"), "")

    @property
    def closed(self) -> str:
        """The reason of ``close``, with which the gateway itself ends a stream."""
        return next((each.event.reason for each in self.arrivals if each.event.type == "close"), "")

    @property
    def refused(self) -> str:
        """Why the gateway itself refuses the stream; "" if it does not. An SSE stream is held first, then closed."""
        first = self.arrivals[0].event if self.arrivals else None
        return f"close, {first.reason}" if first is not None and first.type == "close" else self.problem

    def times(self, *types: str) -> dict[str, float]:
        """Return when the events of these types arrived, by their cursors; an event without a cursor is left out."""
        return {each.event.cursor: each.at for each in self.arrivals if each.event.cursor and each.event.type in types}


@dataclass(frozen=True, slots=True)
class Silence:
    """An answer that the gateway holds back: not a byte is sent for *asked* seconds."""

    asked: float
    waited: float = 0.0
    status: int = 0  # 0: the connection was cut
    trouble: str = ""  # why nothing was measured


@dataclass(frozen=True, slots=True)
class Departed:
    """Streams that were open together, and left together."""

    asked: int
    opened: int = 0
    shown: int = 0  # how many of them the gateway held, by its /v1/feeds
    released: float | None = None  # after how long it held none of them; None: it still held some
    waited: float = 0.0
    trouble: str = ""  # why it is not known
    refusal: str = ""  # of a stream that was not opened
    own: bool = False  # the gateway itself refused all streams that were not opened
    own_address: str = ""
    addresses: frozenset[str] = frozenset()  # of the clients, as the gateway sees them


@dataclass(frozen=True, slots=True)
class Requests:
    """Short requests, one after the other. *failed* counts them by what came instead of the gateway's answer."""

    total: int
    failed: Mapping[str, int] = field(default_factory=dict)
    instances: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Measurements:
    """Everything that was measured. *direct* is None if no gateway answers without the proxy."""

    direct: Followed | None
    sse: Followed
    ndjson: Followed
    quiet: Followed  # SSE, on a range in which nothing changes
    resumed: Followed | None  # SSE, with the cursor of *sse* as Last-Event-ID
    silence: Silence
    departed: Departed
    requests: Requests
    secure: bool
    protocol: str = ""  # that TLS has chosen
    puts: str = ""  # "", "done", or why --put failed
    no_direct: str = ""  # why *direct* is None

    @property
    def heartbeat(self) -> float:
        """The gateway's heartbeat."""
        return heartbeat_of(each for each in (self.direct, self.sse, self.ndjson, self.quiet) if each is not None)


def heartbeat_of(streams: Iterable[Followed]) -> float:
    """Return the heartbeat that the first of these streams has stated; the default if none has."""
    return next((each.heartbeat for each in streams if each.heartbeat), DEFAULT_HEARTBEAT)


def host_of(address: str) -> str:
    """Return an address without its port: of ``10.0.0.1:80``, ``[::1]:80`` and ``::1``."""
    host, separator, _ = address.rpartition(":")
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return host if separator and ":" not in host else address
