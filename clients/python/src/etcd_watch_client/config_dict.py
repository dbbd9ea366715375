"""A mirror for code without asyncio: a thread follows the keys, and any thread may read them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, ItemsView, Iterator, Mapping, Sequence, ValuesView
from concurrent.futures import FIRST_COMPLETED, Future, wait
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

from .changes import Change, Changes
from .mirror import Mirror
from .options import Options, check
from .replica import State
from .selection import Name

K = TypeVar("K", bound=str | bytes)
V = TypeVar("V")
T = TypeVar("T")


_NOT_BEGUN = "the ConfigDict does not run; use `with`, or call start()"
_CLOSED = "the ConfigDict is closed"
_FORKED = "the process was forked, and threads do not follow: make another ConfigDict after the fork"
_started: weakref.WeakValueDictionary[int, ConfigDict[Any, Any]] = weakref.WeakValueDictionary()
_held: list[ConfigDict[Any, Any]] = []  # while the process forks


class _ClosedError(RuntimeError):
    """The thread has ended, or has not begun."""


def _hold() -> None:
    """No mapping may be between two revisions while the process forks: in the child it would stay so for ever."""
    for each in list(_started.values()):
        each._lock.acquire()  # noqa: SLF001 - held for a moment by whoever has it
        _held.append(each)


def _release() -> None:
    while _held:
        _held.pop()._lock.release()  # noqa: SLF001


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_release)


class ConfigDict(Mapping[K, V]):
    """``with ConfigDict("http://127.0.0.1:8080", "/config/") as config: config["/config/a"]``.

    The arguments are those of `Mirror`. ``start`` waits until the mirror is live, at most ``timeout`` seconds. If
    ``resume`` names a file that has a mirror, ``start`` does not wait: the mirror is usable at once, and stale. `copy`,
    `items` and `values` are of one revision. But ``dict(config)`` reads each value after the keys, and raises KeyError
    for one that is deleted meanwhile. Callbacks run in the thread of this object.
    """

    @overload
    def __init__(
        self: ConfigDict[str, str],
        gateways: str | Sequence[str],
        *prefixes: Name,
        binary: Literal[False] = ...,
        keys_only: Literal[False] = ...,
        decode: None = ...,
        timeout: float = ...,
        **options: Unpack[Options],
    ) -> None: ...

    @overload
    def __init__(
        self: ConfigDict[str, V],
        gateways: str | Sequence[str],
        *prefixes: Name,
        binary: Literal[False] = ...,
        keys_only: Literal[False] = ...,
        decode: Callable[[bytes], V],
        timeout: float = ...,
        **options: Unpack[Options],
    ) -> None: ...

    @overload
    def __init__(
        self: ConfigDict[bytes, bytes],
        gateways: str | Sequence[str],
        *prefixes: Name,
        binary: Literal[True],
        keys_only: Literal[False] = ...,
        decode: None = ...,
        timeout: float = ...,
        **options: Unpack[Options],
    ) -> None: ...

    @overload
    def __init__(
        self: ConfigDict[bytes, V],
        gateways: str | Sequence[str],
        *prefixes: Name,
        binary: Literal[True],
        keys_only: Literal[False] = ...,
        decode: Callable[[bytes], V],
        timeout: float = ...,
        **options: Unpack[Options],
    ) -> None: ...

    @overload
    def __init__(
        self: ConfigDict[str, None],
        gateways: str | Sequence[str],
        *prefixes: Name,
        binary: Literal[False] = ...,
        keys_only: Literal[True],
        decode: None = ...,
        timeout: float = ...,
        **options: Unpack[Options],
    ) -> None: ...

    @overload
    def __init__(
        self: ConfigDict[bytes, None],
        gateways: str | Sequence[str],
        *prefixes: Name,
        binary: Literal[True],
        keys_only: Literal[True],
        decode: None = ...,
        timeout: float = ...,
        **options: Unpack[Options],
    ) -> None: ...

    def __init__(self, gateways: str | Sequence[str], *prefixes: Name, timeout: float = 30.0, **options: Any) -> None:
        check({**options, "timeout": timeout}, own=["timeout"])
        self._mirror: Mirror[K, V] = Mirror(gateways, *prefixes, **options)
        self._timeout = timeout
        self._lock = threading.RLock()  # re-entrant: a callback may read
        self._mirror._guard = self._lock  # noqa: SLF001 - the mirror's own room
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._closing = False
        self._over: Future[None] = Future()  # done when the thread has ended
        self._process = os.getpid()

    # --- the mapping --------------------------------------------------------------------------------------------------

    def __getitem__(self, key: K) -> V:
        with self._lock:
            return self._begun[key]

    def __iter__(self) -> Iterator[K]:
        with self._lock:
            return iter(list(self._begun))

    def __len__(self) -> int:
        return len(self._begun)

    def __bool__(self) -> bool:
        return True  # a config without keys is a config

    def __contains__(self, key: object) -> bool:
        return key in self._begun

    def __repr__(self) -> str:
        return f"<ConfigDict: {self.state}, {len(self._mirror)} keys at revision {self.revision}>"

    def items(self) -> ItemsView[K, V]:
        """Return the keys and values at one revision. `Mapping` reads each value later, when its key may be deleted."""
        return self.copy().items()

    def values(self) -> ValuesView[V]:
        """Return the values at one revision."""
        return self.copy().values()

    def copy(self) -> dict[K, V]:
        """Return all keys and values at one revision."""
        with self._lock:
            return dict(self._begun)

    @property
    def _begun(self) -> Mirror[K, V]:
        """The mirror, once the thread was started. Before that every key would be missing, without a reason."""
        if self._thread is None:
            raise _ClosedError(_NOT_BEGUN)
        return self._mirror

    # --- what is known about it ---------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The revision at which the mapping is exact."""
        return self._mirror.revision

    @property
    def state(self) -> State:
        """``connecting``, ``live``, ``stale`` or ``closed``; see `Mirror`."""
        return "closed" if self._is_forked else self._mirror.state

    @property
    def reason(self) -> str:
        """Why the mapping is not live; empty if it is."""
        return _FORKED if self._is_forked else self._mirror.reason

    @property
    def ranges(self) -> tuple[str, ...]:
        """What the gateway follows for this mapping; see `Mirror`."""
        return self._mirror.ranges

    @property
    def age(self) -> float | None:
        """For how many seconds the mapping is not proven to be current; None if it never was."""
        return self._mirror.age

    def synced(self, timeout: float | None = None) -> None:
        """Wait until the mapping is live. Raise what ended it, or TimeoutError with the reason."""
        self._call(self._mirror.synced(timeout))

    def changes(self) -> Iterator[Change[K, V]]:
        """Return an iterator of the changes from now on, which waits for each. It ends when the mapping is closed."""

        async def reader() -> Changes[K, V]:
            return self._mirror.changes()

        return self._each(self._call(reader()))

    def _each(self, changes: Changes[K, V]) -> Iterator[Change[K, V]]:
        async def following() -> Change[K, V] | None:
            return await anext(changes, None)

        while not self._over.done():
            try:
                change = self._call(following())
            except _ClosedError:
                return
            if change is None:
                return
            yield change

    def until(self, condition: Callable[[Mirror[K, V]], object], timeout: float | None = None) -> None:
        """Wait until ``condition(mirror)`` is true; see `Mirror.until`. The condition runs in the thread."""
        self._call(self._mirror.until(condition, timeout))

    # --- running ------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start the thread, and wait for the state."""
        if self._thread is not None:
            msg = "a ConfigDict starts once; make another one"
            raise RuntimeError(msg)
        ready: Future[None] = Future()
        self._process = os.getpid()
        _started[id(self)] = self
        self._thread = threading.Thread(target=self._live, args=[ready], name="etcd-watch", daemon=True)
        self._thread.start()
        try:
            ready.result()
            if not self.revision:
                self.synced(self._timeout)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End the thread. Idempotent. The last state can still be read."""
        if self._thread is None or self._is_forked:
            return
        self._closing = True  # for a thread that has no loop yet
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, maybe by another thread a moment ago
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _is_forked(self) -> bool:
        return self._thread is not None and self._process != os.getpid()

    def _live(self, ready: Future[None]) -> None:
        main = self._run(ready)
        try:
            asyncio.run(main)
        except OSError as error:  # there is no descriptor left for the loop
            if ready.done():
                raise
            ready.set_exception(error)
        finally:
            main.close()
            self._over.set_result(None)

    async def _run(self, ready: Future[None]) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if self._closing:
            self._stop.set()
        try:
            async with self._mirror:
                ready.set_result(None)
                await self._stop.wait()
        except Exception as error:  # the mirror keeps it: `synced` and `until` raise it
            if not ready.done():
                ready.set_exception(error)

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._is_forked or self._loop is None or self._loop.is_closed():
            coroutine.close()
            msg = _FORKED if self._is_forked else _CLOSED if self._loop or self._over.done() else _NOT_BEGUN
            raise _ClosedError(msg)
        if self._thread is threading.current_thread():
            coroutine.close()
            msg = "a callback cannot wait for the thread that runs it; wait in another thread"
            raise RuntimeError(msg)
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # another thread has closed the loop a moment ago
            coroutine.close()
            raise _ClosedError(_CLOSED) from None
        # What is scheduled while the loop ends may never run: waiting for it alone was seen to hang.
        either: list[Future[Any]] = [future, self._over]
        wait(either, return_when=FIRST_COMPLETED)
        if future.cancelled() or not future.done():
            coroutine.close()
            raise _ClosedError(_CLOSED)
        return future.result()
