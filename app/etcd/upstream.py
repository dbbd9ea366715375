"""etcd as the feeds see it: one link at a time, over several endpoints, made again whenever it fails.

Every response of both channels passes ``Cluster.note``; where etcd knows us by a name (a user, a client certificate),
the ``RefusalChecker`` finds out why a create was refused, and the ``PermissionChecker`` audits open watches.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Literal

from aetcd import rpc

from ..core.backoff import Backoff
from ..core.budget import Budget
from ..core.currentness import Currentness
from ..core.feed_messages import StreamKind
from ..core.keys import KeyRange
from ..core.multiplex import Refused, WatchCallback
from ..core.snapshot import Snapshot
from ..core.versions import known_to_diverge, known_to_lose_events
from ..ports import OUT_OF_REACH, Clock, Condition, Draw
from .channels import MAX_MESSAGE
from .cluster import Cluster, ForeignClusterError
from .credentials import Credentials, CredentialsError
from .hints import explain
from .link import Link
from .login import LoginError
from .permissions import PermissionChecker
from .quorum import CUT_OFF, QuorumChecker
from .reads import Reads
from .refusals import RefusalChecker
from .statistics import EtcdStatistics
from .stream import UnmatchedError, WatchStream
from .watches import EtcdWatch, Watches

logger = logging.getLogger("gateway.etcd")

# A read waits this long (seconds) for a connection that is just being made, before it says that etcd is away.
CONNECT_PATIENCE = 2.0
# The same while etcd is known to be away.
DOWN_PATIENCE = 0.2
# A new link has this long (seconds) for each of the things that it is tried with: a watch, which still has to connect,
# and a linearizable read. It is more than health checks have with a short GATEWAY_STALE_AFTER.
TRIAL_PATIENCE = 2.0
# Seconds before a link that nobody has watched on is tried with a watch.
TRIAL_DELAY = 1.0
# Another cluster takes the place of ours when ours was not to be had for so many times GATEWAY_STALE_AFTER (a minute by
# default): a rolling restart is over by then.
CLUSTER_PATIENCE = 6


ANONYMOUS = Credentials()
ANYTHING = KeyRange("key", b"\0")
UNMATCHED = str(UnmatchedError())


class Upstream:
    """See the module; implements ``app.ports.Etcd``. ``run`` must be a task for as long as it is used.

    Args:
        endpoints: like ``http://127.0.0.1:2379``, tried in turn.
        credentials: who we are there.
        stale_after: seconds; a quarter of it paces health checks and progress requests, half of it the linearizable
            reads that prove feeds current.
        budget: what pages of Ranges are reserved in; none is unbounded.
        max_message: bytes of a watch's message, which nobody asked for and nobody can reserve.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        credentials: Credentials = ANONYMOUS,
        *,
        stale_after: float,
        max_ranges: int,
        clock: Clock,
        draw: Draw,
        backoff: Backoff | None = None,
        budget: Budget | None = None,
        max_message: int = MAX_MESSAGE,
    ) -> None:
        self._endpoints = list(endpoints)
        self._credentials = credentials
        self._stale_after = stale_after
        self._max_message = max_message
        self._proof_interval = min(2.5, stale_after / 4)
        self.clock = clock
        self._draw = draw
        self._backoff = backoff or Backoff()
        self._link: Link | None = None
        self._ready = asyncio.Event()
        self._condition = Condition(self._endpoints[0], "", "connecting", time.time(), "not connected yet")
        self._unmatched: set[str] = set()  # endpoints whose watch answers can't be matched
        self._tried = ANYTHING  # what was last watched: a new link is tried with it, for it may be permitted
        self._reasons: dict[str, str] = {}  # of each endpoint, since it was last found good
        self._cluster = Cluster(patience=CLUSTER_PATIENCE * stale_after, clock=clock)
        self.reconnects = 0
        self.currentness = Currentness(stale_after)
        self._watches = Watches(self.currentness, self._resolve_refusal, clock=clock)
        self._cluster.on_restored(self.currentness.forget)
        self._quorum = QuorumChecker(
            self.currentness,
            self._watches,
            lambda: self._cluster.known,
            self._cluster.note_linearizable,
            clock=clock,
        )
        self.reads = Reads(
            self._usable_link,
            lambda: self._cluster.known,
            self._cluster.note_linearizable,
            max_ranges=max_ranges,
            clock=clock,
            on_proof=self.currentness.note,
            on_slow=self._quorum.doubt,
            budget=budget,
        )
        self._refusals = RefusalChecker(
            self.reads.permitted, lambda: self._link.login.token if self._link is not None else ""
        )
        self._permissions = PermissionChecker(self._watches, self.reads.permitted, interval=stale_after, clock=clock)

    # --- what feeds use ----------------------------------------------------------------------------------------------

    @property
    def condition(self) -> Condition:
        """See ``app.ports.Etcd``."""
        return self._condition

    @property
    def cluster_id(self) -> int:
        """See ``app.ports.Etcd``."""
        return self._cluster.id

    @property
    def progress_trusted(self) -> bool:
        """See ``app.ports.Etcd``."""
        return self._watches.progress_trusted

    @property
    def highest_revision(self) -> int:
        """The highest revision that this process has heard of, in this history."""
        return self._cluster.revision

    @property
    def streams(self) -> list[WatchStream]:
        """The watch streams open at etcd."""
        return self._link.pool.streams if self._link is not None else []

    @property
    def watchers(self) -> int:
        """The watches that we hold at etcd."""
        return sum(len(stream) for stream in self.streams)

    def statistics(self) -> EtcdStatistics:
        """What is held at etcd now."""
        return EtcdStatistics(
            condition=self._condition,
            reached=self._cluster.id != 0,
            watchers=self.watchers,
            highest_revision=self.highest_revision,
            reconnects=self.reconnects,
            ranges=self.reads.ranges_total + self._quorum.ranges_total,
        )

    def on_restored(self, callback: Callable[[], None]) -> None:
        """Have *callback* called whenever the history turns out to be another one."""
        self._cluster.on_restored(callback)

    def watch(self, watched: KeyRange, start: int, sink: WatchCallback, *, stream_kind: StreamKind) -> EtcdWatch:
        """See ``app.ports.Etcd``."""
        self._tried = KeyRange("key", watched.start)
        watch = self._watches.open(watched, start, sink, stream_kind=stream_kind)
        self._quorum.watching()
        return watch

    async def snapshot(self, watched: KeyRange, budget: Callable[[int], None]) -> tuple[Snapshot, int]:
        """See ``app.ports.Etcd``."""
        return await self.reads.snapshot(watched, budget)

    async def probe(self, watched: KeyRange, revision: int) -> Literal["ok", "compacted", "future"]:
        """See ``app.ports.Etcd``."""
        return await self.reads.probe(watched, revision)

    async def revision(self, watched: KeyRange) -> int:
        """See ``app.ports.Etcd``."""
        return await self.reads.revision(watched)

    def _resolve_refusal(self, watch: EtcdWatch, refused: Refused) -> bool:
        """Only an etcd that knows us by a name may refuse what it permitted before."""
        if self._credentials.named:
            self._refusals.resolve(watch, refused)
        return self._credentials.named

    # --- the life of links -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a link: make it, watch its health, make the next one, to the next endpoint."""
        async with asyncio.TaskGroup() as group:
            if self._credentials.named:
                group.create_task(self._permissions.run(), name="permissions")
            index, failures = 0, 0
            while True:
                endpoint = self._endpoints[index % len(self._endpoints)]
                index += 1
                failures = 1 if await self._use(endpoint, failures) else failures + 1
                # Every endpoint is tried before the waits grow.
                await asyncio.sleep(self._backoff.delay(failures // len(self._endpoints), self._draw()))

    async def _use(self, endpoint: str, failures: int) -> bool:
        """Make a link and use it until it fails; whether it was of use. *failures*: tries since one was."""
        try:
            link = Link(
                endpoint,
                self._credentials,
                proof_interval=self._proof_interval,
                on_header=self._cluster.note,
                on_room=self._watches.open_pending,
                clock=self.clock,
                max_message=self._max_message,
            )
        except CredentialsError as error:
            self._say_down(endpoint, str(error))
            return False
        try:
            reason = await link.check(self._patience())
            if reason is None and endpoint in self._unmatched:
                reason = await self._try_watch(link)
            if reason is None:
                reason = self._cluster.admit(link.header, tried_all=failures >= len(self._endpoints))
            if reason is None:
                reason = await self._compare(link)
            served = reason is None
            if reason is None:
                await self._serve(link)
                reason = link.failed.result()
            if reason == UNMATCHED:
                self._unmatched.add(endpoint)
            self._say_down(endpoint, reason)
            return served
        finally:
            self._ready.clear()
            self._link = None
            self._watches.leave()
            await link.aclose("gateway is stopping")

    async def aclose(self) -> None:
        """End the reads under way."""
        await self._refusals.aclose()
        await self.reads.aclose()

    async def _serve(self, link: Link) -> None:
        """Use a good link until it fails."""
        self._link = link
        self._ready.set()
        self._cluster.note_applied(link.applied)
        self._say_ready(link)
        self._watches.use(link)
        async with asyncio.TaskGroup() as group:
            quorum = group.create_task(self._quorum.run(link), name="quorum")
            trial = group.create_task(self._try_watch_if_nobody_does(link), name="trial")
            await self._watch_health(link)
            quorum.cancel()
            trial.cancel()
        self.reconnects += 1

    async def _watch_health(self, link: Link) -> None:
        """Until the link has failed."""
        while not link.failed.done():
            await asyncio.wait([link.failed], timeout=self._proof_interval)
            if link.failed.done():
                break
            reason = await link.check(self._patience())
            self._cluster.note_applied(link.applied)
            if reason is not None or (reason := self._foreign(link)) is not None:
                link.fail(reason)
            elif link.silent_streams(3 * self._stale_after):
                link.fail("a watch stream is silent")

    async def _try_watch(self, link: Link) -> str | None:
        """Whether what answers there can be watched; why not. An endpoint that could not be has to show that it can."""
        try:
            matches = await link.matches(self._tried, TRIAL_PATIENCE)
        except TimeoutError:
            return f"no answer to a watch within {TRIAL_PATIENCE:g} s"
        except rpc.AioRpcError as error:
            if error.code() is rpc.StatusCode.UNAVAILABLE:
                return explain(link.endpoint, error)
            matches = None
        if matches:
            self._unmatched.discard(link.endpoint)
        return UNMATCHED if matches is False or link.endpoint in self._unmatched else None

    async def _try_watch_if_nobody_does(self, link: Link) -> None:
        """A first watch tells by itself. Without one, it is found out before somebody needs it."""
        await asyncio.sleep(TRIAL_DELAY)
        if not self._watches.matched and (reason := await self._try_watch(link)) is not None:
            link.fail(reason)

    async def _compare(self, link: Link) -> str | None:
        """Whether the member is in touch with its cluster, and history goes on there; why the link can't be used.

        Asked before any watch goes on. It costs a Range and a Status per connection, however many feeds there are.
        """
        cluster = self._cluster
        known, applied, asked_at = cluster.known, cluster.applied, self.clock()
        try:
            answer = await link.range(rpc.RangeRequest(key=b"\0", count_only=True), TRIAL_PATIENCE)
            cluster.note_linearizable(known, answer.header)
            self.currentness.note(asked_at, answer.header.revision)
        except LoginError as error:
            return str(error)
        except rpc.AioRpcError as error:
            if error.code() is rpc.StatusCode.DEADLINE_EXCEEDED:
                return f"{CUT_OFF}: no linearizable read in {TRIAL_PATIENCE:g} s"
            # A key that we may not read is refused only behind the same barrier; without a user, every key is.
            if error.code() is not rpc.StatusCode.PERMISSION_DENIED and cluster.applied:
                return explain(link.endpoint, error)
        except ForeignClusterError as error:
            return str(error)
        reason = await link.check(self._patience())
        if reason is None:
            cluster.compare_applied(applied, link.applied, link.header)
        return reason

    def _foreign(self, link: Link) -> str | None:
        """Whether a channel that reconnected by itself has found another cluster behind the same endpoint."""
        try:
            if link.header is not None:
                self._cluster.note(link.header)
        except ForeignClusterError as error:
            return str(error)
        return None

    def _patience(self) -> float:
        return max(0.5, min(2.0, self._stale_after / 4))

    async def _usable_link(self) -> Link:
        if self._link is None or self._link.failed.done():
            try:
                async with asyncio.timeout(DOWN_PATIENCE if self._condition.state == "down" else CONNECT_PATIENCE):
                    await self._ready.wait()
            except TimeoutError:
                pass
        if self._link is None:
            raise self._condition.error()
        return self._link

    # --- saying it ----------------------------------------------------------------------------------------------------

    def _say_ready(self, link: Link) -> None:
        self._reasons.pop(link.endpoint, None)
        self._condition = Condition(link.endpoint, link.version_text, "ready", time.time(), "")
        logger.info("etcd is ready", extra={"endpoint": link.endpoint, "version": link.version_text})
        if known_to_lose_events(link.version):
            logger.warning(
                "this etcd version can lose a delete at a compaction; the gateway guards its own watches against it, "
                "but upgrade to 3.5.18 or later (3.4.36 on the 3.4 line)",
                extra={"endpoint": link.endpoint, "version": link.version_text},
            )
        if known_to_diverge(link.version):
            logger.warning(
                "a crash can make a member of this etcd version differ from the others: upgrade",
                extra={"endpoint": link.endpoint, "version": link.version_text},
            )

    def _say_down(self, endpoint: str, reason: str) -> None:
        if self._reasons.get(endpoint) != reason:
            logger.warning("etcd is out of reach", extra={"endpoint": endpoint, "reason": reason})
        self._reasons[endpoint] = reason
        since = self._condition.since if self._condition.state == "down" else time.time()
        others = [f"{other}: {why}" for other, why in self._reasons.items() if other != endpoint]
        hopeless = self._unmatched.issuperset(self._endpoints)
        told = f"etcd can't be used: {UNMATCHED}" if hopeless else OUT_OF_REACH
        reasons = "; ".join([reason, *others])
        self._condition = Condition(endpoint, self._condition.version, "down", since, reasons, told)
