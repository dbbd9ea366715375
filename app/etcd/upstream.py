"""etcd as the feeds see it: one link at a time, over several endpoints, made again whenever it fails.

Every response of both channels passes ``_note``: another cluster id, or a linearizable revision or raft term below the
highest that was known when it was asked for, mean that the history is another one, and every feed is told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from app.core.backoff import Backoff
from app.core.errors import UnavailableError
from app.core.events import Snapshot
from app.core.keys import KeyRange
from app.core.multiplex import Sink, WatchInput
from app.core.versions import known_to_lose_events
from app.etcd.link import Link
from app.etcd.reads import Reads
from app.etcd.stream import WatchStream
from app.ports import Clock, Condition, Draw

log = logging.getLogger("gateway.etcd")

# A read waits this long (seconds) for a connection that is just being made, before it says that etcd is away.
CONNECT_PATIENCE = 2.0


class UpstreamWatch:
    """A watch that is open on a stream, or waits for a link."""

    def __init__(self, upstream: Upstream, watched: KeyRange, start: int, sink: Sink, *, catch_up: bool) -> None:
        self._upstream = upstream
        self.range = watched
        self.start = start
        self.sink: Sink | None = sink
        self.catch_up = catch_up
        self.stream: WatchStream | None = None
        self.watch_id = 0
        self._heard = False
        self._wants_proof = False

    def receive(self, given: WatchInput) -> None:
        """From the stream."""
        self._heard = True
        if self.sink is not None:
            self.sink(given)

    def cancel(self) -> None:
        """See ``app.ports.Watch``."""
        self.sink = None
        self._upstream.forget(self)
        if self.stream is not None:
            self.stream.cancel(self.watch_id)

    def await_proof(self, wanted: bool) -> None:
        """See ``app.ports.Watch``."""
        if wanted != self._wants_proof:
            self._wants_proof = wanted
            if self.stream is not None:
                self.stream.await_proof(self.watch_id, wanted=wanted)

    def open(self, stream: WatchStream, watch_id: int) -> None:
        """It is on a stream now."""
        self.stream, self.watch_id = stream, watch_id
        if self._wants_proof:
            stream.await_proof(watch_id, wanted=True)

    @property
    def proof_at(self) -> float | None:
        """See ``app.ports.Watch``."""
        if self.stream is None or self.stream.closed or not self._heard:
            return None
        return self.stream.last_response


class Upstream:
    """See the module; implements ``app.ports.Etcd``. ``run`` must be a task for as long as it is used.

    Args:
        endpoints: like ``http://127.0.0.1:2379``, tried in turn.
        stale_after: seconds; a quarter of it paces health checks and progress requests.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        stale_after: float,
        max_ranges: int,
        clock: Clock,
        draw: Draw,
        backoff: Backoff | None = None,
    ) -> None:
        self._endpoints = list(endpoints)
        self._stale_after = stale_after
        self._proof_interval = min(2.5, stale_after / 4)
        self._clock = clock
        self._draw = draw
        self._backoff = backoff or Backoff()
        self._link: Link | None = None
        self._ready = asyncio.Event()
        self._pending: dict[UpstreamWatch, None] = {}
        self._condition = Condition(self._endpoints[0], "", "connecting", time.time(), "not connected yet")
        self._restored: list[Callable[[], None]] = []
        self._highest = 0
        self._term = 0
        self.cluster_id = 0
        self.reconnects = 0
        self.reads = Reads(
            self._usable_link,
            lambda: (self._highest, self._term),
            self._note_linearizable,
            max_ranges=max_ranges,
            clock=clock,
        )

    # --- what feeds use ----------------------------------------------------------------------------------------------

    @property
    def condition(self) -> Condition:
        """See ``app.ports.Etcd``."""
        return self._condition

    @property
    def progress_trusted(self) -> bool:
        """See ``app.ports.Etcd``."""
        return self._link is not None and self._link.progress_trusted

    @property
    def highest_revision(self) -> int:
        """The highest revision that this process has heard of, in this history."""
        return self._highest

    @property
    def streams(self) -> list[WatchStream]:
        """The watch streams open at etcd."""
        return self._link.lanes.streams if self._link is not None else []

    @property
    def watchers(self) -> int:
        """The watches that we hold at etcd."""
        return sum(len(stream) for stream in self.streams)

    def on_restored(self, callback: Callable[[], None]) -> None:
        """Have *callback* called whenever the history turns out to be another one."""
        self._restored.append(callback)

    def watch(self, watched: KeyRange, start: int, sink: Sink, *, catch_up: bool) -> UpstreamWatch:
        """See ``app.ports.Etcd``."""
        watch = UpstreamWatch(self, watched, start, sink, catch_up=catch_up)
        if self._ready.is_set():
            self._open(watch)
        else:
            self._pending[watch] = None
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

    def forget(self, watch: UpstreamWatch) -> None:
        """A watch that waits for a link is not wanted any more."""
        self._pending.pop(watch, None)

    # --- the life of links -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a link: make it, watch its health, make the next one, to the next endpoint."""
        index, failures = 0, 0
        while True:
            endpoint = self._endpoints[index % len(self._endpoints)]
            link = Link(endpoint, proof_interval=self._proof_interval, on_header=self._note, clock=self._clock)
            try:
                reason = await link.check(self._patience())
                if reason is None:
                    await self._serve(link)
                    reason, failures = link.failed.result(), 0
                self._say_down(endpoint, reason)
            finally:
                self._ready.clear()
                self._link = None
                await link.aclose("gateway is stopping")
            index += 1
            failures += 1
            # Every endpoint is tried before the waits grow.
            await asyncio.sleep(self._backoff.delay(failures // len(self._endpoints), self._draw()))

    async def aclose(self) -> None:
        """End the reads under way."""
        await self.reads.aclose()

    async def _serve(self, link: Link) -> None:
        """Use a good link until it fails."""
        self._link = link
        self._ready.set()
        self._say_ready(link)
        pending, self._pending = self._pending, {}
        for watch in pending:
            self._open(watch)
        while not link.failed.done():
            await asyncio.wait([link.failed], timeout=self._proof_interval)
            if link.failed.done():
                break
            reason = await link.check(self._patience())
            if reason is not None:
                link.fail(reason)
            elif link.silent_streams(3 * self._stale_after):
                link.fail("a watch stream is silent")
        self.reconnects += 1

    def _patience(self) -> float:
        return max(0.5, min(2.0, self._stale_after / 4))

    def _open(self, watch: UpstreamWatch) -> None:
        assert self._link is not None, "watches open on a ready link"
        watch.open(*self._link.lanes.create(watch.range, watch.start, watch.receive, catch_up=watch.catch_up))

    async def _usable_link(self) -> Link:
        if self._link is None or self._link.failed.done():
            try:
                async with asyncio.timeout(CONNECT_PATIENCE if self._condition.state != "down" else 0.2):
                    await self._ready.wait()
            except TimeoutError:
                pass
        if self._link is None:
            raise UnavailableError(f"{self._condition.endpoint}: {self._condition.reason}")
        return self._link

    # --- what responses tell -----------------------------------------------------------------------------------------

    def _note(self, header: Any) -> None:
        """The header of any response."""
        self._highest = max(self._highest, header.revision)
        cluster = header.cluster_id
        if cluster == self.cluster_id or not cluster:
            return
        known, self.cluster_id = self.cluster_id, cluster
        if known:
            log.warning("another cluster answers", extra={"was": f"{known:x}", "is": f"{cluster:x}"})
            self._highest = header.revision
            self._another_history()

    def _note_linearizable(self, before: tuple[int, int], header: Any) -> None:
        """A linearizable answer, and the highest (revision, term) that was known when it was asked for.

        Neither can have fallen since, unless etcd was restored.
        """
        self._note(header)
        if header.revision < before[0] or header.raft_term < before[1]:
            log.warning("etcd went back: it was restored", extra={"revision": header.revision, "was": before[0]})
            self._highest, self._term = header.revision, header.raft_term
            self._another_history()
        self._term = max(self._term, header.raft_term)

    def _another_history(self) -> None:
        for callback in self._restored:
            callback()

    def _say_ready(self, link: Link) -> None:
        self._condition = Condition(link.endpoint, link.version_text, "ready", time.time(), "")
        log.info("etcd is ready", extra={"endpoint": link.endpoint, "version": link.version_text})
        if known_to_lose_events(link.version):
            log.warning(
                "this etcd version can lose a delete at a compaction; the gateway guards its own watches against it, "
                "but upgrade to 3.5.18 or later (3.4.36 on the 3.4 line)",
                extra={"endpoint": link.endpoint, "version": link.version_text},
            )

    def _say_down(self, endpoint: str, reason: str) -> None:
        since = self._condition.since if self._condition.state == "down" else time.time()
        if self._condition.state != "down" or self._condition.reason != reason:
            log.warning("etcd is out of reach", extra={"endpoint": endpoint, "reason": reason})
        self._condition = Condition(endpoint, self._condition.version, "down", since, reason)
