"""The reference client of etcd-watch-gateway in Python: an exact mirror of one prefix. Needs httpx and nothing else.

python mirror.py http://127.0.0.1:8080 /svc/              # prints what changes

mirror = Mirror("http://127.0.0.1:8080", "/svc/", onchange=lambda mirror, changes: ...)
following = asyncio.create_task(mirror.run())             # until it is cancelled
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal
from urllib.parse import quote

import httpx

Item = dict[str, Any]


def identity(item: Item) -> tuple[str, str]:
    """Keys that are not UTF-8 come as base64, so a key's identity is its text and its encoding."""
    return item["key"], item.get("key_encoding", "text")


class Mirror:
    """``items`` is exact at ``revision``, never between two revisions; ``state`` tells whether that is now.

    ``connecting``: no items yet. ``live``. ``stale``: exact at ``revision``, unproven now; ``reason`` says why.
    ``onchange`` gets the puts and deletes since its last call, also over a reset; none when only the state moved.
    """

    def __init__(
        self,
        base: str,
        prefix: str | bytes,
        *,
        onchange: Callable[[Mirror, list[Item]], None] = lambda _mirror, _changes: None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.items: dict[tuple[str, str], Item] = {}
        self.revision = 0
        self.cursor = ""
        self.state: Literal["connecting", "live", "stale"] = "connecting"
        self.reason = ""
        self._url = f"{base.rstrip('/')}/v1/watch?format=ndjson&prefix={quote(prefix, safe='')}"
        self._onchange = onchange
        self._headers = headers
        self._heartbeat = 15.0
        self._failures = 0
        self._next: dict[tuple[str, str], Item] | None = None  # the state after a `reset`, built aside until `synced`
        self._pending: list[Item] = []  # the events of a revision whose last one has not come
        self._synced = self._etcd_away = False  # of this stream

    async def run(self) -> None:
        """Follow the prefix for ever, one stream after the other."""
        async with httpx.AsyncClient(headers=self._headers, timeout=httpx.Timeout(None)) as client:
            while True:
                wait: float | None = None
                try:
                    reason, wait = await self._follow(client)
                except TimeoutError:
                    reason = "silent"
                except httpx.TransportError as error:
                    reason = str(error) or type(error).__name__
                # What a stream leaves unfinished is worth nothing: it comes again, whole.
                self._next, self._pending, self._synced, self._etcd_away = None, [], False, False
                self._tell([], reason)
                if wait is None:
                    wait = min(30, 2 ** (self._failures + 1)) * random.uniform(0.1, 1)  # noqa: S311 - jitter, no secret
                    self._failures = min(self._failures + 1, 4)
                await asyncio.sleep(wait)

    async def _follow(self, client: httpx.AsyncClient) -> tuple[str, float | None]:
        """Follow one stream to its end: why it ended, and how long the gateway asked to wait."""
        url = f"{self._url}&last_event_id={self.cursor}" if self.cursor else self._url
        now = asyncio.get_running_loop().time
        rest = b""
        # Nothing for 3 heartbeats: the connection is dead, whatever it says.
        async with asyncio.timeout(3 * self._heartbeat) as silence, client.stream("GET", url) as response:
            if response.status_code != httpx.codes.OK:
                after = response.headers.get("retry-after", "")
                problem = (await response.aread()).decode(errors="replace")[:500]  # RFC 9457, its `detail` says why
                return f"HTTP {response.status_code} {problem}", float(after) if after.isdigit() else None
            async for chunk in response.aiter_bytes():
                # Not aiter_lines(): it also splits at U+2028 and the like, which JSON leaves as they are.
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = json.loads(line)
                    if event["type"] == "close":
                        return event["reason"], event["retry_ms"] / 1000
                    self._take(event)
                silence.reschedule(now() + 3 * self._heartbeat)
        return "disconnected", None

    def _take(self, event: Item) -> None:
        self.cursor = event.pop("cursor", self.cursor)
        more = event.pop("more", False)
        match event["type"]:
            case "reset":
                self._next, self._pending, self._synced = {}, [], False
                self._tell([], f"reset: {event['reason']}")
            case "put" | "delete" if self._next is not None:
                self._next[identity(event)] = event
            case "put" | "delete":
                self._pending.append(event)
                if not more:
                    self._commit(event["mod_revision"])
            case "synced":
                self.revision, self._heartbeat = event["revision"], event["heartbeat"]
                self._synced, self._failures = True, 0
                self._tell(self._swap() if self._next is not None else [])
            case "bookmark" | "status":
                self.revision = event.get("revision", self.revision)
                self._etcd_away = event["state"] == "stale"
                self._tell([])

    def _commit(self, revision: int) -> None:
        changes, self._pending, self.revision = self._pending, [], revision
        for change in changes:
            if change["type"] == "put":
                self.items[identity(change)] = change
            else:
                self.items.pop(identity(change), None)
        self._tell(changes)

    def _swap(self) -> list[Item]:
        """Take the new state whole; what differs is told as changes, deletes first."""
        old, new = self.items, self._next or {}
        self.items, self._next = new, None
        gone = [{**item, "type": "delete"} for key, item in old.items() if key not in new]
        return gone + [item for key, item in new.items() if old.get(key) != item]

    def _tell(self, changes: list[Item], reason: str | None = None) -> None:
        self.state = "stale" if self.revision else "connecting"
        if self._etcd_away:
            self.reason = "etcd is out of reach"
        elif self._synced:
            self.state, self.reason = "live", ""
        elif reason is not None:
            self.reason = reason
        self._onchange(self, changes)


def main() -> None:
    """Print what changes under a prefix, and each turn of the mirror's state."""
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

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Mirror(sys.argv[1], sys.argv[2], onchange=show).run())


if __name__ == "__main__":
    main()
