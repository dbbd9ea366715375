"""An always-current mapping of etcd's keys, fed by one task."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import random
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, cast, overload

from . import checkpoint, clock
from .changes import Change, Changes, View
from .checkpoint import Checkpoint
from .credentials import Bearer
from .errors import DecodeError, RefusedError, StreamEnd
from .events import Entry, Message, Status
from .gateways import Gateways
from .options import Options, check, merging
from .replica import OUT_OF_REACH, Commit, Replica, State
from .selection import Name, Selection, to_bytes, to_text
from .tls import Http

K = TypeVar("K", bound=str | bytes)
V = TypeVar("V")

_LOG = logging.getLogger("etcd_watch_client")

_SILENT = 3  # heartbeats without a byte: the connection is dead, even if the system still reports it as open
# Seconds between two writes of the file to resume from: after changes, and when only the revision has moved.
_SAVE_CHANGES = 1.0
_SAVE_PROGRESS = 60.0


class Mirror(Mapping[K, V]):
    """``async with Mirror("http://127.0.0.1:8080", "/config/") as mirror: await mirror.synced()``.

    A mapping of the keys under the prefixes to their values, exact at ``revision``. Several gateways may be given: the
    mirror moves to the next one when one fails. Keys and values are text; bytes that are not UTF-8 become surrogates.
    With ``binary=True`` keys and values are bytes. ``decode=json.loads`` decodes values when they are read.

    ``state`` is ``connecting`` (nothing yet), ``live`` (current), ``stale`` (exact at ``revision``, unproven now) or
    ``closed`` (nothing feeds the mirror any more). ``reason`` says why the mirror is not live.
    """

    @overload
    def __init__(
        self: Mirror[str, str],
        gateways: str | Sequence[str],
        *prefixes: Name,
        binary: Literal[False] = ...,
        keys_only: Literal[False] = ...,
        decode: None = ...,
        **options: Unpack[Options],
    ) -> None: ...

    @overload
    def __init__(
        self: Mirror[str, V],
        gateways: str | Sequence[str],
        *prefixes: Name,
        binary: Literal[False] = ...,
        keys_only: Literal[False] = ...,
        decode: Callable[[bytes], V],
        **options: Unpack[Options],
    ) -> None: ...

    @overload
    def __init__(
        self: Mirror[bytes, bytes],
        gateways: str | Sequence[str],
        *prefixes: Name,
        binary: Literal[True],
        keys_only: Literal[False] = ...,
        decode: None = ...,
        **options: Unpack[Options],
    ) -> None: ...

    @overload
    def __init__(
        self: Mirror[bytes, V],
        gateways: str | Sequence[str],
        *prefixes: Name,
        binary: Literal[True],
        keys_only: Literal[False] = ...,
        decode: Callable[[bytes], V],
        **options: Unpack[Options],
    ) -> None: ...

    @overload
    def __init__(
        self: Mirror[str, None],
        gateways: str | Sequence[str],
        *prefixes: Name,
        binary: Literal[False] = ...,
        keys_only: Literal[True],
        decode: None = ...,
        **options: Unpack[Options],
    ) -> None: ...

    @overload
    def __init__(
        self: Mirror[bytes, None],
        gateways: str | Sequence[str],
        *prefixes: Name,
        binary: Literal[True],
        keys_only: Literal[True],
        decode: None = ...,
        **options: Unpack[Options],
    ) -> None: ...

    def __init__(
        self,
        gateways: str | Sequence[str],
        *prefixes: Name,
        binary: bool = False,
        keys_only: bool = False,
        decode: Callable[[bytes], Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        check({**options, "decode": decode})
        self._selection = Selection.of(
            prefixes, options.get("keys", ()), keys_only=keys_only, permitted=options.get("permitted", False)
        )
        self._min_revision = options.get("min_revision", 0)
        resume = options.get("resume")
        self._resume = None if resume is None else Path(resume)
        self._on_change = options.get("on_change")
        self._on_state = options.get("on_state")
        self._decode: Callable[[bytes], Any] = decode or (bytes if binary else to_text)
        self._view: View[K, V] = View(cast("Callable[[bytes], K]", bytes if binary else to_text), self._value)

        self._replica = Replica()
        self._decoded: dict[bytes, tuple[Entry, V]] = {}
        self._draw = random.random
        self._clock = clock.now
        self._wall = time.time
        self._gateways = Gateways(
            gateways,
            self._selection.query + merging(options.get("latest")),
            options.get("format", "ndjson"),
            Bearer(options.get("token")),
            Http(options.get("ca"), options.get("cert"), options.get("key"), options.get("transport")),
            age=lambda: self.age,
            clock=lambda: self._clock(),
            draw=lambda: self._draw(),
        )
        self._heard = 0.0  # when the stream's last byte came
        self._proven: float | None = None  # when the mirror was last known to be current
        self._commits = 0  # with the cursor this tells states apart: a restore may come to the same revision
        self._saved: tuple[float, tuple[int, str]] = (0.0, (-1, ""))  # when the mirror was last saved, and which state
        self._saving: asyncio.Future[None] | None = None
        self._told: tuple[State, str, int] = ("connecting", "", 0)  # what `on_state` has been told
        self._unhandled = False  # `on_change` has not returned yet
        self._awaits = False  # `on_change` is a coroutine function
        self._guard: contextlib.AbstractContextManager[object] = contextlib.nullcontext()  # held while it changes
        self._task: asyncio.Task[None] | None = None
        self._ended = ""
        self._error: Exception | None = None
        self._raised = False
        self._readers: weakref.WeakSet[Changes[K, V]] = weakref.WeakSet()
        self._waiters: list[tuple[Callable[[Mirror[K, V]], object], asyncio.Future[None]]] = []

    # --- the mapping --------------------------------------------------------------------------------------------------

    def __getitem__(self, key: K) -> V:
        return self._value(self.entry(key))

    def __iter__(self) -> Iterator[K]:
        return map(self._view.key, self._replica.entries)

    def __len__(self) -> int:
        return len(self._replica.entries)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, self._key_type) and to_bytes(key) in self._replica.entries

    def __bool__(self) -> bool:
        return True  # a mirror of no keys is a mirror

    def __repr__(self) -> str:
        return f"<Mirror of {self._selection.query}: {self.state}, {len(self)} keys at revision {self.revision}>"

    def entry(self, key: K) -> Entry:
        """Return a key's value as bytes, its revisions, its version and its lease. Raise KeyError without the key."""
        if not isinstance(key, self._key_type):
            raise KeyError(key)
        try:
            return self._replica.entries[to_bytes(key)]
        except KeyError:
            raise KeyError(key) from None

    @property
    def _key_type(self) -> type[str] | type[bytes]:
        return bytes if self._view.key is bytes else str

    def _value(self, entry: Entry) -> V:
        if entry.value is None:
            return cast("V", None)
        known = self._decoded.get(entry.key)
        if known is not None and known[0] is entry:
            return known[1]
        try:
            value: V = self._decode(entry.value)
        except Exception as error:
            raise DecodeError(self._view.key(entry.key), entry.mod_revision, error) from error
        if self._replica.entries.get(entry.key) is entry:
            self._decoded[entry.key] = entry, value
        return value

    # --- what is known about it ---------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The revision at which the mapping is exact."""
        return self._replica.revision

    @property
    def ranges(self) -> tuple[str, ...]:
        """What the gateway follows for this mirror, like ``prefix=/config/``; empty before the first state."""
        return self._replica.ranges

    @property
    def cursor(self) -> str:
        """Where the next stream continues."""
        return self._replica.cursor

    @property
    def state(self) -> State:
        """``connecting``, ``live``, ``stale`` or ``closed``."""
        if self._ended:
            return "closed"
        return "stale" if self._replica.state == "live" and self._is_silent() else self._replica.state

    @property
    def reason(self) -> str:
        """Why the mirror is not live; empty if it is."""
        if self._ended:
            return self._ended
        return "silent" if self._replica.state == "live" and self._is_silent() else self._replica.reason

    @property
    def age(self) -> float | None:
        """For how many seconds the mapping is not proven to be current; None if it never was."""
        return None if self._proven is None else self._clock() - self._proven

    @property
    def error(self) -> Exception | None:
        """What ended the mirror; None while the mirror runs, or if it was closed."""
        return self._error

    def _is_silent(self) -> bool:
        # The mirror's own task notices a silence; but the task may be kept from running by code that blocks.
        return self._clock() - self._heard > self._silence_timeout()

    def _silence_timeout(self) -> float:
        return _SILENT * self._replica.heartbeat

    # --- waiting ------------------------------------------------------------------------------------------------------

    async def synced(self, timeout: float | None = None) -> None:
        """Wait until the mirror is live. Raise what ended the mirror, or TimeoutError with the reason."""
        try:
            async with asyncio.timeout(timeout):
                while self.state != "live":  # also if it was, and the gateway says at once that etcd is out of reach
                    await self.until(lambda mirror: mirror.state == "live")
        except TimeoutError:
            raise self._given_up(timeout) from None

    async def until(self, condition: Callable[[Mirror[K, V]], object], timeout: float | None = None) -> None:
        """Wait until ``condition(mirror)`` is true. It is asked after each change: no state is skipped."""
        if condition(self):
            return
        self._check()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((condition, waiter))
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            if waiter.done() and not waiter.cancelled():
                raise  # the condition itself raised it
            raise self._given_up(timeout) from None
        finally:
            self._waiters = [one for one in self._waiters if one[1] is not waiter]

    def _given_up(self, timeout: float | None) -> TimeoutError:
        why = f" ({self.reason})" if self.reason else ""
        return TimeoutError(f"gave up after {timeout:g} s: the mirror is {self.state}{why}")

    def changes(self) -> Changes[K, V]:
        """Return an async iterator of the changes from now on; before `synced`, the first one is the whole state."""
        changes = Changes(self._view)
        self._readers.add(changes)
        if self._ended:
            changes.end(self._error)
        return changes

    def _check(self) -> None:
        if self._error is not None:
            self._raised = True
            raise self._error
        if self._task is None or self._ended:
            msg = "the mirror is closed" if self._ended else "the mirror does not run; use `async with`"
            raise RuntimeError(msg)

    # --- running ------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._task is not None:
            msg = "a mirror runs once; make another one"
            raise RuntimeError(msg)
        if self._resume is not None:
            await asyncio.to_thread(self._resume.parent.mkdir, parents=True, exist_ok=True)
            found = await asyncio.to_thread(checkpoint.load, self._resume, self._selection.query)
            if found is not None:
                self._replica.restore(*found)
        self._task = asyncio.create_task(self._run(), name=f"mirror of {self._selection.query}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._ended:  # the task was cancelled before its first step
            self._end("closed", None)
        if self._error is not None and not self._raised and error is None:
            raise self._error

    async def _run(self) -> None:
        try:
            while True:
                wait = await self._follow()
                await asyncio.sleep(wait)
        except Exception as error:  # whatever it is, nothing feeds the mirror any more
            self._end(str(error) or repr(error), error)
        except BaseException:
            self._end("closed", None)
            raise
        finally:
            await self._gateways.aclose()
            if self._saving is not None:
                await asyncio.wait([self._saving])  # the next process must not read the file before it is written
            await self._save(0)

    async def _follow(self) -> float:
        """Follow one stream to its end. Return the seconds to wait before the next one."""
        replica = self._replica
        least = self._min_revision if replica.revision < self._min_revision else 0
        stream = self._gateways.stream(replica.cursor, least, self._silence_timeout)
        fed = self._clock()  # when this stream was last not known to be cut off from etcd
        waiting: float | None = None  # since when nothing has come
        try:
            async with contextlib.aclosing(stream):
                async for received in stream:
                    if waiting is not None and self._clock() - waiting > self._silence_timeout():
                        raise StreamEnd("silent")  # what comes may be as old: the machine may have slept
                    self._heard = self._clock()
                    for message in received:
                        with self._guard:
                            commit = replica.take(message)
                        self._look_back(message)
                        await self._apply(commit)
                    self._tell_state()  # any bytes end a silence, also if no event is complete
                    waiting = self._clock()
                    if replica.reason != OUT_OF_REACH:
                        fed = waiting
                    elif self._gateways.several and self._clock() - fed > self._silence_timeout():
                        raise StreamEnd(OUT_OF_REACH)  # another gateway may reach etcd
        except StreamEnd as end:
            why, wait = self._gateways.leave(end)
            replica.break_off(why)
            self._tell_state()
            return wait
        raise AssertionError

    def _look_back(self, message: Message) -> None:
        """The gateway may say late that etcd has proven nothing, also of a state that it has just sent."""
        event = message.event
        if isinstance(event, Status) and event.stale and self._replica.synced:
            age = event.age
            if age is None and event.since is not None:
                age = max(0.0, self._wall() - event.since)
            if age is not None:
                proven = self._heard - age
                self._proven = proven if self._proven is None else min(self._proven, proven)

    async def _apply(self, commit: Commit | None) -> None:
        if self._replica.synced:
            self._min_revision = 0  # it is reached; after a restore it may never be again
        if self._replica.state == "live":
            self._proven = self._heard  # not now: `on_change` may have taken its time since the event came
            self._gateways.succeed()
        if commit is not None:
            await self._tell_change(commit)
        self._tell_state()
        await self._save(_SAVE_PROGRESS if commit is None else 0 if self._awaits else _SAVE_CHANGES)

    async def _tell_change(self, commit: Commit) -> None:
        self._commits += 1
        for key in commit.updates:
            self._decoded.pop(key, None)
        for reader in self._readers:
            reader.put(commit)
        self._ask_waiters()
        if self._on_change is not None:
            self._unhandled = True
            result = self._on_change(Change(commit, self._view))
            if inspect.isawaitable(result):
                self._awaits = True
                await result
            self._unhandled = False

    def _tell_state(self) -> None:
        told, self._told = self._told, (self.state, self.reason, self.revision)
        if told != self._told:
            self._ask_waiters()
            if self._on_state is not None:
                self._on_state(self)

    def _ask_waiters(self) -> None:
        for condition, waiter in self._waiters:
            if waiter.done():
                continue
            try:
                if condition(self):
                    waiter.set_result(None)
            except Exception as error:  # the waiter gets it
                waiter.set_exception(error)

    def _end(self, why: str, error: Exception | None) -> None:
        """From here on nothing feeds the mirror."""
        self._replica.break_off(why)
        self._ended, self._error = why, error
        for reader in self._readers:
            reader.end(error)
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error or RuntimeError("the mirror is closed"))
                self._raised = error is not None
        if isinstance(error, RefusedError) and self._on_state is not None:
            self._on_state(self)

    async def _save(self, interval: float) -> None:
        """Keep the mirror on disk. A change that ``on_change`` has not handled is not kept: it comes again."""
        replica, (when, saved) = self._replica, self._saved
        state = self._commits, replica.cursor
        if self._resume is None or self._unhandled or not replica.resumable:
            return
        if saved == state and not self._save_failed:
            return
        if self._clock() - when >= interval:
            self._saved = self._clock(), state
            kept = Checkpoint(dict(replica.entries), replica.revision, replica.cursor, replica.ranges)
            saving = asyncio.to_thread(checkpoint.save, self._resume, self._selection.query, kept)
            self._saving = asyncio.ensure_future(saving)
            try:
                await asyncio.shield(self._saving)
            except OSError as error:
                # Without the file, a handler that is awaited would get handled changes again, or lose some. Others
                # only start from an older state: a full disk must not end the mirror of a running program.
                if self._awaits and not self._ended:
                    raise
                _LOG.warning("the mirror is not kept in %s: %s", self._resume, error)

    @property
    def _save_failed(self) -> bool:
        saving = self._saving
        return saving is not None and saving.done() and (saving.cancelled() or saving.exception() is not None)
