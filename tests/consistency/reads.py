"""A random reader of ``/v1/kv``: every consistency, ``min_revision``, preconditions, and reads that wait for a change.

A judge sees all its answers. A 304 makes a statement, too: at its revision, the state is the one that the client has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.consistency.follower import STAY, Follower
from tests.consistency.history import Chronicle, History, Selected, Watched
from tests.consistency.judge import RECENT, ViolationError, bound_of
from tests.support.streams import request

# Seconds that a read may wait for a change.
WAIT = 2


class ReadingFollower(Follower):
    """Follows its ranges by reads alone."""

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
        super().__init__(
            number, seed, bases, chronicle, bound,
            trusted=trusted, stay=stay, process_of=process_of, watched=watched,
        )  # fmt: skip
        self.name = f"follower {number} (reads)"
        self.answers: list[int] = []  # their statuses
        self._bound = bound
        self._trusted = trusted
        self._history: History | None = None  # that of the state below
        self._tag, self._items, self._cursor = "", list[dict[str, Any]](), ""

    def may_be_of_keys(self, watched: Selected) -> bool:
        """See ``Follower``. A list has ``keys_only``, and the read of one key has not."""
        return not (isinstance(watched, Watched) and watched.kind == "key")

    async def _stay(self, seconds: float, enough: Callable[[], bool] = lambda: False) -> bool:
        leave = time.monotonic() + min(seconds, STAY)
        ends = seconds >= 60
        while time.monotonic() < leave and (self._back_at < time.monotonic() or ends):
            await self._ask(self._rng.choice(self._bases), linearizable=ends)
            self.judge.live_since = time.monotonic() if ends else None
            if enough():
                return True
            await asyncio.sleep(self._rng.random() * 0.2)
        return False

    async def _ask(self, base: str, *, linearizable: bool) -> None:
        """Send one read, and judge its answer."""
        rng, judge = self._rng, self.judge
        history, began = judge.chronicle.now, time.monotonic()
        known = history.tip
        # Around a restore, replicas are in different histories, in which one tag may name two states.
        settled = began - judge.chronicle.restored_at > RECENT
        if self._history is not history or not settled:
            self._tag, self._items, self._history = "", [], history
        url, headers = f"{base}/v1/kv?{self.request}", {"Connection": "close"}
        from_feed = not linearizable and rng.random() < 0.6
        # Without trusted progress, a quiet range reaches a revision of others only after minutes.
        least = known if settled and rng.random() < 0.3 and (self._trusted or not from_feed) else 0
        if from_feed:
            url += "&consistency=feed"
        if least:
            url += f"&min_revision={least}"
        if self._tag and rng.random() < 0.8:
            headers["If-None-Match"] = self._tag
            if not linearizable and rng.random() < 0.4:
                headers["Prefer"] = f"wait={WAIT}"
        answer = await request(url, headers)
        with contextlib.suppress(OSError):
            await answer.close()
        self._require(answer.status != 400, f"{url} is refused: {answer.body!r}")
        if history is not judge.chronicle.now or answer.status not in (200, 304):
            return  # etcd was restored meanwhile, or the gateway refuses
        self.answers.append(answer.status)
        sent = headers.get("If-None-Match")
        found = int(answer.headers["x-etcd-revision"])
        what = f"{answer.status} at {found} for {url} {headers}"
        if not history.ended and settled:
            self._require(found >= least, f"{what}: below min_revision")
            self._require(from_feed or found >= known, f"{what}: not linearizable, etcd was at {known}")
            if answer.headers.get("x-gateway-state") == "live":
                lacks = history.first_after(judge.watched, found)
                bound = bound_of(self._bound, int(answer.headers.get("x-gateway-tier", "0")))
                late = lacks is not None and began - lacks[0] > bound
                self._require(not late, f"{what}: live, and lacks {lacks}")
        if answer.status == 304:
            self._require(sent is not None, f"{what}: nothing was asked")
            judge.adopt(f"{self._cursor}-{found}", found, self._items, time.monotonic())
        else:
            self._take(json.loads(answer.body), answer.headers.get("etag", ""), sent, what, settled=settled)

    def _take(self, body: dict[str, Any], tag: str, sent: str | None, what: str, *, settled: bool) -> None:
        items = body["kvs"] if "kvs" in body else [body["kv"]]
        self.judge.adopt(body["cursor"], body["revision"], items, time.monotonic())
        if not tag or not settled:
            return
        self._require(tag != sent, f"{what}: the client has this state")
        if self._tag:
            same = items == self._items
            self._require(same == (tag == self._tag), f"{what}: {tag} after {self._tag}, and equal is {same}")
        self._tag, self._items, self._cursor = tag, items, body["cursor"].rpartition("-")[0]

    def _require(self, holds: bool, text: str) -> None:
        if not holds:
            raise ViolationError(f"{self.name}: {text}")
