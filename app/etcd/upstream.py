"""etcd as the feeds see it: one link at a time, over several endpoints, replaced whenever it fails.

Every response on both channels passes through ``Cluster.note``. If etcd knows the gateway by a name (a user or a client
certificate), the ``RefusalChecker`` finds out why a create was refused, and the ``PermissionChecker`` audits open
watches.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from aetcd import rpc

from ..core.backoff import Backoff
from ..core.budget import Budget
from ..core.ended_histories import EndedHistories
from ..core.feed_messages import Refused, StreamKind, WatchCallback
from ..core.keys import KeyRange
from ..core.linearizable_reads import LinearizableReads
from ..core.selection import Ranges
from ..core.snapshot import Snapshot
from ..core.versions import known_to_diverge, known_to_lose_events
from ..core.witnessed_history import WitnessedHistory
from ..ports import OUT_OF_REACH, Clock, Condition, Draw, UpstreamStatistics
from .cluster import Cluster, ForeignClusterError
from .credentials import Credentials, CredentialsError
from .grpc_channels import MAX_MESSAGE
from .hints import explain
from .link import Link
from .login import LoginError
from .permissions import PermissionChecker
from .quorum import CUT_OFF, QuorumChecker
from .reads import Reads
from .refusals import RefusalChecker
from .stream import UnmatchedError, WatchStream
from .watches import EtcdWatch, Watches

logger = logging.getLogger("gateway.etcd")

# Seconds that a read waits for a connection that is being made, before the read reports that etcd is out of reach.
CONNECT_TIMEOUT = 2.0
# The same, while etcd is known to be out of reach.
DOWN_TIMEOUT = 0.2
# Seconds that a new link has for each trial: a watch, which still has to connect, and a linearizable read. With a short
# GATEWAY_STALE_AFTER, this is longer than the timeout of health checks.
TRIAL_TIMEOUT = 2.0
# Seconds before a link that nobody has watched on is tried with a watch.
TRIAL_DELAY = 1.0
# Another cluster may replace ours after ours was unavailable for this many times GATEWAY_STALE_AFTER (a minute by
# default). A rolling restart is over by then.
REPLACE_AFTER = 6


ANONYMOUS = Credentials()
ANYTHING = KeyRange("key", b"\0")
UNMATCHED = str(UnmatchedError())


class Upstream:
    """See the module; implements ``app.ports.Etcd``. ``run`` must be a running task while the upstream is used.

    Args:
        endpoints: URLs like ``http://127.0.0.1:2379``, tried in turn.
        credentials: the gateway's identity at the endpoints.
        vouched_version: the version of members that do not tell theirs to this identity; "": unknown.
        stale_after: seconds; a quarter of it paces health checks and progress requests, and half of it paces the
            linearizable reads that prove feeds current.
        budget: the budget in which memory for pages of Ranges is reserved; None: unlimited.
        max_message: the maximum size of a watch's message in bytes. Nobody requests such a message, so nobody can
            reserve memory for it.
    """

    is_gateway = False
    tier = 0

    def __init__(
        self,
        endpoints: Sequence[str],
        credentials: Credentials = ANONYMOUS,
        *,
        vouched_version: str = "",
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
        self._vouched_version = vouched_version
        self._stale_after = stale_after
        self._max_message = max_message
        self._proof_interval = min(2.5, stale_after / 4)
        self.clock = clock
        self._draw = draw
        self._backoff = backoff or Backoff()
        self._link: Link | None = None
        self._ready = asyncio.Event()
        self._condition = Condition(self._endpoints[0], "", "connecting", time.time(), "not connected yet")
        self._unmatched: set[str] = set()  # endpoints whose answers cannot be matched to watches
        self._tried = ANYTHING  # the key watched last: a new link is tried with this key, as it is likely permitted
        self._reasons: dict[str, str] = {}  # endpoint -> why it last failed, since it was last ready
        self._cluster = Cluster(replace_after=REPLACE_AFTER * stale_after, clock=clock)
        self.reconnects = 0
        self.linearizable_reads = LinearizableReads(stale_after)
        self._watches = Watches(self.linearizable_reads, self._resolve_refusal, clock=clock)
        self._cluster.on_restored(self.linearizable_reads.forget)
        self._quorum = QuorumChecker(
            self.linearizable_reads,
            self._watches,
            lambda: self._cluster.known,
            self._cluster.note_linearizable,
            clock=clock,
        )
        self.reads = Reads(
            self._usable_link,
            lambda: self._cluster.known,
            self._cluster.note_linearizable,
            replaced=lambda: self._cluster.replaced,
            max_ranges=max_ranges,
            clock=clock,
            on_proof=self.linearizable_reads.note,
            on_slow=self._quorum.check_now,
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
    def ended(self) -> EndedHistories:
        """See ``app.ports.Etcd``."""
        return self._cluster.ended

    @property
    def witnessed(self) -> WitnessedHistory | None:
        """See ``app.ports.Etcd``."""
        return self._cluster.witnessed

    @property
    def can_be_followed(self) -> bool:
        """See ``app.ports.Etcd``. The first connection has been compared, and the cluster is known."""
        return self._cluster.witnessed is not None

    def reach(self, most: int) -> int:
        """See ``app.ports.Etcd``."""
        return most

    @property
    def progress_trusted(self) -> bool:
        """See ``app.ports.Etcd``."""
        return self._watches.progress_trusted

    @property
    def member_known(self) -> bool:
        """See ``app.ports.Etcd``."""
        return self._link is not None and self._link.version_known

    @property
    def watch_version(self) -> str:
        """See ``app.ports.Etcd``."""
        return self._link.watch_version if self._link is not None else ""

    @property
    def highest_revision(self) -> int:
        """The highest revision that this process knows, in this history."""
        return self._cluster.revision

    @property
    def streams(self) -> list[WatchStream]:
        """The watch streams open at etcd."""
        return self._link.pool.streams if self._link is not None else []

    @property
    def watchers(self) -> int:
        """The number of watches that the gateway holds at etcd."""
        return sum(len(stream) for stream in self.streams)

    def statistics(self) -> UpstreamStatistics:
        """Return what the gateway holds at etcd now."""
        return UpstreamStatistics(
            condition=self._condition,
            reached=self._cluster.id != 0,
            watchers=self.watchers,
            highest_revision=self.highest_revision,
            reconnects=self.reconnects,
            ranges=self.reads.ranges_total + self._quorum.ranges_total,
        )

    def on_restored(self, callback: Callable[[], None]) -> None:
        """Call *callback* whenever etcd's history turns out to have been replaced."""
        self._cluster.on_restored(callback)

    def watch(self, watched: KeyRange, start: int, callback: WatchCallback, *, stream_kind: StreamKind) -> EtcdWatch:
        """See ``app.ports.Etcd``."""
        self._tried = KeyRange("key", watched.start)
        watch = self._watches.open(watched, start, callback, stream_kind=stream_kind)
        self._quorum.watching()
        return watch

    def tell_merged(self, watched: Ranges) -> None:
        """See ``app.ports.Etcd``."""

    async def snapshot(
        self, ranges: Sequence[KeyRange], budget: Callable[[int], None], *, newest: bool = False
    ) -> tuple[Snapshot, int]:
        """See ``app.ports.Etcd``."""
        del newest  # always
        return await self.reads.snapshot(ranges, budget)

    async def probe(self, watched: KeyRange, revision: int) -> Literal["ok", "compacted", "future"]:
        """See ``app.ports.Etcd``."""
        return await self.reads.probe(watched, revision)

    async def revision(self, watched: KeyRange) -> int:
        """See ``app.ports.Etcd``."""
        return await self.reads.revision(watched)

    def _resolve_refusal(self, watch: EtcdWatch, refused: Refused) -> bool:
        """Start to find out why *watch* was refused; False if there is nothing to find out.

        Only an etcd that knows the gateway by a name may refuse what it permitted before.
        """
        if self._credentials.named:
            self._refusals.resolve(watch, refused)
        return self._credentials.named

    # --- the life of links -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a link: make one, check its health and, when it fails, make the next one, to the next endpoint."""
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
        """Make a link and use it until it fails. Return whether it was usable. *failures*: unusable links in a row."""
        try:
            link = Link(
                endpoint,
                self._credentials,
                vouched_version=self._vouched_version,
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
            reason = await link.check(self._health_timeout())
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
        """Cancel the reads that are under way."""
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
        """Check the link's health until the link fails."""
        while not link.failed.done():
            await asyncio.wait([link.failed], timeout=self._proof_interval)
            if link.failed.done():
                break
            if (reason := await self._check_again(link)) is not None:
                link.fail(reason)
                break
            self._cluster.note_applied(link.applied)  # of our cluster: another one's would make ours seem restored
            if link.silent_streams(3 * self._stale_after):
                link.fail("a watch stream is silent")

    async def _try_watch(self, link: Link) -> str | None:
        """Return why the link's server cannot be watched; None if it can.

        An endpoint that could not be watched before must answer a watch before it is used again.
        """
        try:
            matches = await link.matches(self._tried, TRIAL_TIMEOUT)
        except TimeoutError:
            return f"no answer to a watch within {TRIAL_TIMEOUT:g} s"
        except rpc.AioRpcError as error:
            if error.code() is rpc.StatusCode.UNAVAILABLE:
                return explain(link.endpoint, error)
            matches = None
        if matches:
            self._unmatched.discard(link.endpoint)
        return UNMATCHED if matches is False or link.endpoint in self._unmatched else None

    async def _try_watch_if_nobody_does(self, link: Link) -> None:
        """Try a watch if no feed has opened one, to learn whether watches work before a feed needs one."""
        await asyncio.sleep(TRIAL_DELAY)
        if not self._watches.matched and (reason := await self._try_watch(link)) is not None:
            link.fail(reason)

    async def _compare(self, link: Link) -> str | None:
        """Return why the link cannot be used; None if its member is in touch with its cluster and history goes on.

        The check runs before any watch resumes. It costs a Range and a Status per connection, however many feeds there
        are.
        """
        cluster = self._cluster
        before, asked_at = cluster.highest, self.clock()
        header: Any = None  # of an answer that shows at least all that was committed before the read
        denied = False
        try:
            answer = await link.range(rpc.RangeRequest(key=b"\0", count_only=True), TRIAL_TIMEOUT)
            header = answer.header
            cluster.note(header)
        except LoginError as error:
            return str(error)
        except rpc.AioRpcError as error:
            if error.code() is rpc.StatusCode.DEADLINE_EXCEEDED:
                return f"{CUT_OFF}: no linearizable read in {TRIAL_TIMEOUT:g} s"
            # etcd refuses a key that the user may not read only after the same barrier as a read.
            denied = error.code() is rpc.StatusCode.PERMISSION_DENIED
            if not denied and cluster.applied:
                return explain(link.endpoint, error)
        except ForeignClusterError as error:
            return str(error)
        if (reason := await self._check_again(link)) is not None:
            return reason
        if denied and link.committed:
            header = link.header  # of the member's status: the header of another answer may have no revision
        cluster.compare_first(before, header, applied=link.applied, committed=link.committed, asked_at=asked_at)
        if header is not None and not denied:
            self.linearizable_reads.note(asked_at, header.revision)
        return None

    async def _check_again(self, link: Link) -> str | None:
        """Return what is wrong with a link that was admitted; None if it is well.

        A channel may have reconnected by itself, and found another cluster at the endpoint.
        """
        if (reason := await link.check(self._health_timeout())) is not None:
            return reason
        try:
            if link.header is not None:
                self._cluster.note(link.header)
        except ForeignClusterError as error:
            return str(error)
        return None

    def _health_timeout(self) -> float:
        return max(0.5, min(2.0, self._stale_after / 4))

    async def _usable_link(self) -> Link:
        if self._link is None or self._link.failed.done():
            self._ready.clear()  # a link that has failed is still there until its tasks have ended
            try:
                async with asyncio.timeout(DOWN_TIMEOUT if self._condition.state == "down" else CONNECT_TIMEOUT):
                    await self._ready.wait()
            except TimeoutError:
                pass
        if self._link is None:
            raise self._condition.error()
        return self._link

    # --- reporting ----------------------------------------------------------------------------------------------------

    def _say_ready(self, link: Link) -> None:
        self._reasons.pop(link.endpoint, None)
        self._condition = Condition(link.endpoint, link.version_text, "ready", time.time(), "")
        logger.info("etcd is ready", extra={"endpoint": link.endpoint, "version": link.version_text})
        if known_to_lose_events(link.version):
            logger.warning(
                "this etcd version can lose a delete at a compaction; the gateway protects its own watches from this, "
                "but upgrade to 3.5.18 or later (3.4.36 on the 3.4 line)",
                extra={"endpoint": link.endpoint, "version": link.version_text},
            )
        if known_to_diverge(link.version):
            logger.warning(
                "after a crash, a member of this etcd version can differ from the other members: upgrade",
                extra={"endpoint": link.endpoint, "version": link.version_text},
            )

    def _say_down(self, endpoint: str, reason: str) -> None:
        if self._reasons.get(endpoint) != reason:
            logger.warning("etcd is out of reach", extra={"endpoint": endpoint, "reason": reason})
        self._reasons[endpoint] = reason
        since = self._condition.since if self._condition.state == "down" else time.time()
        others = [f"{other}: {why}" for other, why in self._reasons.items() if other != endpoint]
        hopeless = self._unmatched.issuperset(self._endpoints)
        told = f"etcd cannot be used: {UNMATCHED}" if hopeless else OUT_OF_REACH
        reasons = "; ".join([reason, *others])
        self._condition = Condition(endpoint, self._condition.version, "down", since, reasons, told)
