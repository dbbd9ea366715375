"""A fake etcd: a real gRPC server over an in-memory store. It does what a real etcd cannot be made to do on demand.

``tests/contract`` runs the same test bodies against this fake and against real etcds: the fake behaves by itself as
they do. Each further behaviour that a test can cause is a method or an attribute of ``FakeEtcd``.

Three parts: ``Store`` (keys, revisions, history), ``WatchCall`` (one open Watch call with its watchers) and
``FakeEtcd`` (the server, the controls, and a record of the requests).
"""

from __future__ import annotations

import asyncio
import operator
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
from aetcd import rpc

from tests.support.waiting import HANG

# etcd's texts, character by character: clients tell errors apart by these texts.
COMPACTED = "etcdserver: mvcc: required revision has been compacted"
FUTURE = "etcdserver: mvcc: required revision is a future revision"
NO_LEADER = "etcdserver: no leader"
NO_LEASE = "etcdserver: requested lease not found"
LEASE_EXISTS = "etcdserver: lease already exists"
EMPTY_KEY = "etcdserver: key is not provided"
DUPLICATE_KEY = "etcdserver: duplicate key given in txn request"
DUPLICATE_WATCH = "mvcc: duplicate watch ID provided on the WatchStream"
EMPTY_RANGE = "mvcc: watcher range is empty"
PERMISSION_DENIED = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"

PUT, DELETE = 0, 1
NOBODY = -1  # the watch id that belongs to no watch
CATCH_UP_REVISIONS = 1000  # etcd's watchBatchMaxRevs
FRAGMENT_BYTES = 2 * 1024 * 1024  # --max-request-bytes plus 512 KiB

COMPARE: dict[int, Callable[[Any, Any], bool]] = {0: operator.eq, 1: operator.gt, 2: operator.lt, 3: operator.ne}
TARGETS = ("version", "create_revision", "mod_revision", "value", "lease")


class RefusedError(Exception):
    """A request that etcd answers with a gRPC error."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


def within(key: bytes, start: bytes, end: bytes) -> bool:
    """Whether *key* is in etcd's range: without an end the range is one key.

    An end of one NUL means all keys from *start* on.
    """
    if not end:
        return key == start
    return start <= key and (end == b"\0" or key < end)


# --- The store ---------------------------------------------------------------------------------------------------


class Store:
    """Keys and values with their whole history."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = -1
        self.history: dict[int, list[Any]] = {}  # revision -> mvccpb.Event
        self._past: dict[bytes, list[Any]] = {}  # key -> mvccpb.KeyValue, oldest first; version 0 is a tombstone
        self._pending: list[Any] = []

    def get(self, key: bytes, revision: int) -> Any | None:
        """A key's value at a revision."""
        for kv in reversed(self._past.get(key, ())):
            if kv.mod_revision <= revision:
                return kv if kv.version else None
        return None

    def range(self, start: bytes, end: bytes, revision: int) -> list[Any]:
        """The keys and values of a range at a revision, sorted by key."""
        keys = [start] if not end else sorted(key for key in self._past if within(key, start, end))
        return [kv for key in keys if (kv := self.get(key, revision)) is not None]

    def check_readable(self, revision: int) -> None:
        """Raise if a revision is compacted or in the future."""
        if revision > self.revision:
            raise RefusedError(grpc.StatusCode.OUT_OF_RANGE, FUTURE)
        if revision < self.compacted:
            raise RefusedError(grpc.StatusCode.OUT_OF_RANGE, COMPACTED)

    @property
    def now(self) -> int:
        """The revision that a read sees; inside a transaction, the transaction's own revision."""
        return self.revision + bool(self._pending)

    def put(self, key: bytes, value: bytes, lease: int = 0) -> Any:
        """Put a key, as part of the revision that ``commit`` will make."""
        before = self.get(key, self.now)
        revision = self.revision + 1
        kv = rpc.KeyValue(
            key=key,
            value=value,
            create_revision=before.create_revision if before else revision,
            mod_revision=revision,
            version=before.version + 1 if before else 1,
            lease=lease,
        )
        self._record(PUT, kv)
        return before

    def delete(self, start: bytes, end: bytes = b"") -> list[Any]:
        """Delete a range, as part of the revision that ``commit`` will make; return what was deleted."""
        gone = self.range(start, end, self.now)
        for kv in gone:
            self._record(DELETE, rpc.KeyValue(key=kv.key, mod_revision=self.revision + 1))
        return gone

    def commit(self) -> list[Any]:
        """Make everything since the last commit one revision, and return its events.

        Without a change there is no revision.
        """
        events, self._pending = self._pending, []
        if events:
            self.revision += 1
            self.history[self.revision] = events
        return events

    def compact(self, revision: int, *, lose_deletes: bool) -> None:
        """Forget the history that no reader can read any more."""
        if revision <= self.compacted:
            raise RefusedError(grpc.StatusCode.OUT_OF_RANGE, COMPACTED)
        if revision > self.revision:
            raise RefusedError(grpc.StatusCode.OUT_OF_RANGE, FUTURE)
        self.compacted = revision
        if lose_deletes and revision in self.history:
            self.history[revision] = [event for event in self.history[revision] if event.type == PUT]

    def go_back(self, revision: int) -> None:
        """Return to the store's state at a revision, as after a restore."""
        self.revision = revision
        self.history = {at: events for at, events in self.history.items() if at <= revision}
        past = {key: [kv for kv in kvs if kv.mod_revision <= revision] for key, kvs in self._past.items()}
        self._past = {key: kvs for key, kvs in past.items() if kvs}

    def _record(self, kind: int, kv: Any) -> None:
        self._past.setdefault(kv.key, []).append(kv)
        self._pending.append(rpc.Event(type=kind, kv=kv))


# --- Watches -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Watcher:
    """One watch, as etcd keeps it until the watch is cancelled or its call ends."""

    watch_id: int
    start: bytes
    end: bytes
    next: int  # the first revision that has not been sent
    fragment: bool
    progress_notify: bool
    filters: frozenset[int]
    previous: bool
    compacted: bool = False
    victim: tuple[int, list[Any]] | None = None  # the revision and the events that found the channel full

    @classmethod
    def of(cls, request: Any, watch_id: int, revision: int) -> Watcher:
        """The watcher that a create request asks for."""
        return cls(
            watch_id=watch_id,
            start=request.key or b"\0",
            end=request.range_end,
            next=request.start_revision or revision + 1,
            fragment=request.fragment,
            progress_notify=request.progress_notify,
            filters=frozenset(request.filters),
            previous=request.prev_kv,
        )

    def wants(self, event: Any) -> bool:
        """Whether the watcher's range and filters include the event."""
        return within(event.kv.key, self.start, self.end) and event.type not in self.filters


@dataclass(frozen=True, slots=True)
class Break:
    """Ends a call; queued in order among the answers."""

    code: grpc.StatusCode
    details: str


class Answers:
    """The answers that a call has yet to write, in etcd's two queues.

    One queue has the control answers to creates and cancels, the other is the watch channel.

    etcd's send loop takes from either queue at random. Here the answers come in the order in which they were queued,
    unless a test chooses. As in etcd, an event of a watch waits until the watch's ``created`` was written.
    """

    def __init__(self, etcd: FakeEtcd) -> None:
        self._etcd = etcd
        self._control: deque[tuple[int, Any]] = deque()
        self._channel: deque[tuple[int, Any]] = deque()
        self._ready: deque[Any] = deque()  # the answers that waited for their watch's ``created``
        self._early: dict[int, list[Any]] = {}
        self._announced: set[int] = set()
        self._break: Break | None = None
        self._number = 0
        self._wake = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether the watch channel is full."""
        return self._etcd.channel is not None and len(self._channel) >= self._etcd.channel

    def put_nowait(self, answer: Any, *, control: bool = False) -> None:
        """Append an answer to its queue.

        A ``Break`` comes after everything queued, and nothing comes after a ``Break``.
        """
        if self._break is not None:
            return
        self._number += 1
        if isinstance(answer, Break):
            self._break = answer
        elif control:
            self._control.append((self._number, answer))
        else:
            self._channel.append((self._number, answer))
        self._wake.set()

    async def get(self) -> Any:
        """The next answer."""
        while True:
            await self._etcd.flowing.wait()
            answer = self._take()
            if answer is not None:
                return answer
            self._wake.clear()
            await self._wake.wait()

    def _take(self) -> Any:
        while self._ready or self._control or self._channel:
            if self._ready:
                return self._ready.popleft()
            if self._control and (not self._channel or self._control_first()):
                _, answer = self._control.popleft()
                if answer.created and not answer.canceled:
                    self._announced.add(answer.watch_id)
                    self._ready.extend(self._early.pop(answer.watch_id, ()))
                return answer
            _, answer = self._channel.popleft()
            self._etcd.sync_soon()  # the channel has room again
            if answer.watch_id == NOBODY or answer.watch_id in self._announced:
                return answer
            self._early.setdefault(answer.watch_id, []).append(answer)
        return self._break

    def _control_first(self) -> bool:
        choose = self._etcd.control_first
        return self._control[0] < self._channel[0] if choose is None else choose()


class WatchCall:
    """One open Watch call. Its task writes out the answers."""

    def __init__(self, etcd: FakeEtcd, metadata: dict[str, str]) -> None:
        self.metadata = metadata
        self.watchers: dict[int, Watcher] = {}
        self.answers = Answers(etcd)
        self._etcd = etcd
        self._next_id = 0

    def handle(self, request: Any) -> None:
        """Handle one message of the client."""
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            self._create(request.create_request)
        elif kind == "cancel_request":
            self._cancel(request.cancel_request.watch_id)
        elif kind == "progress_request":
            self._progress()

    def synced(self, watcher: Watcher) -> bool:
        """Whether the watcher has had every event.

        As in etcd, a watcher that a compaction cancelled is never synced.
        """
        return not watcher.compacted and watcher.victim is None and watcher.next > self._etcd.store.revision

    def catch_up(self, watcher: Watcher) -> bool:
        """Send one response of the events that the watcher lacks; return whether there are more."""
        store = self._etcd.store
        if watcher.compacted or self._etcd.is_held(watcher) or self.synced(watcher) or self.answers.full:
            return False
        if watcher.victim is not None:
            (revision, events), watcher.victim = watcher.victim, None
            self._send(watcher, revision, events)
            return not self.synced(watcher)
        if watcher.next < store.compacted:
            self._cancel_compacted(watcher)
            return False
        events = self._collect(watcher)
        if events:
            # As etcd does: the response carries the current revision, even if older events are still to come.
            self._send(watcher, store.revision, events)
        return not self.synced(watcher)

    def live(self, watcher: Watcher, revision: int, events: Iterable[Any]) -> None:
        """Send a revision to a watcher that has had everything before it."""
        if watcher.compacted or watcher.next > revision:
            return  # the watcher is cancelled, or starts in the future
        watcher.next = revision + 1
        wanted = [event for event in events if watcher.wants(event)]
        if wanted and self.answers.full:
            watcher.victim = revision, wanted
        elif wanted:
            self._send(watcher, revision, wanted)

    def notify_progress(self) -> None:
        """Do what the timer of ``progress_notify`` does."""
        for watcher in self.watchers.values():
            if watcher.progress_notify and self.synced(watcher) and not self.answers.full:
                self._answer(control=False, watch_id=watcher.watch_id)

    def stop(self, code: grpc.StatusCode, details: str) -> None:
        """End the call with an error, after the answers that are already queued."""
        self.answers.put_nowait(Break(code, details))

    def _create(self, request: Any) -> None:
        etcd = self._etcd
        etcd.asked.creates.append(request)
        refusal = etcd.refusals.pop(0) if etcd.refusals else None
        if refusal is not None:
            watch_id = request.watch_id if refusal.echo else NOBODY
            self._answer(watch_id=watch_id, created=True, canceled=True, cancel_reason=refusal.reason)
            return
        trouble = self._unfit(request)
        if trouble is not None:
            self._answer(watch_id=NOBODY, created=True, canceled=True, cancel_reason=trouble)
            return
        watcher = Watcher.of(request, request.watch_id or self._free_id(), etcd.store.revision)
        self.watchers[watcher.watch_id] = watcher
        self._answer(watch_id=watcher.watch_id, created=True)
        etcd.sync_soon()

    def _unfit(self, request: Any) -> str | None:
        if request.watch_id in self.watchers and request.watch_id:
            return DUPLICATE_WATCH
        if request.range_end not in (b"", b"\0") and request.key >= request.range_end:
            return EMPTY_RANGE
        return None

    def _free_id(self) -> int:
        while self._next_id in self.watchers:
            self._next_id += 1
        self._next_id += 1
        return self._next_id - 1

    def _cancel(self, watch_id: int) -> None:
        self._etcd.asked.cancels.append(watch_id)
        if self.watchers.pop(watch_id, None) is not None:
            self._answer(watch_id=watch_id, canceled=True)

    def _progress(self) -> None:
        etcd = self._etcd
        etcd.asked.progress += 1
        if etcd.mute_progress:
            return
        # A version with trusted progress answers only if it has a watcher, and once every watcher is synced.
        ready = self.watchers and all(map(self.synced, self.watchers.values()))
        if not etcd.progress_trusted:
            self._answer(watch_id=NOBODY)
        elif ready and not self.answers.full:
            self._answer(control=False, watch_id=NOBODY)

    def _cancel_compacted(self, watcher: Watcher) -> None:
        watcher.compacted = True
        self.answers.put_nowait(
            rpc.WatchResponse(
                header=self._etcd.header(0),
                watch_id=watcher.watch_id,
                canceled=True,
                compact_revision=self._etcd.store.compacted,
            )
        )

    def _collect(self, watcher: Watcher) -> list[Any]:
        """The next revisions with events for this watcher, as many as fit one response."""
        store, found, revisions = self._etcd.store, [], 0
        while watcher.next <= store.revision and revisions < self._etcd.catch_up_revisions:
            wanted = [event for event in store.history.get(watcher.next, ()) if watcher.wants(event)]
            found.extend(wanted)
            revisions += bool(wanted)
            watcher.next += 1
        return found

    def _answer(self, *, control: bool = True, **fields: Any) -> None:
        self.answers.put_nowait(rpc.WatchResponse(header=self._etcd.header(), **fields), control=control)

    def _send(self, watcher: Watcher, revision: int, events: Sequence[Any]) -> None:
        if watcher.previous:
            events = [self._with_previous(event) for event in events]
        whole = rpc.WatchResponse(header=self._etcd.header(revision), watch_id=watcher.watch_id, events=events)
        pieces = self._split(whole) if watcher.fragment else [whole]
        for number, piece in enumerate(pieces):
            piece.fragment = number < len(pieces) - 1
        cut = self._etcd.cut_after
        if cut is not None and len(pieces) > cut:
            self._etcd.cut_after = None
            pieces = pieces[:cut]
        for piece in pieces:
            self.answers.put_nowait(piece)
        if cut is not None and self._etcd.cut_after is None:
            self.stop(grpc.StatusCode.UNAVAILABLE, "cut between two fragments")

    def _with_previous(self, event: Any) -> Any:
        before = self._etcd.store.get(event.kv.key, event.kv.mod_revision - 1)
        return rpc.Event(type=event.type, kv=event.kv, prev_kv=before)

    def _split(self, whole: Any) -> list[Any]:
        """Split a response as etcd's sendFragments does.

        Each piece stays below the limit, unless it is a single event.
        """
        limit = self._etcd.fragment_bytes
        if whole.ByteSize() < limit or len(whole.events) < 2:
            return [whole]
        pieces: list[Any] = []
        size = limit
        for event in whole.events:
            needed = event.ByteSize() + 4  # the event's tag and length
            if size + needed >= limit:
                pieces.append(rpc.WatchResponse(header=whole.header, watch_id=whole.watch_id))
                size = pieces[-1].ByteSize()
            pieces[-1].events.append(event)
            size += needed
        return pieces


# --- The server --------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """The clients' requests, in order."""

    ranges: list[Any] = field(default_factory=list)  # RangeRequest
    creates: list[Any] = field(default_factory=list)  # WatchCreateRequest
    cancels: list[int] = field(default_factory=list)  # watch ids
    progress: int = 0
    statuses: int = 0
    streams: int = 0  # Watch calls opened in total


@dataclass(frozen=True, slots=True)
class Refusal:
    """How the fake refuses a create."""

    reason: str
    echo: bool  # 3.5.1 answers with the requested id, newer versions with -1


class FakeEtcd:
    """``async with FakeEtcd() as etcd: ...etcd.endpoint``.

    Attributes to set at any time:
    - *version*, *cluster_id*, *member_id*, *mute_progress*, *loses_deletes*;
    - *refuse_status*: the code with which the member's status is refused; None: it is told;
    - *catch_up_revisions*: revisions in one response;
    - *fragment_bytes*: the size above which a response is split;
    - *cut_after*: the next response with more fragments is cut after that many fragments, and its call breaks;
    - *channel*: the number of answers that a call's watch channel holds; None: any number;
    - *control_first*: called when a call could write either a control answer (to a create or cancel) or the head of its
      watch channel; returns whether to write the control answer.
    """

    def __init__(self, version: str = "3.5.16", port: int = 0) -> None:
        self.version = version
        self.cluster_id = 0xC1D0
        self.member_id = 0x3E3B
        self.raft_term = 2
        self.applied = 0  # the raft index that the member reports
        self.committed: int | None = None  # the same of what is committed; None: all of it is applied
        self.catch_up_revisions = CATCH_UP_REVISIONS
        self.fragment_bytes = FRAGMENT_BYTES
        self.cut_after: int | None = None
        self.mute_progress = False
        self.refuse_status: grpc.StatusCode | None = None
        self.loses_deletes: bool | None = None  # None: as in the version
        self.channel: int | None = None
        self.control_first: Callable[[], bool] | None = None
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.store = Store()
        self.asked = Asked()
        self.refusals: list[Refusal] = []
        self.calls: set[WatchCall] = set()
        self.ranges_in_flight = 0
        self._port = port
        self._server: grpc.aio.Server | None = None
        self._leases: dict[int, int] = {}  # id -> TTL
        self._held: set[int] | None = None  # watch ids; empty: all
        self._syncing: asyncio.Handle | None = None
        self._leader = True
        self._range_failures: list[Break] = []
        self._ranges_open = asyncio.Event()
        self._ranges_open.set()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; after a ``stop``, listen on the same port again, with the same data."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
        self._server.add_generic_rpc_handlers(tuple(self._handlers()))
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        await self._server.start()

    async def stop(self) -> None:
        """Stop as if the process died: all calls break. Idempotent."""
        self._ranges_open.set()
        if self._syncing is not None:
            self._syncing.cancel()
            self._syncing = None
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:port``."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def progress_trusted(self) -> bool:
        """Whether on-demand progress waits for events, as it does since 3.4.25 and 3.5.8.

        Older versions answer at once.
        """
        return self._at_least((3, 4, 25), (3, 5, 8))

    @property
    def revision(self) -> int:
        """The store's revision."""
        return self.store.revision

    @property
    def open_streams(self) -> int:
        """The number of Watch calls, as ``etcd_debugging_mvcc_watch_stream_total`` counts them."""
        return len(self.calls)

    @property
    def open_watchers(self) -> int:
        """The number of watchers, as ``etcd_debugging_mvcc_watcher_total`` counts them.

        A watcher that a compaction cancelled counts until the client releases it.
        """
        return sum(len(call.watchers) for call in self.calls)

    async def until(self, condition: Callable[[], bool], timeout: float = HANG) -> None:
        """Wait until *condition*, which clients' requests change, is true."""
        async with asyncio.timeout(timeout):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    # --- Writing, without a client ---

    def put(self, key: bytes, value: bytes = b"", lease: int = 0) -> int:
        """Put a key; return the revision."""
        return self.txn([(key, value)], lease=lease)

    def delete(self, key: bytes, range_end: bytes = b"") -> int:
        """Delete a key or a range; return the revision."""
        self.store.delete(key, range_end)
        return self._commit()

    def txn(self, writes: Iterable[tuple[bytes, bytes | None]], lease: int = 0) -> int:
        """Put keys, or delete the keys whose value is None, in one revision; return the revision."""
        for key, value in writes:
            if value is None:
                self.store.delete(key)
            else:
                self.store.put(key, value, lease)
        return self._commit()

    def compact(self, revision: int) -> None:
        """Compact what is older than *revision*."""
        fixed = self._at_least((3, 4, 34), (3, 5, 16))
        self.store.compact(revision, lose_deletes=not fixed if self.loses_deletes is None else self.loses_deletes)
        self.sync_soon()

    def grant(self, lease: int, ttl: int = 60) -> int:
        """Grant a lease, which ends only by ``expire``; return its id."""
        self._leases[lease] = ttl
        return lease

    def expire(self, lease: int) -> int:
        """Delete all keys of a lease in one revision; return the revision."""
        self._leases.pop(lease, None)
        for kv in self.store.range(b"\0", b"\0", self.store.revision):
            if kv.lease == lease:
                self.store.delete(kv.key)
        return self._commit()

    # --- Faults ---

    def break_streams(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, details: str = "broken") -> None:
        """End all Watch calls with an error, after what was already sent."""
        for call in self.calls:
            call.stop(code, details)

    def refuse_create(self, reason: str = PERMISSION_DENIED, *, echo: bool = True) -> None:
        """Refuse the next create that is not refused yet.

        With *echo* the answer has the requested id, as in 3.5.1; otherwise -1, as in newer versions.
        """
        self.refusals.append(Refusal(reason, echo))

    def hold(self, *watch_ids: int) -> None:
        """Hold the events of these watches (none named: of all) until ``release``.

        To etcd these watches are then unsynced. A version with untrusted progress still answers a progress request, so
        the answer overtakes the events. A version with trusted progress does not answer.
        """
        self._held = set(watch_ids)

    def release(self) -> None:
        """Send the events that were held."""
        self._held = None
        self.sync_soon()

    def is_held(self, watcher: Watcher) -> bool:
        """Whether the watcher's events wait for ``release``."""
        return self._held is not None and (not self._held or watcher.watch_id in self._held)

    def stall(self) -> None:
        """Write no answer of any Watch call until ``flow``, as if the client did not read."""
        self.flowing.clear()

    def flow(self) -> None:
        """Write the answers that ``stall`` kept."""
        self.flowing.set()

    def notify_progress(self) -> None:
        """Do what etcd's timer does for watches with ``progress_notify``."""
        for call in self.calls:
            call.notify_progress()

    def restore(self, revision: int) -> None:
        """Restore a backup of that revision, with the same ids: all calls break, and a new history begins."""
        self.store.go_back(revision)
        self.raft_term += 1
        self.break_streams()

    def lose_leader(self) -> None:
        """Lose the leader: requests that need a quorum fail, and Watch calls that require a leader break."""
        self._leader = False
        for call in self.calls:
            if call.metadata.get("hasleader") == "true":
                call.stop(grpc.StatusCode.UNAVAILABLE, NO_LEADER)

    def regain_leader(self) -> None:
        """Have a leader again."""
        self._leader = True

    def hold_ranges(self) -> None:
        """Answer no Range request until ``release_ranges``."""
        self._ranges_open.clear()

    def release_ranges(self) -> None:
        """Answer the held Range requests; each sees the store as it is now."""
        self._ranges_open.set()

    def fail_ranges(
        self, count: int = 1, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, details: str = "failed"
    ) -> None:
        """Fail the next Range requests."""
        self._range_failures.extend([Break(code, details)] * count)

    # --- For the parts above ---

    def header(self, revision: int | None = None) -> Any:
        """An answer's header."""
        return rpc.ResponseHeader(
            cluster_id=self.cluster_id,
            member_id=self.member_id,
            revision=self.store.revision if revision is None else revision,
            raft_term=self.raft_term,
        )

    def sync_soon(self) -> None:
        """Let watchers catch up, one response at a time, with other work in between, as in etcd."""
        if self._syncing is None:
            self._syncing = asyncio.get_running_loop().call_soon(self._sync)

    def _sync(self) -> None:
        self._syncing = None
        more = [call.catch_up(watcher) for call in self.calls for watcher in call.watchers.values()]
        if any(more):
            self.sync_soon()

    def _commit(self) -> int:
        before = self.store.revision
        events = self.store.commit()
        for call in self.calls:
            for watcher in call.watchers.values():
                # A watcher that is not synced gets the revision by catching up, after the older ones.
                if watcher.next > before and watcher.victim is None and events and not self.is_held(watcher):
                    call.live(watcher, self.store.revision, events)
        self.sync_soon()
        return self.store.revision

    def _at_least(self, *fixes: tuple[int, int, int]) -> bool:
        """Whether the version has a fix that came with these patch releases."""
        major, minor, patch = (int(part) for part in self.version.split("-")[0].split("."))
        here = [fix for fix in fixes if fix[:2] == (major, minor)]
        return (major, minor, patch) >= (here[0] if here else max(fixes))

    def _tell(self) -> None:
        self._changed.set()

    # --- gRPC ---

    def _handlers(self) -> Iterable[grpc.GenericRpcHandler]:
        unary: dict[str, dict[str, tuple[Callable[[Any], Any], str]]] = {
            "KV": {
                "Range": (self._range, "Range"),
                "Put": (self._put, "Put"),
                "DeleteRange": (self._delete_range, "DeleteRange"),
                "Txn": (self._txn, "Txn"),
                "Compact": (self._compact, "Compaction"),
            },
            "Lease": {
                "LeaseGrant": (self._lease_grant, "LeaseGrant"),
                "LeaseRevoke": (self._lease_revoke, "LeaseRevoke"),
            },
            "Maintenance": {"Status": (self._status, "Status")},
        }
        for service, methods in unary.items():
            table = {name: _unary(function, messages) for name, (function, messages) in methods.items()}
            yield grpc.method_handlers_generic_handler(f"etcdserverpb.{service}", table)
        watch = grpc.stream_stream_rpc_method_handler(
            self._watch,
            request_deserializer=rpc.WatchRequest.FromString,
            response_serializer=rpc.WatchResponse.SerializeToString,
        )
        yield grpc.method_handlers_generic_handler("etcdserverpb.Watch", {"Watch": watch})

    async def _range(self, request: Any) -> Any:
        self.asked.ranges.append(request)
        self.ranges_in_flight += 1
        self._tell()
        try:
            await self._ranges_open.wait()
        finally:
            self.ranges_in_flight -= 1
        if self._range_failures:
            failure = self._range_failures.pop(0)
            raise RefusedError(failure.code, failure.details)
        if not request.serializable:
            self._check_leader()
        return self._read(request)

    def _read(self, request: Any) -> Any:
        if not request.key:
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, EMPTY_KEY)
        revision = request.revision if request.revision > 0 else self.store.now
        if request.revision > 0:
            self.store.check_readable(revision)
        found = self.store.range(request.key, request.range_end, revision)
        answer = rpc.RangeResponse(header=self.header(), count=len(found))
        if not request.count_only:
            kept = [kv for kv in found if _passes(kv, request)]
            page = kept[: request.limit] if request.limit else kept
            answer.more = len(page) < len(kept)
            answer.kvs.extend(_without_value(kv) if request.keys_only else kv for kv in page)
        return answer

    async def _put(self, request: Any) -> Any:
        self._check_leader()
        answer = self._write_put(request)
        self._commit()
        answer.header.CopyFrom(self.header())
        return answer

    def _write_put(self, request: Any) -> Any:
        if not request.key:
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, EMPTY_KEY)
        if request.lease and request.lease not in self._leases:
            raise RefusedError(grpc.StatusCode.NOT_FOUND, NO_LEASE)
        before = self.store.put(request.key, request.value, request.lease)
        return rpc.PutResponse(prev_kv=before if request.prev_kv else None)

    async def _delete_range(self, request: Any) -> Any:
        self._check_leader()
        answer = self._write_delete(request)
        self._commit()
        answer.header.CopyFrom(self.header())
        return answer

    def _write_delete(self, request: Any) -> Any:
        if not request.key:
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, EMPTY_KEY)
        gone = self.store.delete(request.key, request.range_end)
        return rpc.DeleteRangeResponse(deleted=len(gone), prev_kvs=gone if request.prev_kv else [])

    async def _txn(self, request: Any) -> Any:
        self._check_leader()
        for branch in (request.success, request.failure):
            _check_distinct(branch)
        succeeded, responses = self._decide(request)
        self._commit()
        return rpc.TxnResponse(header=self.header(), succeeded=succeeded, responses=responses)

    def _decide(self, request: Any) -> tuple[bool, list[Any]]:
        succeeded = all(map(self._holds, request.compare))
        return succeeded, [self._operate(op) for op in (request.success if succeeded else request.failure)]

    def _operate(self, op: Any) -> Any:
        kind = op.WhichOneof("request")
        if kind == "request_put":
            return rpc.ResponseOp(response_put=self._write_put(op.request_put))
        if kind == "request_delete_range":
            return rpc.ResponseOp(response_delete_range=self._write_delete(op.request_delete_range))
        if kind == "request_range":
            return rpc.ResponseOp(response_range=self._read(op.request_range))
        # Inside a nested transaction, etcd does not refuse a second write of a key.
        succeeded, responses = self._decide(op.request_txn)
        return rpc.ResponseOp(response_txn=rpc.TxnResponse(succeeded=succeeded, responses=responses))

    def _holds(self, compare: Any) -> bool:
        found = self.store.range(compare.key, compare.range_end, self.store.revision)
        if not found and TARGETS[compare.target] == "value":
            return False  # as in etcd: an absent key has no value to compare
        absent = rpc.KeyValue()
        return all(_compare(compare, kv) for kv in found or [absent])

    async def _compact(self, request: Any) -> Any:
        self._check_leader()
        self.compact(request.revision)
        return rpc.CompactionResponse(header=self.header())

    async def _lease_grant(self, request: Any) -> Any:
        lease = request.ID or max(self._leases, default=0x1EA5E) + 1
        if lease in self._leases:
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, LEASE_EXISTS)
        return rpc.LeaseGrantResponse(header=self.header(), ID=self.grant(lease, request.TTL), TTL=request.TTL)

    async def _lease_revoke(self, request: Any) -> Any:
        if request.ID not in self._leases:
            raise RefusedError(grpc.StatusCode.NOT_FOUND, NO_LEASE)
        self.expire(request.ID)
        return rpc.LeaseRevokeResponse(header=self.header())

    async def _status(self, _request: Any) -> Any:
        self.asked.statuses += 1
        self._tell()
        if self.refuse_status is not None:
            raise RefusedError(self.refuse_status, "etcdserver: the status is not told")
        leader = self.member_id if self._leader else 0
        return rpc.StatusResponse(
            header=self.header(),
            version=self.version,
            leader=leader,
            raftTerm=self.raft_term,
            raftAppliedIndex=self.applied,
            raftIndex=self.applied if self.committed is None else self.committed,
        )

    def _check_leader(self) -> None:
        if not self._leader:
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, NO_LEADER)

    async def _watch(self, requests: AsyncIterator[Any], context: Any) -> None:
        call = WatchCall(self, {str(key): str(value) for key, value in context.invocation_metadata()})
        self.calls.add(call)
        self.asked.streams += 1
        if not self._leader and call.metadata.get("hasleader") == "true":
            call.stop(grpc.StatusCode.UNAVAILABLE, NO_LEADER)
        reading = asyncio.create_task(self._listen(call, requests))
        self._tell()
        try:
            await self._speak(call, context)
        finally:
            self.calls.discard(call)
            reading.cancel()
            self._tell()

    async def _listen(self, call: WatchCall, requests: AsyncIterator[Any]) -> None:
        try:
            async for request in requests:
                call.handle(request)
                self._tell()
            # etcd ignores a half-close: the call goes on.
        except Exception as error:
            call.stop(grpc.StatusCode.INTERNAL, repr(error))  # a defect of the fake must not look like silence

    async def _speak(self, call: WatchCall, context: Any) -> None:
        while True:
            answer = await call.answers.get()
            if isinstance(answer, Break):
                await context.abort(answer.code, answer.details)
            await context.write(answer)


def _unary(function: Callable[[Any], Any], messages: str) -> grpc.RpcMethodHandler[Any, Any]:
    async def call(request: Any, context: Any) -> Any:
        try:
            return await function(request)
        except RefusedError as refused:
            await context.abort(refused.code, refused.details)

    return grpc.unary_unary_rpc_method_handler(
        call,
        request_deserializer=getattr(rpc, f"{messages}Request").FromString,
        response_serializer=getattr(rpc, f"{messages}Response").SerializeToString,
    )


def _passes(kv: Any, request: Any) -> bool:
    """Whether a key passes the filters of a Range; the Range's count ignores these filters."""
    return bool(
        kv.mod_revision >= request.min_mod_revision
        and (not request.max_mod_revision or kv.mod_revision <= request.max_mod_revision)
        and kv.create_revision >= request.min_create_revision
        and (not request.max_create_revision or kv.create_revision <= request.max_create_revision)
    )


def _without_value(kv: Any) -> Any:
    bare = rpc.KeyValue()
    bare.CopyFrom(kv)
    bare.value = b""
    return bare


def _check_distinct(operations: Iterable[Any]) -> None:
    """Refuse two puts of one key in one transaction."""
    written: set[bytes] = set()
    for op in operations:
        if op.WhichOneof("request") != "request_put":
            continue
        if op.request_put.key in written:
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, DUPLICATE_KEY)
        written.add(op.request_put.key)


def _compare(compare: Any, kv: Any) -> bool:
    target = TARGETS[compare.target]
    return COMPARE[compare.result](getattr(kv, target), getattr(compare, target))
