"""A random subscriber: connects, stalls, leaves, returns to another gateway with its last id.

A judge sees all its events.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Sequence

from tests.consistency.history import Chronicle, History, Selected, Several, Watched
from tests.consistency.judge import Judge, ViolationError
from tests.consistency.writer import PREFIXES
from tests.support.streams import Stream, request
from tests.support.waiting import eventually

STAY = 6.0  # seconds of a stream, on average
# Seconds, at most, until it tries again after it was not served: 85 attempts a second took an eighth of all CPU.
REFUSED = 2.0
PASSES = 10.0  # seconds in which a new history may pass a cursor of the old one
SILENT = 4.0  # longer than three heartbeats of the torture's gateways


# A gateway of the torture has this pin, and another has none.
PIN = PREFIXES[0]
# Nobody writes this key before the end: its mirror moves only by what else happens in its feed.
QUIET = PIN + b"quiet"


def watched_of(rng: random.Random, *, merges: bool) -> Selected:
    """The ranges to follow: mostly a prefix that other followers follow too.

    Without *merges*, several ranges lie in the pin.
    """
    draw = rng.random()
    if draw < 0.1:
        return Watched("prefix", b"")
    if draw < 0.18:
        return Watched("key", rng.choice(PREFIXES) + b"k1")
    if draw < 0.25:
        return Watched("key", QUIET)
    if draw < 0.35:
        return Watched("prefix", rng.choice(PREFIXES) + rng.choice((b"k", b"L3")))
    if draw < 0.5 or (draw < 0.7 and not merges):
        return Several((Watched("prefix", PIN + b"k"), Watched("key", QUIET), Watched("prefix", PIN + b"b/")))
    if draw < 0.6:
        return Several((Watched("prefix", b"/z"), Watched("key", b"/nl/\n\x00/k1"), Watched("prefix", PIN)))
    if draw < 0.7:
        chosen = rng.sample([prefix for prefix in PREFIXES if prefix != PIN], rng.randint(2, 4))
        return Several(tuple(Watched(rng.choice(("key", "prefix")), prefix + b"k1") for prefix in chosen))
    return Watched("prefix", rng.choice(PREFIXES))


class Follower:
    """A follower that never stops; ``violation`` is what its judge found.

    *trusted*: etcd's progress can be trusted, so that every gateway serves several ranges, and quiet mirrors move on.
    *stay*: seconds that a stream lasts on average, if no fault ends it.
    *process_of*: returns which process of several serves a URL now.
    *watched*: what it follows; None: at random.
    """

    def __init__(
        self,
        number: int,
        seed: str,
        bases: Sequence[str],
        chronicle: Chronicle,
        bound: float,
        *,
        trusted: bool,
        stay: float = STAY,
        process_of: Callable[[str], int] = lambda _base: 0,
        watched: Selected | None = None,
    ) -> None:
        self._rng = random.Random(seed)
        self._process_of = process_of
        self._given_by: tuple[str, int] | None = None  # the URL and the process of the root that gave the cursor
        self._bases = bases
        self._leave_after = stay
        self.name = f"follower {number}"
        watched = watched or watched_of(self._rng, merges=trusted)
        keys_only = self._rng.random() < 0.2 and self.may_be_of_keys(watched)
        latest = self._rng.random() < 0.15
        self.judge = Judge(watched, chronicle, bound, keys_only=keys_only, latest=latest, moves=trusted)
        self._query = watched.query
        if keys_only:
            self._query += "&keys_only=1"
        if self._rng.random() < 0.2:
            self._query += "&encoding=base64"
        # Some have small socket buffers: when they stall, they fall behind at the gateway itself.
        self._narrow = self._rng.random() < 0.3
        self.request = self._query  # the part of a request that decides its cursors' epoch
        if latest:
            self._query += "&mode=latest&interval=200ms"
        self.others: Sequence[Follower] = ()
        self.reading = False
        self.streams = self.gzip_streams = 0
        self.returns = 0  # to the gateway that gave the cursor, whose history a restore has ended meanwhile
        self.moves = 0  # resumed streams at a gateway of another tier than the stream before
        self._back_at = 0.0  # it stays away until then
        self.violation: AssertionError | None = None

    def may_be_of_keys(self, watched: Selected) -> bool:
        """Whether the contract has requests for these ranges without values. Every stream may be one."""
        del watched
        return True

    async def run(self) -> None:
        """Run until cancelled, or until the judge finds a violation."""
        try:
            while True:
                before = self.streams
                with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                    await self._stay(self._rng.expovariate(1 / self._leave_after))
                self.reading = False
                self.judge.end()
                pause = self._rng.random() * (0.3 if self.streams > before else REFUSED)
                await asyncio.sleep(pause + max(0.0, self._back_at - time.monotonic()))
        except AssertionError as violation:  # from the judge, or from the strict client itself
            self.violation = violation

    def go_away(self, seconds: float) -> None:
        """Leave, and return after *seconds* with the same cursor."""
        self._back_at = time.monotonic() + seconds

    async def finish(self, revision: int) -> None:
        """Follow until the mirror is exact at *revision* or later."""
        done = False
        while not done and self.violation is None:
            try:
                with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                    done = await self._stay(60, lambda: self.judge.live_since is not None and self._stands(revision))
                self.judge.end()
                await asyncio.sleep(0.1)
            except AssertionError as violation:
                self.violation = violation

    def _stands(self, revision: int) -> bool:
        return self.judge.stand is not None and self.judge.stand >= revision

    async def _stay(self, seconds: float, enough: Callable[[], bool] = lambda: False) -> bool:
        rng = self._rng
        base = rng.choice(self._bases)
        if self.judge.beyond_promises() and rng.random() < 0.5 and (giver := await self._gateway_to_return_to()):
            base = giver
            self.returns += 1
        elif rng.random() < 0.05 or self.judge.beyond_promises():
            self.judge.forget()
            self._given_by = None
            if rng.random() < 0.5:
                await self._read_state(base)
        if rng.random() < 0.03:
            self._bring_another()
            self._given_by = None
        history = self.judge.chronicle.now
        url, headers = f"{base}/v1/watch?{self._query}", {}
        if rng.random() < 0.5:
            headers["Accept"] = "application/x-ndjson"
        if rng.random() < 0.4:  # cursors go from one coding to the other
            headers["Accept-Encoding"] = "gzip"
        if self.judge.cursor is not None:
            if rng.random() < 0.5:
                headers["Last-Event-ID"] = self.judge.cursor
            else:
                url += f"&last_event_id={self.judge.cursor}"
        stream = await request(url, headers, receive_buffer=4096 if self._narrow else None)
        if stream.status != 200 or history is not self.judge.chronicle.now:
            # etcd was restored between the request and its answer: the cursor is like that of a client that was away.
            await stream.close()
            return False
        try:
            return await self._read(stream, base, history, seconds, enough)
        finally:
            if rng.random() < 0.5:
                stream.reset()
            await stream.close()

    async def _read(
        self, stream: Stream, base: str, history: History, seconds: float, enough: Callable[[], bool]
    ) -> bool:
        rng, judge = self._rng, self.judge
        leave = time.monotonic() + seconds
        # Cut after a few events: inside a snapshot, or inside a transaction.
        events = rng.randrange(1, 60) if rng.random() < 0.3 and seconds < 60 else None
        tier = int(stream.headers.get("x-gateway-tier", "0"))
        self.moves += judge.stand is not None and tier != judge.tier
        judge.connect(f"{self.name} at {base}", time.monotonic(), tier=tier)
        self.streams += 1
        self.gzip_streams += "content-encoding" in stream.headers
        self.reading = True
        given_by = (base, self._process_of(base))
        while time.monotonic() < leave and events != 0 and (self._back_at < time.monotonic() or seconds >= 60):
            event = await stream.next_event(SILENT)
            if event is None:
                return enough()
            if not judge.told and history is not judge.chronicle.now:
                # etcd was restored while the follower waited for the first event. A gateway that started after the old
                # history's last sign of life knows nothing of that history, and takes the cursor for one of the new
                # history.
                return False
            judge.receive(event, time.monotonic())
            if event.id is not None:
                self._given_by = given_by
            if enough():
                return True
            events = events - 1 if events is not None else None
            if seconds < 60 and rng.random() < 0.002:
                self.reading = False
                await asyncio.sleep(rng.expovariate(0.5))
                self.reading = True
                judge.heard(time.monotonic())
        return enough()

    async def _gateway_to_return_to(self) -> str | None:
        """The gateway that gave the cursor, if it has run since then. It notices the restore, and must not resume it.

        Wait until the new history has passed the cursor: until then, every gateway sees that the cursor is of another
        history.
        """
        if self._given_by is None or self.judge.stand is None:
            return None
        base, process = self._given_by
        history, stand = self.judge.chronicle.now, self.judge.stand

        async def over() -> bool:
            return history.ended or history.tip > stand

        with contextlib.suppress(TimeoutError):
            await eventually(over, PASSES)
        runs = self._process_of(base) == process
        return base if runs and not history.ended and history.tip > stand else None

    def _bring_another(self) -> None:
        # Only of followers with a mirror: a follower that has just brought another's cursor may hold our own.
        standing = [follower for follower in self.others if follower.judge.stand is not None]
        others = [follower for follower in standing if follower.request != self.request]
        if others:
            self.judge.bring(str(self._rng.choice(others).judge.cursor))

    async def _read_state(self, base: str) -> None:
        history = self.judge.chronicle.now
        known = history.tip
        answer = await request(f"{base}/v1/kv?{self.request}", {"Connection": "close"})
        await answer.close()
        if answer.status != 200:
            return
        body = json.loads(answer.body)
        if body["revision"] < known and not history.ended and history is self.judge.chronicle.now:
            raise ViolationError(f"a read at {body['revision']} began when etcd was at {known}: not linearizable")
        items = body["kvs"] if "kvs" in body else [body["kv"]]
        self.judge.adopt(body["cursor"], body["revision"], items, time.monotonic())
