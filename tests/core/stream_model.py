"""One watch stream as etcd serves it: its two queues, its slow watches, its lost answers.

Must live here: the behaviour of etcd's code, step by step, so that a test can put anything between two steps. Must not
live here: how a client should react.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from app.core.events import Event, KeyValue
from app.core.multiplex import CancelRequest, CreateRequest, Message, ProgressRequest, Request

# How a member answers progress requests. "early": at once, beside the events (before 3.4.25 and 3.5.8). "deferring":
# when all watches are synced, later if necessary, with one answer for many requests (3.5.8 to 3.5.12). "silent": when
# all watches are synced, or never.
Answering = Literal["early", "deferring", "silent"]
# The fate of a message: it went straight into the channel; it found the channel full; or its watch had been slow
# before.
Fate = Literal["", "victim", "lagged"]


@dataclass
class Watcher:
    """One watch. It matches the events of revision r if r is a multiple of ``every``."""

    watch_id: int
    every: int
    next: int  # etcd owes the watch nothing below this revision
    state: Literal["synced", "unsynced", "victim"] = "synced"
    message: Message | None = None  # the message of a victim
    lagged: bool = False  # etcd served it from history after it had been synced: events may be missing from now on

    def event(self, revision: int) -> Event | None:
        """The watch's event in a revision, if there is one."""
        return KeyValue(b"/a/", b"", revision, revision, 1) if revision % self.every == 0 else None


@dataclass
class StreamModel:
    """etcd's side of a stream. Every method is one step; ``send`` returns the next message for the client."""

    answering: Answering
    capacity: int
    round: int  # revisions of one catch-up message
    revision: int = 1
    requests: deque[tuple[Request, int]] = field(default_factory=deque)  # (request, ``every`` of a create)
    control: deque[Message] = field(default_factory=deque)
    channel: deque[tuple[Message, Fate]] = field(default_factory=deque)
    watchers: dict[int, Watcher] = field(default_factory=dict)
    creating: tuple[CreateRequest, int, int] | None = None  # the request, ``every``, the revision read for ``created``
    writing: bool = False  # a revision's events are sent, but the revision is not the store's yet
    deferred: bool = False
    announced: set[int] = field(default_factory=set)
    early: dict[int, list[tuple[Message, Fate]]] = field(default_factory=dict)
    ready: deque[tuple[Message, Fate]] = field(default_factory=deque)
    hidden: bool = False  # the channel held a message that the client did not get in its turn

    def serve(self) -> None:
        """Read the next request; of a create, only read the revision for its answer."""
        if self.creating is not None or not self.requests:
            return
        request, every = self.requests[0]
        if isinstance(request, ProgressRequest) and self.writing and self.answering != "early":
            return  # the request waits for the writer
        self.requests.popleft()
        if isinstance(request, CreateRequest):
            self.creating = (request, every, self.revision)
        elif isinstance(request, CancelRequest):
            if self.watchers.pop(request.watch_id, None) is not None:
                self.announced.discard(request.watch_id)
                self.control.append(Message(request.watch_id, self.revision, canceled=True))
        elif self.answering == "early":
            self.control.append(Message(-1, self.revision))
        elif not self.deferred and not self._answer():
            self.deferred = self.answering == "deferring"

    def register(self) -> None:
        """Do the rest of a create."""
        if self.creating is None or self.writing:
            return
        (request, every, read), self.creating = self.creating, None
        start = request.start or read + 1
        watcher = Watcher(request.watch_id, every, max(start, 1))
        watcher.state = "synced" if start > self.revision else "unsynced"
        self.watchers[watcher.watch_id] = watcher
        self.control.append(Message(request.watch_id, read, created=True))

    def write(self) -> None:
        """Send the next revision's events to the synced watches."""
        if self.writing:
            return
        self.writing = True
        revision = self.revision + 1
        for watcher in self.watchers.values():
            event = watcher.event(revision)
            if watcher.state != "synced" or revision < watcher.next:
                continue
            watcher.next = revision + 1
            if event is not None:
                self._tell(watcher, Message(watcher.watch_id, revision, events=[event]))

    def commit(self) -> None:
        """Make the written revision the store's."""
        self.revision += self.writing
        self.writing = False

    def sync(self) -> None:
        """Run one round for all watches that are not synced."""
        if self.writing:
            return
        for watcher in self.watchers.values():
            if watcher.state == "unsynced":
                found = [r for r in range(watcher.next, self.revision + 1) if watcher.event(r) is not None]
                more = found[self.round :]
                watcher.next = more[0] if more else self.revision + 1
                watcher.state = "unsynced" if more else "synced"
                events = [event for r in found[: self.round] if (event := watcher.event(r)) is not None]
                if events:
                    self._tell(watcher, Message(watcher.watch_id, self.revision, events=events))

    def move_victims(self) -> None:
        """Try again to send the messages that found the channel full."""
        if self.writing:
            return
        for watcher in self.watchers.values():
            if watcher.state == "victim" and len(self.channel) < self.capacity:
                assert watcher.message is not None
                self.channel.append((watcher.message, "lagged" if watcher.lagged else "victim"))
                watcher.state = "synced" if watcher.next > self.revision else "unsynced"
                # Otherwise the message was a full one of several rounds: its size shows that more follows.
                watcher.lagged |= watcher.state == "unsynced" and watcher.next > watcher.message.revision
                watcher.message = None

    def send(self, *, control_first: bool) -> tuple[Message, Fate] | None:
        """The client's next message."""
        while self.ready or self.control or self.channel:
            if self.ready:
                return self.ready.popleft()
            if self.control and (control_first or not self.channel):
                message = self.control.popleft()
                if message.created:
                    self.announced.add(message.watch_id)
                    self.ready.extend(self.early.pop(message.watch_id, ()))
                return message, ""
            message, fate = self.channel.popleft()
            if message.watch_id != -1 and message.watch_id not in self.announced:
                self.early.setdefault(message.watch_id, []).append((message, fate))
                self.hidden = True
                continue
            if self.deferred and not self.writing and self._answer():
                self.deferred = False
            return message, fate
        return None

    def _tell(self, watcher: Watcher, message: Message) -> None:
        if len(self.channel) < self.capacity:
            self.channel.append((message, "lagged" if watcher.lagged else ""))
        else:
            watcher.state, watcher.message = "victim", message

    def _answer(self) -> bool:
        """Answer a progress request, unless a watch is not synced; an answer that finds the channel full is lost."""
        if any(watcher.state != "synced" for watcher in self.watchers.values()):
            return False
        if self.watchers and len(self.channel) < self.capacity:
            self.channel.append((Message(-1, self.revision), ""))
        return True
