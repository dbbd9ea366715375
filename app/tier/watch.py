"""One watch at the upstream gateway: a stream of ``/v1/watch``, from the request to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Protocol

import httpx

from ..core.feed_messages import Lost, Refused, Reset, WatchCallback, WatchInput
from ..core.gateway_watch import GatewayWatch, StreamError
from ..core.keys import KeyRange
from ..ports import Clock, spawn
from .client import Client, ForeignAnswerError

NDJSON = "application/x-ndjson"
# Seconds that the head of a stream may take. A gateway sends it at once; one that is stopped accepts connections and
# says nothing.
HEAD_TIMEOUT = 10.0
# Seconds that a silent stream stays open after its time, so that the feed, which looks once a second, becomes stale
# before the stream is lost.
GRACE = 2.0
# Seconds, at least, that an upstream has been stale when it says so: a feed looks once a second.
STALE_FOR = 1.0
# Seconds between two requests for the upstream's proof, while a reader or a cursor waits for it, and at least.
ASK_EVERY, SHORTEST = 0.25, 0.05


class WatchUpstream(Protocol):
    """What a watch needs of its upstream: ``app.tier.upstream``."""

    client: Client
    clock: Clock
    stale_after: float
    highest_revision: int

    async def reachable(self) -> None:
        """Wait until an upstream is in reach."""

    def epoch_of(self, watched: KeyRange) -> str:
        """Return the epoch of the cursors of a watched range."""

    def admit(self, headers: Mapping[str, str], status: int) -> int:
        """Return this gateway's tier. Raise ForeignAnswerError if the gateway that answers may not be followed."""

    def compare_history(self, headers: Mapping[str, str], asked_at: float) -> None:
        """Compare what an upstream reports of etcd's history with what is known. *asked_at*: before the request.

        Raise ForeignAnswerError if the upstream follows another cluster, or may have seen another history.
        """

    def alive_at(self, heard_at: float, silence: float) -> float:
        """Return until when a stream that says "live" is believed, if its last byte came at *heard_at*."""

    def note_reached(self, watched: KeyRange, revision: int) -> None:
        """Take the revision up to which a stream is complete."""

    def note_ended(self, revision: int) -> None:
        """Take the highest revision that an ended history may have reached, as the upstream says."""

    def forget_revisions(self) -> None:
        """The cluster has another history: its revisions may be lower."""

    def forget_told(self, watched: KeyRange) -> None:
        """A stream has opened: its upstream does not know yet which merges the range is in."""

    async def ask_progress(self, watched: KeyRange, url: str, revision: int) -> None:
        """Ask the upstream of a stream to prove that a range is complete up to *revision*, and to say so there."""


class UpstreamWatch:
    """See the module; implements ``app.ports.Watch``. The task begins with the constructor's caller: ``begin``.

    Args:
        start: the first revision wanted; 0: from now.
    """

    def __init__(
        self,
        upstream: WatchUpstream,
        watched: KeyRange,
        start: int,
        callback: WatchCallback,
        *,
        ended: Callable[[UpstreamWatch], None],
    ) -> None:
        self._upstream = upstream
        self.range = watched
        # No event has revision 1, with which etcd begins; and a cursor of revision 0 would mean "I hold nothing".
        self._start = 2 if start == 1 else start
        self._callback: WatchCallback | None = callback
        self._ended = ended
        self._core: GatewayWatch | None = None  # while a stream is open
        # Of the stream, once it is asked for: the upstream's present one may be another.
        self._url = ""
        self._token = ""  # of the stream: the file may have another one by now
        self._heard_at = 0.0  # monotonic seconds
        self._stale_at: float | None = None  # since when the upstream says that the range is stale
        self._wanted = self._hastened = False
        self._newly_wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None

    # --- app.ports.Watch ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Open the stream as soon as an upstream is in reach."""
        self._task = spawn(self._run(), name=f"upstream {self.range}", died=self._failed)
        self._task.add_done_callback(self._forget)

    def cancel(self) -> None:
        """See ``app.ports.Watch``."""
        if self._callback is None:
            return
        self._callback = None
        self._ended(self)
        for task in (self._task, self._asking):
            if task is not None:
                task.cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        """Drop a task that has ended, even if it was cancelled before it began.

        A cancelled task keeps its error, whose traceback refers to this watch and to the response with up to 1 MB of
        unread bytes. As a cycle, all that would wait for a full collection, of which there are few.
        """
        if task is self._task:
            self._task = None
        if task is self._asking:
            self._asking = None

    @property
    def revision(self) -> int:
        """The revision up to which the stream is complete; 0 while there is none."""
        return self._core.revision if self._core is not None else 0

    @property
    def url(self) -> str:
        """The upstream of the stream; empty while there is no stream."""
        return self._url if self._core is not None else ""

    def leave(self, url: str) -> None:
        """Lose the stream, so that the next one is at *url*. Without effect on a stream that is there.

        Also before the head of the stream has come: nobody looks at it again.
        """
        if self._url not in ("", url) and self._task is not None:
            self._task.cancel()
            self._give(Lost(f"{self._url} cannot reach etcd, and {url} can"))

    def await_proof(self, wanted: bool) -> None:
        """See ``app.ports.Watch``."""
        if wanted and not self._wanted:
            self._newly_wanted.set()
        self._wanted = wanted
        self._ask()

    def hasten(self, wanted: bool) -> None:
        """See ``app.ports.Watch``."""
        self._hastened = wanted
        self._ask()

    def proven_at(self, reached: int) -> float | None:
        """See ``app.ports.Watch``. The upstream is believed while it says "live", and is not silent too long."""
        core = self._core
        if core is None or not core.synced:
            return None
        if self._stale_at is not None:
            # This gateway is never more confident than its upstream: older than this gateway's own GATEWAY_STALE_AFTER.
            return self._stale_at - self._upstream.stale_after - STALE_FOR
        del reached  # whatever has come is what the upstream calls live
        return self._upstream.alive_at(self._heard_at, core.silence)

    # --- the stream ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        upstream = self._upstream
        await upstream.reachable()
        epoch = upstream.epoch_of(self.range)
        query = f"{self.range}&snapshot=0&format=ndjson"
        if self._start:
            query += f"&last_event_id={epoch}-{self._start - 1}"
        url, self._token, asked_at = upstream.client.url, upstream.client.token(), upstream.clock()
        self._url = url
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(HEAD_TIMEOUT):
                    response = await stack.enter_async_context(upstream.client.stream("/v1/watch", query, NDJSON))
                    # Before a refusal is believed: a proxy between the two refuses for reasons of its own.
                    upstream.admit(response.headers, response.status_code)
                    # Before an event is believed. If etcd was restored, the feed cancels this watch.
                    upstream.compare_history(response.headers, asked_at)
                    if response.status_code != HTTPStatus.OK:
                        self._refused(response.status_code, await response.aread())
                        return
                await self._follow(response, GatewayWatch(self._start, epoch))
            reason = "the upstream gateway has ended the stream"
        except (httpx.HTTPError, StreamError, ForeignAnswerError) as error:
            reason = f"{url}: {str(error) or type(error).__name__}"
        except TimeoutError:
            reason = f"{url}: no answer within {HEAD_TIMEOUT:g} s, or silent for three heartbeats"
        self._give(Lost(reason))

    async def _follow(self, response: httpx.Response, core: GatewayWatch) -> None:
        upstream = self._upstream
        if not response.headers.get("Content-Type", "").startswith(NDJSON):
            raise ForeignAnswerError(f"the answer is {response.headers.get('Content-Type')!r} and not a stream")
        self._core, self._heard_at = core, upstream.clock()
        upstream.forget_told(self.range)
        chunks = response.aiter_raw()
        try:
            for given in core.accepted(int(response.headers.get("X-Etcd-Revision", "0"))):
                self._give(given)
            while self._callback is not None:
                async with asyncio.timeout(core.silence + GRACE):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                self._heard_at = upstream.clock()
                for given in core.receive(chunk):
                    if core.ended_revision:
                        upstream.note_ended(core.ended_revision)  # before a client can resume in what follows
                    upstream.note_reached(self.range, core.revision)
                    self._note_state(core)
                    self._give(self._unless_replaced(given))
                self._note_state(core)
        finally:
            self._core = None

    def _refused(self, status: int, body: bytes) -> None:
        try:
            problem = json.loads(body)
            text = f"{status} {problem['code']}: {problem['detail']}"
        except (ValueError, KeyError, TypeError):
            text = f"{status}"
        reason = f"the upstream gateway {self._url} refuses: {text}"
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            self._give(Refused(reason, denied=status == HTTPStatus.FORBIDDEN))
        else:
            self._give(Lost(reason))

    def _unless_replaced(self, given: WatchInput) -> WatchInput:
        """A token that was replaced, and then withdrawn, says nothing about what this gateway may read.

        Without this, each rotation of an edge's token told all clients of the edge `revoked`: do not come back.
        """
        if isinstance(given, Refused) and self._upstream.client.token() != self._token:
            return Lost(f"{given.reason}, but the token has been replaced since the stream began")
        return given

    def _note_state(self, core: GatewayWatch) -> None:
        stale = core.state == "stale"
        if stale != (self._stale_at is not None):
            self._stale_at = self._upstream.clock() if stale else None

    def _give(self, given: WatchInput) -> None:
        if isinstance(given, Reset) and given.reason == "restored":
            self._upstream.forget_revisions()
        if self._callback is not None:
            self._callback(given)

    def _failed(self, error: Exception) -> None:
        self._give(Lost(f"a defect: {error!r}"))

    # --- asking -------------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        if (self._wanted or self._hastened) and self._asking is None and self._callback is not None:
            self._asking = spawn(self._ask_often(), name=f"upstream progress {self.range}", died=lambda _error: None)
            self._asking.add_done_callback(self._forget)

    async def _ask_often(self) -> None:
        """Let the upstream prove its tip, and say so on the stream, for as long as somebody waits for it.

        A reader waits for something above the tip, whatever it is: that is found out without a linearizable read, of
        which a gateway makes one a second. A reader that begins to wait while this task rests is not kept waiting.

        A merge needs all that has come in other ranges, and the upstream says that by itself: it was told of the merge.
        It is asked only if nothing came: it may have lost what it was told, or be of an older version.
        """
        try:
            while self._wanted or self._hastened:
                self._newly_wanted.clear()
                before = self.revision
                if self._wanted:
                    await self._ask_for(before + 1)
                await asyncio.sleep(SHORTEST)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ASK_EVERY - SHORTEST):
                        await self._newly_wanted.wait()
                if self._hastened and self.revision == before:
                    await self._ask_for(self._upstream.highest_revision)
        finally:
            self._asking = None  # at once: whoever wants it next must find no task that is about to end

    async def _ask_for(self, revision: int) -> None:
        if self._core is not None:
            await self._upstream.ask_progress(self.range, self._url, revision)
