"""The reference client of etcd-watch-gateway in Python: an exact mirror of a prefix, or of several ranges at once.

Needs Python 3.11 or newer, and httpx (pip install httpx).

python mirror.py http://127.0.0.1:8080 /svc/              # prints the changes
python mirror.py http://127.0.0.1:8080 /svc/ /config/     # of both prefixes, in one order

mirror = Mirror("http://127.0.0.1:8080", "/svc/", onchange=lambda mirror, changes: ...)
mirror = Mirror("http://127.0.0.1:8080", ["/svc/", "/config/"], keys=["/leader"], onchange=...)
following = asyncio.create_task(mirror.run())             # keep the task and check it: it ends when cancelled or failed
"""

from __future__ import annotations

import sys

# asyncio.timeout needs 3.11. No syntax below is newer than Python 3.8, so that an older Python can run this check.
if sys.version_info < (3, 11):  # noqa: UP036 - a copy of this file may run on any Python
    raise ImportError(f"mirror.py needs Python 3.11 or newer; this is {sys.version_info[0]}.{sys.version_info[1]}")

import asyncio
import contextlib
import json
import os
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn
from urllib.parse import quote

import httpx

Item = dict[str, Any]

MEDIA_TYPE = "application/x-ndjson"
LONGEST_WAIT = 300.0  # seconds; the gateway never asks for more


class RefusedError(Exception):
    """The gateway refuses, and would refuse a retry: ``problem`` is its RFC 9457 problem."""

    def __init__(self, status: int, problem: Item) -> None:
        self.status, self.problem = status, problem
        self.code, self.detail = str(problem["code"]), str(problem.get("detail", ""))
        super().__init__(f"HTTP {status} {self.code}: {self.detail}")


class _StreamEnd(Exception):  # noqa: N818 - a stream's end is not an error: the mirror reconnects
    """Why a stream ended, and the seconds that the gateway asked the client to wait."""

    def __init__(self, reason: str, wait: float = 0) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


def elapsed() -> float:
    """Return the seconds of a clock that nobody sets, and that goes on while the machine sleeps."""
    # Linux' monotonic clock stands still then, and so does Python's on macOS. The one of Windows goes on.
    clock = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def identity(item: Item) -> tuple[str, str]:
    """Return a key's identity: its text and its encoding, because keys that are not UTF-8 come as base64."""
    return item["key"], item.get("key_encoding", "text")


def _text(value: object) -> bool:
    return isinstance(value, str)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < 1e15  # an upper bound that a timer accepts


def _revision(value: object) -> bool:
    return isinstance(value, int)


# The members without which an event cannot be applied. Event types that are not listed are ignored.
_MEMBERS: dict[str, dict[str, Callable[[object], bool]]] = {
    "reset": {"reason": _text},
    "put": {"key": _text, "mod_revision": _revision},
    "delete": {"key": _text, "mod_revision": _revision},
    "synced": {"revision": _revision, "heartbeat": _number},
    "bookmark": {"revision": _revision, "state": _text},
    "status": {"state": _text},
    "close": {"reason": _text, "retry_ms": _number},
}


def parse(line: bytearray) -> Item:
    """Return one complete event. An event that failed while it is applied would corrupt the mirror."""
    try:
        event: Item = json.loads(line)
        members = _MEMBERS.get(event["type"], {})
        optional = [event[name] for name in ("cursor", "key_encoding") if name in event]
        if all(map(_text, optional)) and all(is_fit(event[name]) for name, is_fit in members.items()):
            return event
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise _StreamEnd(f"not an event of the gateway: {line[:200].decode(errors='replace')}")


def _media_type(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


async def _refusal(response: httpx.Response) -> RefusedError | _StreamEnd:
    """Return what an answer that is not a stream means. Only a 4xx or 501 problem is final: a proxy may recover."""
    status, body = response.status_code, b""
    after = response.headers.get("retry-after", "")
    wait = float(after) if after.isdecimal() else 0
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > 65_536:
            break
    if _media_type(response) == "application/problem+json":
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
            refused = RefusedError(status, json.loads(body))
            final = (400 <= status < 500 and status not in (408, 429)) or status == httpx.codes.NOT_IMPLEMENTED
            return refused if final else _StreamEnd(str(refused), wait)
    place = f" to {response.headers['location']}" if "location" in response.headers else ""
    said = " ".join(body[:1000].decode(errors="replace").split())[:200]
    kind = _media_type(response) or "without a content type"
    return _StreamEnd(f"HTTP {status}{place}, {kind}, not the gateway's stream: {said}", wait)


def _names(given: object) -> list[str | bytes]:
    """Return one name, or several, as a list."""
    names = given if isinstance(given, Sequence) and not isinstance(given, (str, bytes)) else [given]
    for name in names:
        if not isinstance(name, (str, bytes)):
            raise TypeError(f"{name!r} is not a prefix or a key; pass text or bytes, or a list of them")
    return list(names)


class Mirror:
    """A mirror of a prefix, or of several ranges: ``items`` is exact at ``revision``, never between two revisions.

    ``prefix`` is one prefix or a sequence of prefixes; ``keys`` are single keys beside them.

    ``state`` is ``connecting`` (no items yet), ``live`` (current), or ``stale`` (exact at ``revision``, unproven now).
    ``reason`` says why the mirror is not live: why the last stream ended, or what ended ``run``.
    ``onchange`` gets the puts and deletes since its last call, also across a reset; none if only the state changed.
    """

    def __init__(
        self,
        base: str,
        prefix: str | bytes | Sequence[str | bytes],
        *,
        keys: Sequence[str | bytes] = (),
        onchange: Callable[[Mirror, list[Item]], None] = lambda _mirror, _changes: None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.items: dict[tuple[str, str], Item] = {}
        self.revision = 0
        self.cursor = ""
        if not str(base).startswith(("http://", "https://")):
            raise ValueError(f"{base!r} is not the URL of a gateway; write http://HOST:PORT or https://HOST")
        ranges = [("prefix", name) for name in _names(prefix)] + [("key", name) for name in _names(keys)]
        if not ranges:
            raise ValueError('name a prefix or a key; the prefix "" means all keys')
        asked = "".join(f"&{kind}={quote(name, safe='')}" for kind, name in ranges)
        self._url = f"{base.rstrip('/')}/v1/watch?format=ndjson{asked}"
        self._onchange = onchange
        self._headers = headers
        self._heartbeat = 15.0
        self._failures = 0
        self._why = ""  # why the last stream ended, or the last reset
        self._live = False
        self._heard = elapsed()  # when the stream last gave a sign of life
        self._forget_stream()

    @property
    def state(self) -> Literal["connecting", "live", "stale"]:
        """What may be relied on; see the class."""
        return "live" if self._live and not self._is_silent() else "stale" if self.revision else "connecting"

    @property
    def reason(self) -> str:
        """Why the mirror is not live; empty if it is."""
        if self._live:
            return "silent" if self._is_silent() else ""
        return self._doubt or self._why

    def _is_silent(self) -> bool:
        return elapsed() - self._heard > 3 * self._heartbeat

    def _forget_stream(self) -> None:
        """Discard what a stream leaves unfinished: it comes again, complete."""
        self._next: dict[tuple[str, str], Item] | None = None  # the state after a `reset`, built aside until `synced`
        self._pending: list[Item] = []  # the events of a revision whose last event has not come
        self._synced = False
        self._doubt = ""  # why the gateway itself reports this stream as stale

    async def run(self) -> NoReturn:
        """Follow the ranges, one stream after the other, until cancelled.

        Raises:
            RefusedError: the gateway will not serve these ranges.
            Exception: ``onchange`` raised it, or httpx did because the address or a header is invalid.
        """
        try:
            async with httpx.AsyncClient(headers=self._headers, timeout=httpx.Timeout(None)) as client:
                while True:
                    wait = await self._follow(client)
                    await asyncio.sleep(wait)
        except RefusedError as error:
            self._forget_stream()
            self._tell([], str(error))
            raise
        except BaseException as error:
            # From here on nothing updates the mirror. `onchange` is not called: the caller that cancelled the task
            # knows, and an `onchange` that failed must not be called again.
            self._forget_stream()
            self._set_state(f"run() has ended: {error!r}")
            raise

    async def _follow(self, client: httpx.AsyncClient) -> float:
        """Follow one stream to its end. Return the seconds to wait before the next stream."""
        async with contextlib.aclosing(self._lines(client)) as lines:
            try:
                async for line in lines:
                    self._take(parse(line))
            except _StreamEnd as end:  # report stale before the connection is closed, which may take a while
                self._forget_stream()
                self._tell([], end.reason)
                if end.wait > 0:
                    return min(end.wait, LONGEST_WAIT)
        self._failures = min(self._failures + 1, 5)
        return random.uniform(0.1, 1) * min(30.0, 2.0**self._failures)  # noqa: S311 - jitter, not a secret

    async def _lines(self, client: httpx.AsyncClient) -> AsyncGenerator[bytearray, None]:
        """Yield the lines of one stream, then raise _StreamEnd. An error of `onchange` does not pass through here."""
        url = f"{self._url}&last_event_id={quote(self.cursor)}" if self.cursor else self._url
        now = asyncio.get_running_loop().time
        rest = bytearray()
        self._heard = elapsed()
        try:
            # Nothing for 3 heartbeats: the connection is dead, even if the system still reports it as open.
            async with asyncio.timeout(3 * self._heartbeat) as silence, client.stream("GET", url) as response:
                if response.status_code != httpx.codes.OK or _media_type(response) != MEDIA_TYPE:
                    raise await _refusal(response)
                async for chunk in response.aiter_bytes():
                    if self._is_silent():
                        raise _StreamEnd("silent")  # what comes may be as old: the machine may have slept
                    rest += chunk
                    if b"\n" in chunk:
                        # Not aiter_lines(): it also splits at U+2028 and the like, which JSON need not escape.
                        *lines, rest = rest.split(b"\n")
                        silence.reschedule(None)  # not while the caller has the lines, or closes the stream
                        for line in filter(None, lines):
                            yield line
                    self._heard = elapsed()
                    silence.reschedule(now() + 3 * self._heartbeat)
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError):
            raise  # the caller's mistake: an address or a header that cannot be sent
        except TimeoutError:
            raise _StreamEnd("silent") from None
        except httpx.HTTPError as error:
            raise _StreamEnd(str(error) or type(error).__name__) from None
        raise _StreamEnd("disconnected")

    def _take(self, event: Item) -> None:
        self.cursor = event.pop("cursor", self.cursor)
        more = event.pop("more", False)
        kind = event["type"]
        if kind == "reset":
            self._next, self._pending, self._synced = {}, [], False
            self._tell([], f"reset: {event['reason']}")
        elif kind in ("put", "delete") and self._next is not None:
            self._next[identity(event)] = event
        elif kind in ("put", "delete"):
            self._pending.append(event)
            if not more:
                self._commit(event["mod_revision"])
        elif kind == "synced":
            self.revision, self._heartbeat = event["revision"], event["heartbeat"]
            self._synced, self._failures = True, 0
            self._tell(self._swap() if self._next is not None else [])
        elif kind == "bookmark":
            self.revision = event["revision"]
            # `stale` without a `status` before: the cause is this stream, which is behind, and not etcd.
            self._doubt = (self._doubt or "this client is behind") if event["state"] == "stale" else ""
            self._tell([])
        elif kind == "status":
            self._doubt = "etcd is out of reach, or this client is behind" if event["state"] == "stale" else ""
            self._tell([])
        elif kind == "close":
            raise _StreamEnd(event["reason"], event["retry_ms"] / 1000)

    def _commit(self, revision: int) -> None:
        changes, self._pending, self.revision = self._pending, [], revision
        for change in changes:
            if change["type"] == "put":
                self.items[identity(change)] = change
            else:
                self.items.pop(identity(change), None)
        self._tell(changes)

    def _swap(self) -> list[Item]:
        """Replace the state with the new one. Return the differences as changes, deletes first."""
        old, new = self.items, self._next or {}
        self.items, self._next = new, None
        gone = [{**item, "type": "delete"} for key, item in old.items() if key not in new]
        return gone + [item for key, item in new.items() if old.get(key) != item]

    def _set_state(self, why: str | None = None) -> None:
        self._live = self._synced and not self._doubt
        self._why = "" if self._live else self._why if why is None else why

    def _tell(self, changes: list[Item], why: str | None = None) -> None:
        self._set_state(why)
        self._onchange(self, changes)


def main() -> None:
    """Print the changes under the prefixes, and each change of the mirror's state."""
    if len(sys.argv) < 3:
        sys.exit("usage: python mirror.py URL PREFIX..., for example: python mirror.py http://127.0.0.1:8080 /svc/")
    said = ""

    def show(mirror: Mirror, changes: list[Item]) -> None:
        nonlocal said
        lines = [json.dumps(change) for change in changes]
        state = f"# {mirror.state} {mirror.reason}".rstrip()
        if state != said:
            lines.append(f"{state}: {len(mirror.items)} keys at revision {mirror.revision}")
            said = state
        sys.stdout.writelines(f"{line}\n" for line in lines)
        sys.stdout.flush()

    try:
        asyncio.run(Mirror(sys.argv[1], sys.argv[2:], onchange=show).run())
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # `| head` closed the pipe; Python would fail again when it flushes the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (RefusedError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
        sys.exit(f"mirror.py: {error}")


if __name__ == "__main__":
    main()
