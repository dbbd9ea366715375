"""The gateway as one object. Builds every part that lives as long as the process, and connects these parts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from . import __version__, descriptors
from .access.identity import Session
from .access.setup import make_access_control
from .access.token import read_token
from .core.budget import Budget
from .core.capacity import Capacity, ConnectionStatistics
from .core.cursor import derive_epoch
from .core.keys import KeyRange
from .core.quotas import Caller, Quotas, QuotaSettings, Releasable
from .core.selection import Ranges, Selection
from .descriptors import RESERVE, SPARE
from .etcd.credentials import Credentials, CredentialsError
from .etcd.upstream import Upstream
from .ports import BrokenGatewayError, Clock, Draw, Hub, UpstreamStatistics, spawn
from .settings import Settings, SettingsError, named
from .stream.counters import StreamStatistics
from .stream.streams import Streams, StreamSettings
from .tls import TlsStatistics, UpstreamTls, make_tls
from .urls import is_loopback
from .watch.limits import Limits
from .watch.merges_below import MergesBelow
from .watch.registry import Registry
from .watch.statistics import RegistryStatistics

if TYPE_CHECKING:
    from .tier.upstream import GatewayUpstream

logger = logging.getLogger("gateway")

# The maximum size of a watch response: a quarter of GATEWAY_MAX_FEED_BYTES, but at least LEAST_MESSAGE bytes, for a
# fragment or a single event. etcd fragments larger responses, except those that waited for the response to a create.
MESSAGE_SHARE = 4
LEAST_MESSAGE = 32 * 1024 * 1024


def credentials_of(settings: Settings) -> Credentials:
    """Return the gateway's credentials for etcd. Reads the files once, so that a mistake is found at the start.

    Raises:
        SettingsError: a file cannot be used.
    """
    if settings.etcd_user and not settings.etcd_is_tls and not all(map(is_loopback, settings.etcd_hosts)):
        logger.warning("the password for etcd is sent in plain text", extra={"etcd": ",".join(settings.etcd)})
    credentials = settings.group(Credentials, "etcd_")
    try:
        credentials.check(tls=settings.etcd_is_tls)
    except CredentialsError as error:
        raise SettingsError(str(error)) from None
    return credentials


def quotas_of(settings: Settings) -> Quotas | None:
    """Return the quotas; None if all of them are off, so that nothing is counted."""
    group = settings.group(QuotaSettings)
    by_address = group.address_streams or group.address_joins or group.address_reads
    if settings.trusted_proxies == ("*",) and by_address:
        logger.warning(
            "clients choose the address that quotas count by, unless a proxy replaces X-Forwarded-For",
            extra={"trusted_proxies": "*"},
        )
    return None if group.off else Quotas(group)


def upstream_token_of(settings: Settings) -> Callable[[], str]:
    """Return what reads the token for the upstream, for each request anew: the file may be replaced.

    While the file cannot be used, the last token is sent.

    Raises:
        SettingsError: the file cannot be used now.
    """
    path = settings.upstream_token_file
    if path is None:
        return lambda: ""

    hosts = (urlsplit(url) for url in settings.upstream)
    if any(url.scheme == "http" and not is_loopback(url.hostname or "") for url in hosts):
        extra = {"upstream": ",".join(settings.upstream)}
        logger.warning("the token for the upstream is sent in plain text", extra=extra)
    last = read_token(path, named("upstream_token_file")).get_secret_value()

    def read() -> str:
        nonlocal last
        try:
            last = read_token(path, named("upstream_token_file")).get_secret_value()
        except SettingsError as error:
            logger.warning("the token for the upstream cannot be read", extra={"reason": str(error)})
        return last

    return read


async def for_ever(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run work that must never end. Its normal return is a failure, too."""
    await work()
    msg = "the task returned, but it must run for ever"
    raise RuntimeError(msg)


@dataclass(frozen=True, slots=True)
class GatewayStatistics:
    """What a gateway holds at one moment, reported by each of its parts."""

    version: str
    watch: RegistryStatistics
    streams: StreamStatistics
    etcd: UpstreamStatistics
    tier: int | None  # None while an edge does not know it yet
    connections: ConnectionStatistics
    token_unusable: bool
    access_troubles: Mapping[str, str]  # what is wrong with each file of the access control; empty if nothing is
    sessions_started: int
    sessions_ended: int
    tls: TlsStatistics | None


class Gateway:
    """The gateway. Must be created inside a running event loop; it works within ``running``.

    Args:
        hub: the gateway is one of its workers.
        read_before: contents of the files of the access control and of TLS, by the names of the settings. They count
            instead of the files, until a change is seen.
        serves_workers: the gateway is the hub.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        hub: Hub | None = None,
        read_before: Mapping[str, bytes] | None = None,
        serves_workers: bool = False,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
        draw: Draw = random.random,
    ) -> None:
        self.settings = settings
        self.hub = hub
        self._serves_workers = serves_workers
        self.stopping = False  # the hub's workers drain, and the hub is still needed
        self.clock = clock
        self._draw = draw
        self.version = __version__
        # Set when the gateway cannot go on. The process must then end, and its supervisor starts a new process.
        self.broken = asyncio.Event()
        self._reloads: set[asyncio.Task[None]] = set()
        self.instance = settings.instance or socket.gethostname()
        self.gzip_prefixes = settings.gzipped
        self.access = make_access_control(settings, clock=clock, wall=wall, draw=draw, read_before=read_before)
        self.tls = make_tls(settings, clock=clock, wall=wall, read_before=read_before)
        self.capacity: Capacity[Any] = Capacity(max(1, descriptors.limit() - RESERVE), SPARE, self._own_connections)
        # A worker never reads the files for etcd: its hub connects to etcd.
        self._credentials = credentials_of(settings) if hub is None else None
        self.budget = Budget(settings.max_feed_bytes)
        # A worker follows its hub, which has the upstream.
        self._upstream_tls = UpstreamTls(settings, wall=wall) if settings.upstream and hub is None else None
        self.upstream: Upstream | GatewayUpstream = self._follow()
        self.registry = Registry(
            self.upstream,
            settings.group(Limits),
            pins=[KeyRange("prefix", prefix) for prefix in settings.pins],
            quotas=quotas_of(settings),
            hub=hub,
            serves_workers=serves_workers,
            budget=self.budget,
            clock=clock,
            draw=draw,
        )
        self.upstream.on_restored(self.registry.feeds.restored)
        self.merges_below = MergesBelow(self.registry, self.upstream)
        self.streams = Streams(
            self.registry,
            self.upstream,
            self.epoch_of,
            settings.group(StreamSettings),
            instance=self.instance,
            clock=clock,
            draw=draw,
            capacity=self.capacity,
            wall=wall,
            tier=lambda: self.tier,
        )
        self.access.on_change(self.streams.recheck.begin)

    def _follow(self) -> Upstream | GatewayUpstream:
        if self.hub is not None:
            from .tier.hub import HubUpstream

            settings, timing = self.settings, {"clock": self.clock, "draw": self._draw}
            return HubUpstream(self.hub, self.epoch_of, stale_after=settings.stale_after, **timing)
        return self._follow_gateway() if self.settings.upstream else self._follow_etcd()

    def _follow_etcd(self) -> Upstream:
        settings = self.settings
        assert self._credentials is not None, "called only where the gateway follows etcd"
        return Upstream(
            settings.etcd,
            self._credentials,
            vouched_version=settings.etcd_version,
            stale_after=settings.stale_after,
            max_ranges=settings.max_ranges,
            clock=self.clock,
            draw=self._draw,
            budget=self.budget,
            max_message=max(LEAST_MESSAGE, settings.max_feed_bytes // MESSAGE_SHARE),
        )

    def _follow_gateway(self) -> GatewayUpstream:
        # Only an edge needs httpx, whose import takes 60 ms of CPU.
        from .tier.client import Client
        from .tier.upstream import GatewayUpstream

        settings, tls = self.settings, self._upstream_tls
        assert tls is not None, "called only where the gateway follows another one"
        return GatewayUpstream(
            partial(Client, settings.upstream, lambda: tls.context, upstream_token_of(settings)),
            self.epoch_of,
            stale_after=settings.stale_after,
            clock=self.clock,
            draw=self._draw,
        )

    def _own_connections(self) -> int:
        """Return how many connections to an upstream gateway there are. etcd has a few, for which RESERVE is enough."""
        return 0 if isinstance(self.upstream, Upstream) else self.upstream.connections

    @property
    def quotas(self) -> Quotas | None:
        """The quotas of those who send requests; None if nothing counts.

        Nothing counts at the hub: its requests are its workers', and the workers ask it to admit their clients.
        """
        return None if self._serves_workers else self.registry.quotas

    @property
    def etcd(self) -> Upstream:
        """The upstream of a gateway that follows etcd itself."""
        assert isinstance(self.upstream, Upstream), "called only where the gateway does not follow another one"
        return self.upstream

    @property
    def tier(self) -> int | None:
        """0 if the gateway follows etcd; otherwise one more than its upstream's, and None until that is known."""
        return self.upstream.tier

    def epoch_of(self, cluster_id: int, selection: Selection) -> str:
        """Return the epoch of cursors for *selection*."""
        return derive_epoch(cluster_id, self.settings.epoch, selection)

    def reload(self) -> asyncio.Task[None]:
        """Begin to read the files again that may change while the process runs. Return the task, which logs the result.

        The files of the access control and of TLS are reloaded. The files for etcd are only checked here: the gateway
        reads them for each new connection, and the existing connections do not need them.
        """
        task = spawn(self._reload(), name="reload", died=lambda _error: None)
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)
        return task

    async def _reload(self) -> None:
        outcomes: dict[str, str] = {"token": "not set", **await self.access.reload()}
        if self._credentials is not None:
            outcomes["etcd"] = self._look_at(self._credentials)
        if self.tls is not None:
            outcomes["tls"] = await self.tls.files.look()
        if self._upstream_tls is not None and self._upstream_tls.files is not None:
            outcomes["upstream"] = await self._upstream_tls.files.look()
        logger.info("reloaded", extra=outcomes)

    def _look_at(self, credentials: Credentials) -> str:
        try:
            credentials.check(tls=self.settings.etcd_is_tls)
        except CredentialsError as error:
            logger.warning("files for etcd cannot be used for the next connection", extra={"reason": str(error)})
            return "unusable"
        return "read for each connection"

    def end_session(self, session: Session) -> None:
        """End a browser's session, and the streams that it has opened."""
        self._end_session(session, counts=True)
        if self.hub is not None:
            self.hub.tell_ended(session.id, session.sealed_by, session.expires)

    def session_ended(self, session: Session) -> None:
        """End a session that has ended at another worker."""
        self._end_session(session, counts=False)

    def _end_session(self, session: Session, *, counts: bool) -> None:
        self.access.end_session(session, counts=counts)
        self.streams.recheck.end_session(session.id)

    async def begin_read(self, caller: Caller | None) -> Releasable | None:
        """Count a read for its caller's quotas, in all workers together. Return None if nothing counts.

        Raises:
            OverCapacityError: *caller* has too many under way.
        """
        quotas = self.quotas
        if caller is None or quotas is None or not quotas.counts_reads:
            return None
        return quotas.begin_read(caller) if self.hub is None else await self.hub.begin_read(caller)

    def credentials_failed(self, address: str) -> None:
        """Count wrong credentials that came from *address*, if there are quotas."""
        if self.registry.quotas is not None:
            self.registry.quotas.failed(address, self.clock())
            if self.hub is not None:
                self.hub.tell_failed(address)

    def statistics(self, only: Ranges | None = None) -> GatewayStatistics:
        """Return what the gateway holds now: of all channels or, with *only*, of the channel of these ranges.

        For ``/metrics`` and ``/v1/feeds``.
        """
        started, ended = self.access.session_counts()
        return GatewayStatistics(
            version=self.version,
            watch=self.registry.statistics(only),
            streams=self.streams.counters.statistics(),
            etcd=self.upstream.statistics(),
            tier=self.tier,
            connections=self.capacity.statistics(),
            token_unusable=self.access.token_unusable,
            access_troubles=self.access.troubles(),
            sessions_started=started,
            sessions_ended=ended,
            tls=self.tls.statistics() if self.tls is not None else None,
        )

    @property
    def draining(self) -> bool:
        """Whether the gateway is about to stop."""
        return self.stopping or self.registry.draining

    def drain(self) -> float:
        """Refuse new streams and ask the streams to end one after the other. Return the seconds until all are asked."""
        self.streams.drain()
        return self.registry.drain()

    def end_streams_now(self) -> None:
        """Ask all streams to end now."""
        self.drain()
        self.registry.close_all()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Stay connected to etcd. Afterwards everything is released, at etcd and in this process.

        Raises:
            BrokenGatewayError: at the end, if the gateway could not go on (``broken``).
        """
        work: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "upstream": self.upstream.run,
            "registry": self.registry.run,
            "access": self.access.run,
        }
        if self.tls is not None:
            work["tls"] = self.tls.files.run
        if self._upstream_tls is not None and self._upstream_tls.files is not None:
            work["upstream-tls"] = self._upstream_tls.files.run
        tasks = [spawn(for_ever(run), name=name, died=self.fail) for name, run in work.items()]
        try:
            yield
        finally:
            self.drain()
            self.merges_below.stop()
            await self.streams.aclose()
            await self.registry.aclose()
            await self.upstream.aclose()
            tasks += self._reloads
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self.broken.is_set():
            raise BrokenGatewayError("an essential task has ended; the log says which one and why")

    def fail(self, _error: Exception) -> None:
        """Report that an essential task has died: the process must end."""
        logger.critical("the gateway cannot go on, and ends")
        self.broken.set()
