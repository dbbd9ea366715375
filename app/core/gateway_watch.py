"""A watch that another gateway serves: the lines of its NDJSON stream in, the inputs of a feed out.

Must live here: what an upstream gateway's stream proves. Must not: HTTP, reconnecting, or what a feed makes of it.

Theory of operation
    The watch asks for changes only (``snapshot=0``), with a cursor just below the revision that it starts at. The
    upstream's stream has no gap: unless it says ``reset``, every event after the cursor comes, in order. So:

    ``Created``   the upstream has accepted the request. Its revision is the tip that the upstream had reached, which
                  the head of the response states (``X-Etcd-Revision``). If the upstream did not have a state yet, or if
                  the watch is from now on, it is the revision of the stream's first line;
    ``Batches``   the events of one revision: up to and including the one with a cursor;
    ``Progress``  ``synced`` or ``bookmark``: everything up to the revision has come. Always trusted. A ``status``
                  repeats the last one. ``synced`` also says which cursors may be of an ended history;
    ``Reset``     the history does not go on, and the upstream says why; or a line is too long to be read;
    ``Refused``   the upstream may not serve this range any more;
    ``Lost``      the upstream ends the stream; the next one goes on.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, cast

from .cursor import Cursor, parse_cursor
from .events import Batch, Delete, Event, KeyValue
from .feed_messages import Batches, Created, Lost, Progress, Refused, Reset, WatchInput
from .reasons import RESET_REASONS, ResetReason

# Seconds between two signs of life until the stream states its own: the default of GATEWAY_HEARTBEAT.
HEARTBEAT = 15.0
# Heartbeats without a sign of life after which the stream counts as dead (docs/wire-contract.md, rule 5).
SILENT_HEARTBEATS = 3
# Bytes of a line at most. An event of etcd's largest request is 9.0 MiB as JSON (docs/wire-contract.md), unless etcd
# permits larger ones (--max-request-bytes).
LONGEST_LINE = 64 * 1024 * 1024


class StreamError(Exception):
    """The bytes are not a stream of the wire contract, or not of this cluster and epoch. The message says why."""


class GatewayWatch:
    """See the module. Pass the response's head to ``accepted``, and each chunk of its body to ``receive``.

    Args:
        start: the first revision wanted; 0: from now.
        epoch: of the cursors that this gateway derives for the range; "": not known yet.
    """

    def __init__(self, start: int, epoch: str) -> None:
        self._start = start
        self._epoch = epoch
        self._created = False
        self._ended = False
        self._rest: list[bytes] = []  # the begin of a line
        self._rest_size = 0
        self._events: list[Event] = []  # of a revision that is not complete
        self.state: Literal["live", "stale"] = "live"  # as the upstream says
        self.synced = False
        self.ended_revision = 0  # as the upstream says: see ``ReadableHistory``
        self.heartbeat = HEARTBEAT
        self.revision = start - 1 if start else 0  # everything up to here has come

    @property
    def silence(self) -> float:
        """Seconds without a byte after which the stream counts as dead."""
        return SILENT_HEARTBEATS * self.heartbeat

    def accepted(self, revision: int) -> Iterator[WatchInput]:
        """Take the head of the response. *revision*: the upstream's tip; 0: it has no state yet.

        A watch from now on begins where the stream does, which the stream's ``synced`` says: the upstream's tip may
        have moved on between the two.
        """
        if revision and self._start:
            yield self._create(revision)

    def receive(self, chunk: bytes) -> Iterator[WatchInput]:
        """Take some bytes of the body.

        Raises:
            StreamError: they cannot be read. Nothing of the line counts.
        """
        *lines, rest = chunk.split(b"\n")
        if lines:
            lines[0] = b"".join((*self._rest, lines[0]))
            self._rest, self._rest_size = [], 0
        self._rest.append(rest)
        self._rest_size += len(rest)
        found: list[Batch] = []
        for given in self._read_all(lines):
            if isinstance(given, Batches):  # one step of the feed for all revisions of a chunk
                found += given.batches
                continue
            if found:
                yield Batches(tuple(found))
                found = []
            yield given
        if found:
            yield Batches(tuple(found))

    def _read_all(self, lines: Iterable[bytes]) -> Iterator[WatchInput]:
        for line in lines:
            if line and not self._ended:
                yield from self._read(line)
        if self._rest_size > LONGEST_LINE and not self._ended:
            # The next stream would bring the same line. The state stands in for it.
            self._ended, self._rest, self._rest_size = True, [], 0
            yield Reset("lagged")

    def _read(self, line: bytes) -> Iterator[WatchInput]:
        try:
            found = json.loads(line)
            yield from self._take(found)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise StreamError(f"a line of the upstream cannot be read: {error!r}") from None

    def _take(self, found: Mapping[str, Any]) -> Iterator[WatchInput]:
        kind = found["type"]
        cursor = self._cursor(found)
        match kind:
            case "put" | "delete":
                yield from self._take_event(_parse_event(found), cursor, more=bool(found.get("more")))
            case "synced" | "bookmark":
                yield from self._take_position(found, cursor)
            case "status":
                self._note_state(found["state"])
                if self.synced:
                    yield Progress(self.revision, trusted=True)  # so that the feed looks at the state at once
            case "reset":
                self._ended = True
                reason = found["reason"]
                # A cursor with another request's epoch means that the two gateways derive epochs differently.
                known = reason in RESET_REASONS and reason not in ("initial", "cursor-lost")
                yield Reset(cast("ResetReason", reason) if known else "unproven")
            case "close":
                self._ended = True
                yield self._closed(found["reason"])
            case _:
                pass  # an addition to the contract

    def _take_event(self, event: Event, cursor: Cursor | None, *, more: bool) -> Iterator[WatchInput]:
        if self._events and self._events[0].mod_revision != event.mod_revision:
            raise StreamError(f"revision {self._events[0].mod_revision} did not end before the next")
        if more == (cursor is not None):
            raise StreamError("an event has neither 'more' nor a cursor, or both")
        self._events.append(event)
        if cursor is None:
            return
        if cursor.revision != event.mod_revision or cursor.revision <= self.revision:
            text = f"revision {event.mod_revision} has the cursor {cursor}; the last cursor was {self.revision}"
            raise StreamError(text)
        events, self._events = self._events, []
        self.revision = cursor.revision
        yield from self._create_at(self.revision)
        yield Batches((Batch(self.revision, events),))

    def _take_position(self, found: Mapping[str, Any], cursor: Cursor | None) -> Iterator[WatchInput]:
        if self._events or cursor is None or cursor.revision < self.revision:
            text = f"{found['type']} {cursor} comes in the middle of a revision, or is below {self.revision}"
            raise StreamError(text)
        if found["type"] == "synced":
            self.synced = True
            self.heartbeat = max(0.1, float(found["heartbeat"]))
            self.ended_revision = int(found.get("ended_revision", 0))
        # Without a state, `synced` means live.
        self._note_state(found.get("state", "live") if found["type"] == "synced" else found["state"])
        self.revision = cursor.revision
        yield from self._create_at(self.revision)
        yield Progress(self.revision, trusted=True)

    def _create_at(self, revision: int) -> Iterator[WatchInput]:
        if not self._created:
            yield self._create(revision)

    def _create(self, revision: int) -> WatchInput:
        self._created = True
        return Created(revision)

    def _note_state(self, state: object) -> None:
        self.state = "live" if state == "live" else "stale"

    def _closed(self, reason: str) -> WatchInput:
        # Another token may be permitted, but not this gateway's: its clients may not read the range any more either.
        if reason == "revoked":
            return Refused("the upstream gateway: revoked", denied=True)
        return Lost(f"the upstream gateway: {reason}")

    def _cursor(self, found: Mapping[str, Any]) -> Cursor | None:
        text = found.get("cursor")
        if text is None:
            return None
        cursor = parse_cursor(text)
        if cursor.epoch is None:
            raise StreamError(f"{text!r} is not a cursor")
        if self._epoch and cursor.epoch != self._epoch:
            raise StreamError(
                f"the upstream's cursor {text} belongs to another cluster or GATEWAY_EPOCH: this gateway derives "
                f"{self._epoch}; give all tiers the same GATEWAY_EPOCH"
            )
        return cursor


def _parse_event(found: Mapping[str, Any]) -> Event:
    key = _bytes(found, "key", "key_encoding")
    if found["type"] == "delete":
        return Delete(key, int(found["mod_revision"]))
    return parse_item(found)


def parse_item(found: Mapping[str, Any]) -> KeyValue:
    """Return an item of the wire contract, of a stream or of a list.

    Raises:
        ValueError, KeyError, TypeError: it is not one.
    """
    lease = int(found["lease"], 16) if "lease" in found else 0
    return KeyValue(
        _bytes(found, "key", "key_encoding"),
        _bytes(found, "value", "encoding"),
        int(found["create_revision"]),
        int(found["mod_revision"]),
        int(found["version"]),
        lease if lease < 1 << 63 else lease - (1 << 64),  # etcd's ids are signed
    )


def _bytes(found: Mapping[str, Any], name: str, encoding: str) -> bytes:
    text: str = found[name]
    return b64decode(text, validate=True) if found.get(encoding) == "base64" else text.encode()
