"""One subscriber's way through a channel: its position, and the bytes that it receives next.

Must live here: when a subscriber resumes, waits, or is reset; which blocks it receives, and that no id ever runs ahead
of the data. Must not: sockets, tasks, timers (``app.stream.delivery``).

Theory of operation
    A reader is a position, (log generation, revision), never a queue. ``read`` returns bytes to send, or ``b""`` for
    "nothing yet": the shell then waits for a wake-up. If the position is below the log's floor, or in an older
    generation, the reader sends a ``reset`` and a fresh snapshot in the same stream. Once its ``SlowReaderPolicy``
    finds the reader too slow, ``read`` returns nothing more, and ``too_slow`` is True.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum

from .block_reader import BlockReader
from .cursor import Cursor
from .flush_reader import FlushReader
from .frames import close_event, comment, control, greeting
from .interned import interned
from .log import LogSlice
from .readable_history import OlderHistory, ReadableHistory
from .reasons import CloseReason, ResetReason
from .selection import Ranges, Selection
from .slow_reader import SlowReaderPolicy
from .snapshot import Snapshot


class Phase(Enum):
    """The phase of a reader."""

    WAITING = "waiting"  # waits for the feed, or until it is known whether its cursor can be resumed
    SNAPSHOT = "snapshot"  # receives the state
    FOLLOWING = "following"  # receives the log


# Python 3.11 looks up an enumeration's member by way of ``__getattr__``: too slow for a test on each delivery.
WAITING, SNAPSHOT, FOLLOWING = Phase


class Wants(Enum):
    """What a waiting reader needs from its shell."""

    NOTHING = "nothing"
    # a linearizable revision, read after the reader came: its cursor is ahead of the feed
    LINEARIZABLE = "linearizable"
    CATCH_UP = "catch-up"  # the feed must reach its cursor; a fresh snapshot if that cannot be proven in time
    BACKFILL = "backfill"  # history below the log's floor, if it can be read


@dataclass(slots=True)
class Counts:
    """What all readers of a process have received together. The counts only grow, even when a reader ends."""

    items: int = 0  # events and snapshot items
    resets: Counter[str] = field(default_factory=Counter)


class Reader:
    """See the module.

    Args:
        history: of the channel that the reader follows.
        older: reads more of that history for old cursors.
        selection: of the request. *epoch_of* derives its epoch.
        form: see ``app.core.frames``.
        cursor: the client's; None if the client sent none.
        snapshot: False for ``snapshot=0``: the client wants only changes, and a reset brings no state.
        make_policy: makes the policy that finds whether the reader is too slow.
        counts: where the reader adds what it returns.
        interval: with ``mode=latest``, the seconds between two flushes (``app.core.flush``). 0: send every event.
        min_revision: ``synced`` is not sent at a lower revision.
    """

    __slots__ = (
        "_asked", "_asked_backfill", "_blocks", "_counts", "_epoch", "_epoch_of", "_flush", "_for_gateway", "_form",
        "_generation", "_heartbeat", "_history", "_lagged", "_linearizable", "_make_policy", "_offered", "_older",
        "_policy", "_refused_backfill", "_representation", "_restores", "_selection", "_with_state",
        "delivered", "interval", "min_revision", "phase", "revision", "synced", "told_stale", "wants",
    )  # fmt: skip

    def __init__(
        self,
        history: ReadableHistory,
        older: OlderHistory,
        selection: Selection,
        epoch_of: Callable[[int, Selection], str],
        *,
        form: str,
        cursor: Cursor | None,
        snapshot: bool,
        heartbeat: float,
        make_policy: Callable[[], SlowReaderPolicy] = SlowReaderPolicy,
        counts: Counts | None = None,
        interval: float = 0.0,
        min_revision: int = 0,
        for_gateway: bool = False,
    ) -> None:
        self._make_policy = make_policy
        # None while nothing counts: the reader follows the log, and nothing was reset since it last had everything.
        self._policy: SlowReaderPolicy | None = None
        self._counts = counts if counts is not None else Counts()
        self._history = history
        self._older = older
        self._selection = selection
        self._epoch_of = epoch_of
        self._form = form
        self._asked = cursor
        self._restores = history.restores
        self._with_state = snapshot
        self._heartbeat = int(heartbeat) if heartbeat == int(heartbeat) else heartbeat
        self.phase = WAITING
        self.wants = Wants.NOTHING
        self._asked_backfill = self._refused_backfill = False
        self._linearizable: int | None = None
        self._offered: Snapshot | None = None
        self._generation = -1
        self.revision = 0
        self._blocks: BlockReader | None = None  # of the snapshot that is being sent
        self.interval = interval
        self._flush: FlushReader | None = None  # of the flush that is being sent
        self.min_revision = min_revision
        self._for_gateway = for_gateway
        self.synced = False  # whether the client's mirror is exact at ``revision`` and follows the log
        self._lagged = False
        self._epoch = ""
        self._representation = interned((form, selection.encoding, "", selection.keys_only))
        # The ranges that the client was told are stale; None: it must be told.
        self.told_stale: Ranges | None = ()
        self.delivered = 0

    @property
    def asked(self) -> int | None:
        """The revision of the client's cursor, until it is known whether the cursor can be resumed."""
        return self._asked.revision if self._asked is not None else None

    @property
    def too_slow(self) -> bool:
        """Whether the stream must be closed, and ``read`` returns nothing. A flush that the log holds may be slow."""
        if self._policy is None or not self._policy.too_slow:
            return False
        return self._flush is None or not self._log_holds(self._flush.start)

    @property
    def after_a_reset(self) -> bool:
        """See ``SlowReaderPolicy``."""
        return self._policy is not None and self._policy.after_a_reset

    @property
    def at_tip(self) -> bool:
        """Whether ``read`` has nothing to return for now. False does not mean that it has something."""
        log = self._history.log
        return self.synced and self.revision >= log.tip and self._generation == log.generation

    @property
    def behind(self) -> int:
        """The number of revisions of its range that the subscriber has not been sent."""
        return self._history.log.behind(self.revision) if self.phase is FOLLOWING else 0

    @property
    def lacks_since(self) -> float | None:
        """Since when the subscriber may lack a batch that it has not been sent, by the log's clock.

        None if there is no such batch. None also if a ``reset`` comes next, because the generation is over. If a reset
        cannot come yet, nobody knows what the subscriber lacks: minus infinity.
        """
        if not self.synced:
            return None
        if self._generation != self._history.log.generation:
            return None if self._may_reset else float("-inf")
        return self._history.lacks_since(self.revision)

    @property
    def flushing(self) -> bool:
        """Whether a flush has begun that has not ended. Nothing else may be written before its end."""
        return self._flush is not None

    @property
    def flush_due(self) -> float | None:
        """When the next flush is due, by the log's clock. The shell must not call ``read`` before.

        None if ``read`` may be called at any time: there is nothing to flush, or something else comes first.
        """
        if not self.interval or self.phase is not FOLLOWING or self._flush is not None:
            return None
        log = self._history.log
        if self._generation != log.generation or self.revision < log.floor:
            return None
        if not self.synced and log.tip >= self.min_revision:
            return None
        return log.flush_due(self.revision, self.interval)

    @property
    def lacks_revision(self) -> bool:
        """Whether ``synced`` waits for the channel to reach ``min_revision``, and for nothing else."""
        log = self._history.log
        if log.tip >= self.min_revision or not self._history.joinable:
            return False
        return not self.synced or self._generation != log.generation

    @property
    def waits(self) -> bool:
        """Whether the client was not sent ``synced``, and the channel has nothing for it: the stream may end so.

        The reader may wait for the first state, for a state after a restore, for a linearizable read, for history, or
        for ``min_revision``.
        """
        if self.phase is WAITING:
            return True
        if self.synced or self._may_reset:
            return False
        log = self._history.log
        replaced = self._history.view is None or self._generation != log.generation
        return replaced or (self.phase is FOLLOWING and (self.revision < log.floor or log.tip < self.min_revision))

    @property
    def _may_reset(self) -> bool:
        """Whether the channel has a state that may replace the client's."""
        return self._history.joinable and self._history.log.tip >= self.min_revision

    # --- reports from the shell --------------------------------------------------------------------------------------

    def give_linearizable(self, revision: int) -> None:
        """Take the answer to ``Wants.LINEARIZABLE``."""
        self._linearizable = revision

    def give_snapshot(self, snapshot: Snapshot) -> None:
        """Take a snapshot at or above the cursor. The feed could not prove in time that it had reached the cursor."""
        self._offered = snapshot if self.phase is WAITING else None  # later nobody takes it, and it would stay

    def drop_snapshot(self) -> None:
        """Drop every snapshot, because the feed drops its state. A reset follows."""
        self._blocks = self._offered = None

    def wrote(self, size: int, seconds: float) -> None:
        """Record that a write of *size* bytes took so many seconds."""
        if self._policy is not None:
            self._policy.wrote(size, seconds)

    def refuse_backfill(self) -> None:
        """Record that no history will be read for this reader."""
        self._refused_backfill = True

    # --- bytes to send -----------------------------------------------------------------------------------------------

    def greet(self, instance: str, retry_ms: int) -> bytes:
        """Return the stream's first bytes."""
        return greeting(self._form, instance, retry_ms)

    def read(self, size: int) -> bytes:
        """Return the next bytes for the subscriber: about *size* at most, but whole revisions. Empty: nothing yet.

        The caller must send these bytes, because the position has moved.
        """
        log = self._history.log
        last = log.last_slice
        # When one event goes to 5,000 subscribers, nearly all take this way. A slice is valid only in its generation,
        # and as long as the log has a view and covers its start.
        if (
            last is not None
            and last.start == self.revision
            and last.representation is self._representation
            and last.size == size
            and self._generation == log.generation
            and self.phase is FOLLOWING
            and not (self._lagged or self.interval)
        ):
            return self._take(last)
        if self._flush is not None:
            return self._next_piece()
        phase = self.phase
        if phase is WAITING:
            return self._join(size)
        if self._generation != log.generation:
            # The rest of the old state must not come: its view has gone, and ``synced`` would say that all of it came.
            return self._begin_snapshot(self._history.reason) if self._history.joinable else b""
        if self._history.view is None:
            return b""  # the feed dropped its view: a reset follows
        if phase is SNAPSHOT:
            return self._next_items()
        return self._follow(size)

    def read_blocks(self, size: int) -> list[bytes]:
        """Return the next blocks of the state, at most *size* bytes. If there are none, ``read`` has what comes."""
        blocks, view = self._blocks, self._history.view
        if blocks is None or view is None or self._generation != self._history.log.generation:
            return []
        frames, items = blocks.read_encoded(view, size)
        self._count(items)
        return frames

    def heartbeat(self, *, stale: bool) -> bytes:
        """Return a sign of life: a bookmark at the reader's position, or a comment where an id is not allowed."""
        if not self.synced:
            return comment(self._form, "waiting")
        members: dict[str, Hashable] = {"revision": self.revision, "state": "stale" if stale else "live"}
        return control(self._form, "bookmark", members, self._cursor())

    def tell_staleness(
        self, stale: Ranges, since: str | None, age: int | None = None, *, expires: str | None = None
    ) -> bytes:
        """Return a ``status`` if the subscriber does not know this state yet.

        Args:
            stale: the ranges that are stale; empty while all are live.
            since: RFC 3339; None while all are live.
            age: the seconds since then.
            expires: RFC 3339, when the stream will be closed, if the subscriber must be told now.
        """
        if stale == self.told_stale and expires is None:
            return b""
        self.told_stale = stale
        members: dict[str, Hashable] = {"state": "stale" if stale else "live"}
        optional = {"since": since, "age": age, "expires": expires}
        members |= {name: value for name, value in optional.items() if value is not None}
        members["ranges"] = tuple(map(str, stale)) if stale else self._selection.names
        return control(self._form, "status", members)

    def close(self, reason: CloseReason, retry_ms: int, *, stale: bool, detail: str = "") -> bytes:
        """Return the last bytes of a stream that the gateway closes: the position, the reason, and when to come back.

        *detail*: more about the reason, for people.
        """
        if self.synced and self._log_holds(self.revision) and not self.behind:
            self._reach_tip()  # progress has moved it, and wakes nobody; the client comes back with the newest cursor
        last = self.heartbeat(stale=stale) if self.synced else b""
        members: dict[str, Hashable] = {"reason": reason, "retry_ms": retry_ms} | ({"detail": detail} if detail else {})
        return last + close_event(self._form, members, retry_ms)

    # --- joining -----------------------------------------------------------------------------------------------------

    def _join(self, size: int) -> bytes:
        history, asked = self._history, self._asked
        self.wants = Wants.NOTHING
        if not history.joinable:
            return b""
        if asked is None or asked.empty:
            return self._begin_snapshot("initial")
        self._take_epoch()
        if asked.epoch != self._epoch:
            return self._begin_snapshot("cursor-lost")
        if history.restores != self._restores or asked.revision <= history.ended_revision:
            # The cursor came, or was given out, before a restore was noticed: its revision may mean other events now.
            return self._begin_snapshot("restored")
        if asked.revision > history.log.tip:
            return self._join_ahead(asked.revision)
        if history.covers(asked.revision):
            self._resume(asked.revision)
            return self._follow(size)
        return self._join_below_floor(asked.revision)

    def _take_epoch(self) -> None:
        """Take the epoch of the cluster as it is now."""
        self._epoch = self._epoch_of(self._history.cluster_id, self._selection)
        self._representation = interned((self._form, self._selection.encoding, self._epoch, self._selection.keys_only))

    def _join_ahead(self, revision: int) -> bytes:
        """Handle a cursor ahead of this replica.

        The replica lags, the prefix is quiet, or the cursor's history has ended (or never was).
        """
        if self._linearizable is None:
            self.wants = Wants.LINEARIZABLE
        elif revision > self._linearizable:
            return self._begin_snapshot("restored")
        elif self._offered is not None and self._offered.revision >= self.min_revision:
            offered, self._offered = self._offered, None
            return self._begin_snapshot("unproven", offered)
        else:
            self.wants = Wants.CATCH_UP
        return b""

    def _join_below_floor(self, revision: int) -> bytes:
        if self._asked_backfill and self._older.promises(revision):
            return b""
        if not self._refused_backfill:
            self._asked_backfill = True
            self.wants = Wants.BACKFILL
            return b""
        return self._begin_snapshot(self._older.why_not(revision))

    def _resume(self, revision: int) -> None:
        self.phase = FOLLOWING
        self._asked = self._offered = None
        self._generation = self._history.log.generation
        self.revision = revision

    # --- snapshots ---------------------------------------------------------------------------------------------------

    def _begin_snapshot(self, reason: ResetReason, snapshot: Snapshot | None = None) -> bytes:
        """Return ``reset`` together with the first items of a snapshot in memory: never one without the other."""
        history = self._history
        assert history.view is not None, "a snapshot begins only on a feed that has a view"
        if (snapshot.revision if snapshot is not None else history.log.tip) < self.min_revision:
            # The state must not be sent either: changes after it would have ids, and no id may come before `synced`.
            return b""
        if snapshot is None:
            snapshot = history.view.snapshot(history.log.tip)
        self._take_epoch()
        self._asked = self._offered = None
        self._generation = history.log.generation
        self._blocks = BlockReader(snapshot, self._selection, self._form) if self._with_state else None
        self.revision = snapshot.revision
        self.phase = SNAPSHOT
        self._counting_policy().begin_snapshot()
        self.synced = False
        self.wants = Wants.NOTHING
        if not self._with_state and reason == "initial":
            # Nothing was lost, and the client wants no state.
            return self._next_items()
        self._counts.resets[reason] += 1
        cluster = f"{history.cluster_id:x}"
        members: dict[str, Hashable] = {"reason": reason, "ranges": self._selection.names, "cluster_id": cluster}
        return control(self._form, "reset", members, f"{self._epoch}-0") + self._next_items()

    def _next_items(self) -> bytes:
        data, blocks, view = b"", self._blocks, self._history.view
        if blocks is not None:
            assert view is not None, "only a feed with a view sends a snapshot"
            data, items = blocks.read(view)
            self._count(items)
            if not blocks.over:
                return data
            self._blocks = None
        self.phase = FOLLOWING
        self._counting_policy().end_snapshot()
        self._drop_policy()
        return data + self._say_synced()

    def _count(self, items: int) -> None:
        self.delivered += items
        self._counts.items += items

    # --- following ---------------------------------------------------------------------------------------------------

    def _follow(self, size: int) -> bytes:
        log = self._history.log
        if self.revision < log.floor:
            if not self._may_reset:
                return b""  # while the feed is in doubt, the view may be of an ended history
            policy = self._counting_policy()
            if not policy.too_slow:
                self._lagged = True
                policy.lag()
            return b"" if policy.too_slow else self._begin_snapshot("lagged")
        if self.interval:
            return self._begin_flush()
        log_slice = log.slice(self.revision, size, self._representation)
        if log_slice is None:
            return self._reach_tip()
        # Equal, but one object for all readers: see ``read``.
        self._representation = log_slice.representation
        data = self._take(log_slice)
        if self._lagged and self.revision == log.tip:
            self._catch_up()
        return data

    def _take(self, log_slice: LogSlice) -> bytes:
        self.revision = log_slice.end
        self.delivered += log_slice.events
        self._counts.items += log_slice.events
        return log_slice.data

    def _reach_tip(self) -> bytes:
        """Move the position as far as the log is known to be complete, because everything is sent."""
        self.revision = max(self.revision, self._history.log.tip)
        self._catch_up()
        return b"" if self.synced else self._say_synced()

    def _begin_flush(self) -> bytes:
        """Begin to send all that the client lacks: the newest event of each key."""
        flush = self._history.log.flush_from(self.revision)
        if flush is None:
            return self._reach_tip()
        self._flush = FlushReader(flush)
        self._counting_policy().begin_flush()
        return self._next_piece()

    def _next_piece(self) -> bytes:
        """Return the next piece of the flush. The position moves with the last piece, which has the id.

        A flush that has begun is sent to its end, also if the log forgets its events, or begins a new generation
        meanwhile: a ``reset`` must not come between events that belong together.
        """
        flush = self._flush
        assert flush is not None, "called only while a flush is being sent"
        data, events = flush.read(self._representation)
        self._count(events)
        if not flush.over:
            return data
        self._flush = None
        self._counting_policy().end_flush()
        self._drop_policy()
        self.revision = flush.end
        if not self._log_holds(flush.end):
            return data
        self._catch_up()
        return data if self.synced else data + self._say_synced()

    def _log_holds(self, revision: int) -> bool:
        """Whether the log goes on from *revision*, which the reader has been sent or is being sent."""
        log = self._history.log
        return self._generation == log.generation and log.covers(revision)

    def _catch_up(self) -> None:
        self._lagged = False
        if self._policy is not None:
            self._policy.catch_up()
            self._drop_policy()

    def _counting_policy(self) -> SlowReaderPolicy:
        """Return the policy, made now if there was none: something that it counts begins or ends."""
        if self._policy is None:
            self._policy = self._make_policy()
        return self._policy

    def _drop_policy(self) -> None:
        if self._policy is not None and self._policy.at_rest:
            self._policy = None

    def _say_synced(self) -> bytes:
        if self.revision < self.min_revision:
            return b""
        self.synced = True
        if self.told_stale:
            self.told_stale = None  # "synced" means live to the client: the real state must be told again
        members: dict[str, Hashable] = {"revision": self.revision, "heartbeat": self._heartbeat}
        if self._for_gateway and self._history.stale:
            members["state"] = "stale"  # `status` follows, but a gateway below must not be live until it comes
            self.told_stale = None
        if self._for_gateway and self._history.ended_revision:
            members["ended_revision"] = self._history.ended_revision  # the gateway below may have missed the restore
        return control(self._form, "synced", members, self._cursor())

    def _cursor(self) -> str:
        return f"{self._epoch}-{self.revision}"
