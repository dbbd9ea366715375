"""Another gateway as the feeds see it: what ``app.etcd.upstream`` is for etcd, over the wire contract.

A feed of this gateway follows a stream of the upstream with the same cursors. The upstream's word is the proof: a
stream without ``reset`` has no gap, and ``live`` is live. So this gateway is never more confident than its upstream.

No loops: the tier of a gateway is fixed when its first upstream answers, as one more than the upstream's. An answer of
an equal or a higher tier is refused. A count of hops would miss loops that are closed by sharing: B fails over to C and
joins C's feed, which follows B; both would stay "live" for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar, Literal, TypeVar

from ..core.backoff import Backoff
from ..core.ended_histories import EndedHistories
from ..core.errors import GatewayError, NotConnectedError, UnavailableError
from ..core.feed_messages import StreamKind, WatchCallback
from ..core.keys import KeyRange
from ..core.known_history import KnownHistory, UnclearHistoryError
from ..core.selection import Ranges, Selection
from ..core.snapshot import Snapshot
from ..core.witnessed_history import HEADER, ROUNDING, WitnessedHistory
from ..ports import Clock, Condition, Draw, UpstreamStatistics
from ..shared_reads import SharedReads
from .client import OUT_OF_REACH, Answer, Begin, Client, ForeignAnswerError, at_once, refusal, tier_of, unreachable
from .merge_notices import MergeNotices
from .states import States
from .watch import UpstreamWatch

logger = logging.getLogger("gateway.upstream")

T = TypeVar("T")

MOST_TIERS = 3
# Seconds that a request for the upstream's own state may take. It may wait 2 s for the proof of its tip.
LOOK_TIMEOUT = 3.0
# Seconds that a linearizable revision may take. The upstream may wait 2 s for its connection, 1 s for its turn, and 5 s
# for etcd, before it waits for the proof of its tip.
REVISION_TIMEOUT = 10.0
# Seconds that a read may take: the upstream waits itself, up to its GATEWAY_SYNC_TIMEOUT.
READ_TIMEOUT = 30.0
# Seconds that a read waits for an upstream, before the read reports that it is out of reach.
CONNECT_TIMEOUT = 2.0
# The number of ranges whose revision is remembered.
MOST_REMEMBERED = 10_000


class GatewayUpstream:
    """See the module; implements ``app.ports.Etcd``. ``run`` must be a running task while the upstream is used.

    Args:
        epoch_of: derives the epoch of cursors from the cluster's id and a selection.
        stale_after: seconds; a quarter of it paces the looks at the upstream.
    """

    is_gateway = True
    # The state of ``condition`` while no upstream can be used.
    down: ClassVar[Literal["connecting", "down"]] = "down"
    # Makes the error for a client of what the upstream has refused.
    refusal = staticmethod(refusal)

    def __init__(
        self,
        client: Callable[[Callable[[], int | None]], Client],
        epoch_of: Callable[[int, Selection], str],
        *,
        stale_after: float,
        clock: Clock,
        draw: Draw,
    ) -> None:
        self.client = client(lambda: self.tier)
        self._epoch_of = epoch_of
        self.stale_after = stale_after
        self._interval = min(2.5, stale_after / 4)
        self.clock = clock
        self._draw = draw
        self._backoff = Backoff()
        self.tier: int | None = None
        self.cluster_id = 0
        self.ended = EndedHistories()
        self._known_history = KnownHistory()
        self.highest_revision = 0
        # The revision up to which each range was complete last: another gateway behind the same URL may lag.
        self._reached: dict[KeyRange, int] = {}
        self._notices = MergeNotices(self._send_merge, clock)
        self.progress_trusted = self._member_known = False
        self.watch_version = ""  # of the etcd above all gateways, as far as it is known: see ``app.ports.Etcd``
        self._states = States(self._read, self._end_history)
        self._reachable = asyncio.Event()
        self._look_now = asyncio.Event()  # a connection was lost: do not wait for the next look
        self._looked = asyncio.Event()  # set after the next look
        self._condition = Condition(self.client.url, "", "connecting", time.time(), "not connected yet")
        self._watches: set[UpstreamWatch] = set()
        self._of_range: dict[KeyRange, set[UpstreamWatch]] = {}
        self._restored: list[Callable[[], None]] = []
        self._shared = SharedReads()
        self._reconnects = self._requests = 0

    # --- what feeds use ----------------------------------------------------------------------------------------------

    @property
    def condition(self) -> Condition:
        """See ``app.ports.Etcd``."""
        return self._condition

    @property
    def connections(self) -> int:
        """The number of connections to the upstream, without those that are idle."""
        return len(self._watches) + self.client.requests

    @property
    def member_known(self) -> bool:
        """See ``app.ports.Etcd``. An upstream that has lost etcd does not know either."""
        return self._member_known and self._reachable.is_set()

    @property
    def witnessed(self) -> WitnessedHistory | None:
        """See ``app.ports.Etcd``: as the upstream has reported it."""
        return self._known_history.witnessed()

    @property
    def can_be_followed(self) -> bool:
        """See ``app.ports.Etcd``. An upstream of an older version reports nothing."""
        return self.cluster_id != 0

    def reach(self, most: int) -> int:
        """See ``app.ports.Etcd``: nine tenths for each tier, because the tip of the tier above may be ahead."""
        return int(most * 0.9 ** (self.tier or 1))

    def statistics(self) -> UpstreamStatistics:
        """Return what the gateway holds at its upstream now."""
        return UpstreamStatistics(
            condition=self._condition,
            reached=self.cluster_id != 0,
            watchers=len(self._watches),
            highest_revision=self.highest_revision,
            reconnects=self._reconnects,
            ranges=self._requests,
        )

    def on_restored(self, callback: Callable[[], None]) -> None:
        """Call *callback* when the upstream follows another cluster, or proves that etcd was restored."""
        self._restored.append(callback)

    def watch(
        self, watched: KeyRange, start: int, callback: WatchCallback, *, stream_kind: StreamKind
    ) -> UpstreamWatch:
        """See ``app.ports.Etcd``."""
        del stream_kind  # each watch has a connection to itself
        watch = UpstreamWatch(self, watched, start, callback, ended=self._watch_ended)
        self._watches.add(watch)
        self._of_range.setdefault(watched, set()).add(watch)
        watch.begin()
        return watch

    def _watch_ended(self, watch: UpstreamWatch) -> None:
        self._watches.discard(watch)
        others = self._of_range.get(watch.range, set())
        others.discard(watch)
        if not others:
            self._of_range.pop(watch.range, None)

    async def snapshot(
        self, ranges: Sequence[KeyRange], budget: Callable[[int], None], *, newest: bool = False
    ) -> tuple[Snapshot, int]:
        """See ``app.ports.Etcd``."""
        await self._usable()
        reached = max((self._reached[one] for one in ranges if one in self._reached), default=0)
        cluster_id = self.cluster_id
        epoch = self._epoch_of(cluster_id, Selection(tuple(ranges)))
        return await self._states.read(ranges, budget, reached=reached, epoch=epoch, newest=newest), cluster_id

    async def probe(self, watched: KeyRange, revision: int) -> Literal["ok", "compacted", "future"]:
        """See ``app.ports.Etcd``. The stream itself has said that its history goes on."""
        del watched, revision
        return "ok"

    async def revision(self, watched: KeyRange) -> int:
        """See ``app.ports.Etcd``. The upstream reads it, and says on its streams that it has reached it."""
        await self._usable()
        url = self.client.url  # a read that waits for an upstream which has hung is not shared with those of the next
        progress = partial(self._progress, str(watched), url, REVISION_TIMEOUT)
        return await self._shared.run(("progress", watched, url), progress)

    # --- what watches use --------------------------------------------------------------------------------------------

    async def reachable(self) -> None:
        """Wait until an upstream is in reach."""
        await self._reachable.wait()

    def epoch_of(self, watched: KeyRange) -> str:
        """Return the epoch of the cursors of a watched range."""
        return self._epoch_of(self.cluster_id, Selection((watched,)))

    def alive_at(self, heard_at: float, silence: float) -> float:
        """Return now, unless the stream has been silent for longer than *silence* seconds: then its last byte."""
        now = self.clock()
        return now if now - heard_at <= silence else heard_at

    def note_reached(self, watched: KeyRange, revision: int) -> None:
        """Take the revision up to which a stream is complete."""
        self.highest_revision = max(self.highest_revision, revision)
        # A watch of old history is behind, and so is a new watch at a gateway that lags: neither takes anything back.
        self._reached[watched] = max(revision, self._reached.pop(watched, 0))  # the latest is the last
        if len(self._reached) > MOST_REMEMBERED:
            del self._reached[next(iter(self._reached))]

    def note_ended(self, revision: int) -> None:
        """Take what the upstream says of the histories that have ended: ``EndedHistories``."""
        self.ended.note(self.cluster_id, revision)

    def compare_history(self, headers: Mapping[str, str], asked_at: float) -> None:
        """Compare what an upstream reports of etcd's history with what is known. *asked_at*: before the request.

        An upstream that was started after a restore cannot notice the restore, and resumes cursors of the old history.

        Raises:
            ForeignAnswerError: it follows another cluster, as another gateway behind the same URL may, or the numbers
                do not tell yet whether etcd was restored.
        """
        report = WitnessedHistory.parse(headers.get(HEADER, ""), asked_at)
        if report is None:
            return
        if report.cluster_id != self.cluster_id:
            raise ForeignAnswerError(
                f"the upstream follows the cluster {report.cluster_id:x}, and not {self.cluster_id:x}"
            )
        now = self.clock()
        try:
            ended = self._known_history.take(report, now, late=now - asked_at + 2 * ROUNDING)
        except UnclearHistoryError as error:
            raise ForeignAnswerError(str(error)) from None
        if ended is not None:
            self._end_history(ended)

    def _end_history(self, reached: int) -> None:
        """Let every feed begin anew: etcd was restored. *reached*: a revision of the old history."""
        reached = max(reached, self.highest_revision)
        logger.warning("etcd's history went back: etcd was restored", extra={"was": reached})
        self.note_ended(reached)
        self._begin_history()

    def _begin_history(self) -> None:
        self.forget_revisions()
        for callback in self._restored:
            callback()

    def forget_revisions(self) -> None:
        """The cluster has another history: its revisions may be lower."""
        self.highest_revision = 0
        self._reached.clear()

    async def ask_progress(self, watched: KeyRange, url: str, revision: int) -> None:
        """See ``app.tier.watch.WatchUpstream``. Ignore failures."""
        query = f"{watched}&min_revision={revision}"
        try:
            await self._shared.run(("progress", url, query), lambda: self._progress(query, url))
        except GatewayError as error:
            logger.debug("no progress", extra={"range": str(watched), "reason": str(error)})

    def tell_merged(self, watched: Ranges) -> None:
        """See ``app.ports.Etcd``."""
        self._notices.tell(watched)

    async def _send_merge(self, watched: Ranges) -> None:
        """Tell those upstreams of a merge that have streams of its ranges."""
        query = "&".join(map(str, watched)) + f"&min_revision={self.highest_revision}"
        for url in {one.url for each in watched for one in self._of_range.get(each, ()) if one.url}:
            await self._progress(query, url)

    def forget_told(self, watched: KeyRange) -> None:
        """See ``app.tier.watch.WatchUpstream``."""
        self._notices.forget(watched)

    async def _progress(self, query: str, url: str, seconds: float = LOOK_TIMEOUT) -> int:
        found = self._parsed(await self._ask("/v1/progress", query, seconds, url), url)
        try:
            return int(found["revision"])
        except (KeyError, ValueError, TypeError, OverflowError):
            raise UnavailableError(OUT_OF_REACH, cause=f"{url}: /v1/progress has no revision") from None

    # --- reads for clients --------------------------------------------------------------------------------------------

    async def shared(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """Share a read with all callers that ask for the same key. See ``app.shared_reads``."""
        return await self._shared.run(key, read)

    async def read(self, query: str, begin: Begin = at_once) -> Answer:
        """Return the upstream's answer of ``/v1/kv``: 200, or the 404 of a key that does not exist.

        *begin*: see ``Client.get``.

        Raises:
            GatewayError: the upstream refuses, or is out of reach.
        """
        await self._usable()
        return await self._read(query, begin)

    async def _read(self, query: str, begin: Begin = at_once) -> Answer:
        try:
            answer = await self._ask("/v1/kv", query, READ_TIMEOUT, self.client.url, begin)
        except NotConnectedError:
            # A GET may be sent twice, and another upstream may answer.
            await self._look_again()
            answer = await self._ask("/v1/kv", query, READ_TIMEOUT, self.client.url, begin)
        if answer.status == HTTPStatus.OK:
            return answer
        problem = _problem(answer)
        if answer.status == HTTPStatus.NOT_FOUND and problem.get("code") == "key-not-found":
            return answer
        raise self.refusal(answer, problem)

    # --- the upstream -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at the upstream for ever: whether it is in reach, what it follows, and how it is."""
        try:
            await self._look_for_ever()
        finally:
            await self.client.aclose()

    async def _look_for_ever(self) -> None:
        failures = 0
        while True:
            try:
                state = await self._look()
                self._say_looked()
                if state != "ready":
                    await self._look_around()
            except (GatewayError, ForeignAnswerError) as error:
                failures += 1
                self._say_down(str(error))
                self.client.use_next()
                self._say_looked()
                if failures >= self.client.count:
                    await asyncio.sleep(self._backoff.delay(failures // self.client.count - 1, self._draw()))
            else:
                failures = 0
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._look_now.wait()
                self._look_now.clear()

    async def _look_again(self) -> None:
        """Let ``run`` look at the upstream now, whose connection was lost, and wait until an upstream is in reach.

        Raises:
            UnavailableError: that takes too long.
        """
        if self._reachable.is_set():
            self._look_now.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await self._looked.wait()
        await self._usable()

    def _say_looked(self) -> None:
        self._looked.set()
        self._looked = asyncio.Event()  # of the next look

    async def _look_around(self) -> None:
        """Move to another upstream that has etcd in reach, if there is one. Otherwise stay at this one.

        Meanwhile all requests go to the present upstream: another one may take them, and never answer.
        """
        for url in self.client.others:
            try:
                if await self._look(url) == "ready":
                    break
            except (GatewayError, ForeignAnswerError) as error:
                logger.debug("no better upstream", extra={"upstream": url, "reason": str(error)})
        else:
            return
        logger.info("leaving the upstreams that cannot reach etcd", extra={"upstream": self.client.url})
        for watch in list(self._watches):
            watch.leave(self.client.url)

    async def aclose(self) -> None:
        """Cancel the watches and reads. ``run`` closes the connections: it uses them to its end."""
        for watch in list(self._watches):
            watch.cancel()
        self._notices.cancel()
        await self._shared.aclose()

    async def _look(self, url: str = "") -> str:
        """Look at the present upstream. Return the state of its connection to etcd.

        *url*: look at this one instead. If it has etcd in reach, it becomes the present one.

        Raises:
            GatewayError, ForeignAnswerError: it cannot be followed.
        """
        url, asked_at = url or self.client.url, self.clock()
        answer = await self._get("/v1/progress", "", LOOK_TIMEOUT, url)
        found = self._parsed(answer, url)
        try:
            cluster_id, state = int(found["cluster_id"], 16), str(found["state"])
            revision, trusted, epoch = int(found["revision"]), bool(found["progress_trusted"]), str(found["epoch"])
            member_known, version = bool(found.get("member_known", True)), str(found.get("etcd_version", ""))
        except (KeyError, ValueError, TypeError, OverflowError):
            text = f"{url}: /v1/progress cannot be read; run the same version on both tiers"
            raise ForeignAnswerError(text) from None
        if not cluster_id:
            raise UnavailableError(OUT_OF_REACH, cause=f"{url}: it has not reached etcd yet")
        if epoch != self._epoch_of(cluster_id, Selection(())):
            raise ForeignAnswerError(f"{url} derives other cursors: give all tiers the same GATEWAY_EPOCH (--epoch)")
        if url != self.client.url:
            if state != "ready":
                return state
            self.client.use(url)
        if self.cluster_id not in (0, cluster_id):
            logger.warning("the upstream follows another cluster", extra={"upstream": self.client.url})
            self.cluster_id, self._known_history = cluster_id, KnownHistory()
            self._begin_history()
        if self.tier is None:  # only a gateway that can be followed fixes the tier
            self.tier = self.admit(answer.headers, answer.status)
        self.cluster_id = cluster_id
        self.compare_history(answer.headers, asked_at)
        self.progress_trusted, self._member_known, self.watch_version = trusted, member_known, version
        # After a restore both may be lower than before, though no watch has said so.
        self.highest_revision = max([revision, *(watch.revision for watch in self._watches)])
        self._say_ready(state)
        return state

    def admit(self, headers: Mapping[str, str], status: int) -> int:
        """Return the tier of this gateway, if it follows the one that has answered with *status*.

        Raises:
            ForeignAnswerError: it must not.
        """
        above = tier_of(headers, status)
        if above >= MOST_TIERS:
            raise ForeignAnswerError(
                f"the upstream is of tier {above}: there are at most {MOST_TIERS} tiers below the gateways that follow "
                "etcd"
            )
        if self.tier is not None and above >= self.tier:
            raise ForeignAnswerError(
                f"the upstream is of tier {above}, and this gateway is of tier {self.tier}: only a "
                "lower tier may be followed, so that no gateways follow each other"
            )
        return above + 1

    def _parsed(self, answer: Answer, url: str) -> Mapping[str, Any]:
        if answer.status != HTTPStatus.OK:
            raise self.refusal(answer, _problem(answer))
        try:
            found = json.loads(answer.body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UnavailableError(OUT_OF_REACH, cause=f"{url}: /v1/progress is not JSON")
        return found

    async def _ask(self, path: str, query: str, seconds: float, url: str, begin: Begin = at_once) -> Answer:
        """Return an answer of a gateway that follows the same cluster."""
        asked_at = self.clock()
        answer = await self._get(path, query, seconds, url, begin)
        try:
            self.compare_history(answer.headers, asked_at)
        except ForeignAnswerError as error:
            raise unreachable(url, error) from None
        return answer

    async def _get(self, path: str, query: str, seconds: float, url: str, begin: Begin = at_once) -> Answer:
        self._requests += 1
        try:
            async with asyncio.timeout(seconds):
                answer = await self.client.get(path, query, url, begin)
        except TimeoutError:
            raise unreachable(url, TimeoutError(f"no answer within {seconds:g} s")) from None
        try:
            self.admit(answer.headers, answer.status)
        except ForeignAnswerError as error:
            raise unreachable(url, error) from None
        return answer

    async def _usable(self) -> None:
        if not self._reachable.is_set():
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await self._reachable.wait()
            except TimeoutError:
                raise self._condition.error() from None

    # --- reporting ----------------------------------------------------------------------------------------------------

    def _say_ready(self, state: str) -> None:
        """Record that the upstream is in reach. *state*: its etcd's. The upstream serves what it has without etcd."""
        self._reachable.set()
        reason = "" if state == "ready" else "etcd is out of the upstream's reach"
        before = self._condition
        if (before.state, before.endpoint, before.reason) != ("ready", self.client.url, reason):
            logger.info("upstream is ready", extra={"upstream": self.client.url, "tier": self.tier, "reason": reason})
            self._condition = Condition(self.client.url, "", "ready", time.time(), reason)

    def _say_down(self, reason: str) -> None:
        if self._reachable.is_set():
            self._reconnects += 1
        self._reachable.clear()
        before, state = self._condition, self.down
        if (before.state, before.reason) != (state, reason):
            logger.warning("the upstream cannot be used", extra={"upstream": self.client.url, "reason": reason})
        since = before.since if before.state == state else time.time()
        self._condition = Condition(self.client.url, "", state, since, reason)


def _problem(answer: Answer) -> Mapping[str, Any]:
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        found = {}
    return found if isinstance(found, dict) else {}
