"""Judges what one subscriber saw, over all its streams, against etcd's history. Pure: events in, a verdict out.

The checks on every stream:
- events are in order;
- nothing is missing between ``synced`` and ``reset``, and nothing comes twice;
- no revision is divided, not even by a resume;
- snapshots, and the state at ``synced``, equal etcd's at that very revision;
- ids are only where the contract has them, and never ahead;
- a ``reset`` is not older than what it replaces;
- ``live`` is sent only while it is true;
- of several ranges, all that is said is true of their union, and one revision is not divided between them.

Of several ranges, the order of one revision's events may differ from etcd's, but not the order of one key's. A stream
of keys has every put, without its value.

Every event either moves the *stand* (the revision at which the mirror is exact) or does not. A move makes a statement
that history can confirm: "from 7 to 12 these three changes happened in my range", or "at 12 this is the state". Such
*claims* are settled once the oracle has reached their revision. After a restore, a claim may be true in several
histories; all claims up to the next ``reset`` must be true in one of them.
"""

from __future__ import annotations

import base64
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote_to_bytes

from tests.consistency.history import Change, Chronicle, History, Selected, Several, kept
from tests.support.streams import Event

RESET_REASONS = {"initial", "lagged", "compacted", "cursor-lost", "restored", "unproven"}
CLOSE_REASONS = {"drain", "max-age", "unavailable", "overloaded", "too-slow", "too-large", "revoked"}
# A reset for one of these reasons stays in the same history, and so must not take a mirror back.
FORWARD = {"lagged", "compacted", "unproven"}
# Heartbeats without a sign of life after which a client considers its stream silent.
SILENT = 3
REMEMBERED = 40
# Writers make fewer revisions than this while a gateway judges a cursor.
FAR_AHEAD = 1000
# Seconds that a mirror may report `live` while it lacks something: GATEWAY_STALE_AFTER (2 s in the torture), plus the
# time that a machine with two cores needs to run three members, two gateways and everything else.
BOUND = 8.0
# The same for each tier of edges, because staleness adds up: a tier notices that the tier above is stale when it says
# so, and that it is silent after three heartbeats (3 s in the torture).
TIER_BOUND = 4.0
# Seconds after a restore in which a reset may go back, whatever reason the gateway noticed first.
RECENT = 30.0


class ViolationError(AssertionError):
    """A subscriber saw something impossible."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement about the range between two revisions.

    The range went from ``after`` to ``revision`` by ``changes``; or, if ``after`` is None, the range held ``changes``
    at ``revision``.
    """

    after: int | None
    revision: int
    changes: list[Change]
    at: float = 0.0  # when the claim was made
    tier: int | None = None  # of the gateway whose stream has made it; None: a read has


def bound_of(bound: float, tier: int) -> float:
    """The bound of mirrors at gateways of *tier*; *bound*: that of tier 0."""
    return bound + TIER_BOUND * tier


def change_of(data: dict[str, Any], *, keys_only: bool = False) -> Change:
    """A change from its form on the wire; with *keys_only*, its value is not there, and counts as empty."""
    key = _bytes(data["key"], data.get("key_encoding"))
    if data["type"] == "delete":
        return Change(key, data["mod_revision"])
    return Change(
        key,
        data["mod_revision"],
        b"" if keys_only else kept(_bytes(data["value"], data.get("encoding"))),
        data["create_revision"],
        data["version"],
        int(data.get("lease", "0"), 16),
    )


def _bytes(text: str, encoding: str | None) -> bytes:
    return base64.b64decode(text, validate=True) if encoding == "base64" else text.encode()


@dataclass
class Judge:
    """The judge of one subscriber.

    Args:
        bound: seconds that a mirror at a gateway of tier 0 may report ``live`` while it lacks something.
        keys_only: whether the streams have no values.
        latest: whether the streams have ``mode=latest``: each flush must be the newest change of each key since the
            last id, up to its own id.
        moves: whether a quiet mirror that reports ``live`` must move on with etcd's revision, within *bound* too.
            Without trusted progress it need not.
    """

    watched: Selected
    chronicle: Chronicle
    bound: float
    keys_only: bool = False
    latest: bool = False
    moves: bool = False
    cursor: str | None = None  # the cursor with which the subscriber resumes
    stand: int | None = None  # the revision at which its mirror is exact; None: the mirror is empty
    live_since: float | None = None
    tier: int = 0  # of the gateway that serves the stream
    # The events of streams that history has confirmed, by tier. Of these, the items of states.
    delivered: Counter[int] = field(default_factory=Counter)
    items: int = 0
    resets: list[str] = field(default_factory=list)
    closes: list[str] = field(default_factory=list)
    lags: dict[int, float] = field(default_factory=dict)  # the longest time that it was wrongly live, by tier
    _candidates: set[int] = field(default_factory=set)
    _claims: deque[Claim] = field(default_factory=deque)
    _building: dict[bytes, Change] | None = None
    _pending: list[Change] = field(default_factory=list)
    told: bool = False  # whether this stream has sent something about the state
    _synced: bool = False
    _closed: bool = False
    _asked: bool = False
    _not_below: int = 0
    _epoch: str | None = None
    _heartbeat: float = 1.0
    _heard: float = 0.0
    _seen: deque[str | Event] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def connect(self, name: str, now: float, *, tier: int = 0) -> None:
        """A new stream was accepted by a gateway of *tier*, for a request with ``cursor``.

        The unfinished part of the last stream is discarded.
        """
        self._note(f"-- {name}, tier {tier}, cursor {self.cursor}, stand {self.stand}")
        self.tier = tier
        self._building, self._pending, self._synced, self._closed = None, [], False, False
        self.told = False
        self._asked = bool(self.cursor)
        if self.cursor is None or self.cursor.endswith("-0"):
            self.stand = None
        self._epoch = self.cursor.partition("-")[0] if self.cursor else None
        self.live_since = None
        self._heard = now

    def forget(self) -> None:
        """The subscriber lost its mirror and cursor."""
        self._note("-- forgets everything")
        self.cursor = self.stand = None

    def bring(self, cursor: str) -> None:
        """The subscriber brings the cursor of another request: the gateway can only answer with a reset."""
        self._note(f"-- brings {cursor}, which is not of this request")
        self.cursor, self.stand = cursor, None

    def adopt(self, cursor: str, revision: int, items: list[dict[str, Any]], now: float) -> None:
        """The subscriber starts from the content of a REST answer."""
        self._note(f"-- REST at {revision}, cursor {cursor}, {len(items)} items")
        self.cursor, self.stand = cursor, revision
        self._require(cursor.endswith(f"-{revision}"), "the cursor of a REST answer is of another revision")
        self._claims.append(Claim(None, revision, [self._change_of({"type": "put", **item}) for item in items]))
        self._heard = now

    def receive(self, event: Event, now: float) -> None:
        """Judge one event."""
        self._seen.append(event)
        self._require(not self._closed, "an event after close")
        self._heard = now
        self.told |= event.type not in ("status", "close")
        match event.type:
            case "reset":
                self._reset(event)
            case "put" | "delete" if self._building is not None:
                self._build(event, self._building)
            case "put" | "delete":
                self._change(event)
            case "synced":
                self._sync(event, now)
            case "bookmark":
                self._require(self._synced, "a bookmark before synced")
                self._move(event, event.data["revision"], [])
                self._live(event.data["state"], now)
            case "status":
                self._require(event.id is None, "status must have no id")
                self._require(set(_names(event)) <= set(self.watched.ranges), "the status of other ranges")
                self._live(event.data["state"], now)
            case "close":
                self._require(event.data["reason"] in CLOSE_REASONS, "unknown reason to close")
                self._require(event.data["retry_ms"] > 0, "close without retry_ms")
                self.closes.append(event.data["reason"])
                self._closed, self.live_since = True, None
            case _:
                self._require(False, "unknown event")
        if event.id is not None:
            self.cursor = event.id

    def end(self) -> None:
        """The stream has ended."""
        self.live_since = None

    def heard(self, now: float) -> None:
        """A sign of life that is not an event; or the subscriber itself has not read until now."""
        self._heard = now
        if self.live_since is not None:
            self.live_since = now

    def _reset(self, event: Event) -> None:
        reason = event.data["reason"]
        self._require(reason in RESET_REASONS, "unknown reason to reset")
        self._require(_names(event) == self.watched.ranges, f"a reset of {_names(event)}")
        self._require(event.id is not None and event.id.endswith("-0"), "a reset carries revision 0")
        self._require(self._pending == [], "a reset inside a revision")
        # The state that was being sent may end with its generation.
        something = self._asked or self.stand is not None or self._building is not None
        self._require(reason == "initial" or something, "a reset of nothing, not initial")
        self._require(reason != "initial" or not self.cursor or self.cursor.endswith("-0"), "a lost cursor is initial")
        forward = reason in FORWARD and self._heard - self.chronicle.restored_at > RECENT
        self._not_below = self.stand if forward and self.stand is not None else 0
        self._building, self._synced, self.stand, self.live_since = {}, False, None, None
        self._epoch = str(event.id).partition("-")[0]
        self.resets.append(reason)

    def _change_of(self, data: dict[str, Any]) -> Change:
        self._require(not (self.keys_only and "value" in data), "a value on a stream of keys")
        return change_of(data, keys_only=self.keys_only)

    def _build(self, event: Event, building: dict[bytes, Change]) -> None:
        self._require(event.type == "put", "a snapshot must have only puts")
        self._require(event.id is None, "an id inside a snapshot")
        self._require("more" not in event.data, "more inside a snapshot")
        change = self._change_of(event.data)
        self._require(change.key not in building, "a key twice in a snapshot")
        building[change.key] = change

    def _change(self, event: Event) -> None:
        change = self._change_of(event.data)
        self._require(self.watched.contains(change.key), "a key of another range")
        self._require(self.stand is not None, "a change before any state")
        if self._pending and self.latest:
            self._require(change.mod_revision >= self._pending[-1].mod_revision, "a flush that is not in order")
        elif self._pending:
            self._require(change.mod_revision == self._pending[0].mod_revision, "a revision that was not completed")
        self._pending.append(change)
        if event.data.get("more"):
            self._require(event.id is None, "an id inside a revision")
            return
        pending, self._pending = self._pending, []
        first = pending[0].mod_revision
        self._require(first > (self.stand or 0), f"came again, or out of order: stood at {self.stand}")
        revision = change.mod_revision
        if self.latest:
            revision = max(revision, int(str(event.id).rpartition("-")[2]))
        self._move(event, revision, pending)

    def _sync(self, event: Event, now: float) -> None:
        self._require(not self._synced, "synced twice")
        revision = event.data["revision"]
        self._synced, self._heartbeat = True, event.data["heartbeat"]
        if self._building is None:
            self._require(self.stand is not None, "synced without a state")
            self._move(event, revision, [])
        else:
            items, self._building = self._building, None
            self._require(revision >= self._not_below, f"a reset to before {self._not_below}")
            self._claims.append(Claim(None, revision, list(items.values()), now, self.tier))
            self.stand = revision
            self._check_id(event, revision)
        self._live(event.data.get("state", "live"), now)

    def _move(self, event: Event, revision: int, changes: list[Change]) -> None:
        self._require(self._pending == [], "an id inside a revision")
        self._check_id(event, revision)
        assert self.stand is not None
        self._require(revision >= self.stand, f"back from {self.stand}")
        self._claims.append(Claim(self.stand, revision, changes, self._heard, self.tier))
        self.stand = revision

    def _check_id(self, event: Event, revision: int) -> None:
        self._require(event.id == f"{self._epoch}-{revision}", f"the id is not that of {self._epoch}-{revision}")

    def _live(self, state: str, now: float) -> None:
        self._require(state in ("live", "stale"), "unknown state")
        if state == "stale" or not self._synced:
            self.live_since = None
        elif self.live_since is None:
            self.live_since = now

    def beyond_promises(self) -> bool:
        """Whether the cursor is of a history that a restore ended, and could be taken for one of the next history.

        A gateway that did not run at the restore cannot tell the difference (docs/guarantees.md): the operator changes
        GATEWAY_EPOCH, which has the same effect as forgetting the cursor. A gateway detects a cursor that is far ahead
        of the new history. The process that gave the cursor knows.
        """
        now = self.chronicle.now
        if self.stand is None or now.parent is None:
            return False
        self.settle()
        if self._claims:
            return now.tip + FAR_AHEAD > self.stand
        self._add_forks(self.stand)
        return now.number not in self._candidates and now.tip + FAR_AHEAD > self.stand

    # --- claims, which only history can confirm -----------------------------------------------------------------------

    def settle(self, *, final: bool = False) -> None:
        """Check the claims against history, as far as the oracle is; with *final*, check all claims."""
        while self._claims:
            claim = self._claims[0]
            if claim.after is None:
                self._candidates = {history.number for history in self.chronicle.histories}
            else:
                self._add_forks(claim.after)
            known = [self.chronicle.histories[number] for number in sorted(self._candidates)]
            true = {history.number for history in known if self._holds(claim, history)}
            open_ = {h.number for h in known if h.tip < claim.revision and not h.ended}
            if open_ and not final:
                return  # the claim may be about etcd's current history, which has not reached its revision
            if not true and claim.after is not None:
                found = [h for h in self.chronicle.histories if self._same_state(h, claim.after)]
                true = {h.number for h in found if self._holds(claim, h)}
            if not true and claim.at - self.chronicle.restored_at < RECENT:
                # A replica that has not noticed the restore serves the old history, whatever cursor it gets; it sends
                # `reset` when it notices (docs/guarantees.md, moments around a restore).
                ended = [history for history in self.chronicle.histories if history.ended]
                true = {h.number for h in ended if self._holds(claim, h)}
            if not true:
                self._fail(f"no history knows this: {claim}\n{self._explain(claim)}")
            self._candidates = true
            self._claims.popleft()
            self._count(claim)

    def _count(self, claim: Claim) -> None:
        """Count what history has confirmed. So an event does not count whose revision, or state, was not completed."""
        if claim.tier is not None:
            self.delivered[claim.tier] += len(claim.changes)
            self.items += len(claim.changes) if claim.after is None else 0

    def _holds(self, claim: Claim, history: History) -> bool:
        if history.tip < claim.revision:
            return False
        if claim.after is None:
            truth, found = history.state(self.watched, claim.revision), _in_order_of_keys(claim.changes)
        else:
            truth, found = history.changes(self.watched, claim.after, claim.revision), claim.changes
            if self.latest:
                truth = _folded(truth)
            if isinstance(self.watched, Several):
                truth, found = _in_order(truth), _in_order(found)
        if self.keys_only:
            truth = [change if change.value is None else replace(change, value=b"") for change in truth]
        return truth == found

    def _add_forks(self, stand: int) -> None:
        """A claim that is true of a history up to a fork is true of that fork."""
        for history in self.chronicle.histories:
            parent = history.parent
            if parent is not None and parent.number in self._candidates and stand <= history.forked_at:
                self._candidates.add(history.number)

    def _same_state(self, history: History, stand: int) -> bool:
        """Whether a mirror that is exact at *stand* is exact in *history* too: only the mirror's content counts."""
        if history.tip < stand:
            return False
        state = history.state(self.watched, stand)
        known = (self.chronicle.histories[number] for number in self._candidates)
        return any(other.state(self.watched, stand) == state for other in known)

    def check_live(self, now: float) -> None:
        """Whether a stream that reports live is live. Call this now and then, while the subscriber reads."""
        if self.live_since is None or self.stand is None or now - self._heard > SILENT * self._heartbeat:
            return
        history = self.chronicle.now
        missing = history.first_after(self.watched, self.stand)
        since = missing[0] if missing is not None else now
        if not self._claims:
            self._add_forks(self.stand)
            if history.number not in self._candidates and not self._same_state(history, self.stand):
                missing, since = None, self.chronicle.restored_at
        if self.moves and missing is None and since == now:
            passed = history.known_at(self.stand)
            since = passed if passed is not None else now
        lag = now - max(since, self.live_since)
        self.lags[self.tier] = max(self.lags.get(self.tier, 0.0), lag)
        if lag > bound_of(self.bound, self.tier):
            what = f"lacks {missing}" if missing is not None else "does not move on"
            self._fail(f"reports live at {self.stand} for {lag:.1f} s, and {what} of history {history.number}")

    def too_late(self, revision: int, seconds: float) -> ViolationError:
        """The verdict on a subscriber that has not reached *revision* in time, although nothing is wrong any more."""
        return self._violation(f"stands at {self.stand} after {seconds:g} s, and not live at {revision} or later")

    def _explain(self, claim: Claim) -> str:
        history = self.chronicle.now
        if claim.after is None:
            truth = history.state(self.watched, claim.revision)
        else:
            truth = history.changes(self.watched, claim.after, claim.revision)
        missing = [change for change in truth if change not in claim.changes]
        surplus = [change for change in claim.changes if change not in truth]
        return (
            f"candidates {sorted(self._candidates)} of {len(self.chronicle.histories)}, tip {history.tip}\n"
            f"missing {missing[:10]}\nnot in history {surplus[:10]}"
        )

    def _note(self, text: str) -> None:
        self._seen.append(text)

    def _require(self, holds: bool, text: str) -> None:
        if not holds:
            self._fail(text)

    def _fail(self, text: str) -> None:
        raise self._violation(text)

    def _violation(self, text: str) -> ViolationError:
        story = "\n    ".join(map(_told, self._seen))
        return ViolationError(f"{self.watched.query}: {text}\n  it saw last:\n    {story}")


def _told(seen: str | Event) -> str:
    text = seen if isinstance(seen, str) else f"{seen.type} {seen.data} id={seen.id}"
    return text if len(text) < 400 else f"{text[:400]}…"


def _names(event: Event) -> list[bytes]:
    return [unquote_to_bytes(name) for name in event.data["ranges"]]


def _in_order_of_keys(changes: list[Change]) -> list[Change]:
    return sorted(changes, key=lambda change: change.key)


def _folded(changes: list[Change]) -> list[Change]:
    """The newest change of each key, in the order of revisions."""
    newest: dict[bytes, Change] = {}
    for change in changes:
        newest.pop(change.key, None)
        newest[change.key] = change
    return list(newest.values())


def _in_order(changes: list[Change]) -> list[Change]:
    """One revision's changes by key; a key's own changes stay in their order."""
    return sorted(changes, key=lambda change: (change.mod_revision, change.key))
