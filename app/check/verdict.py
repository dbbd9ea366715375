"""Decides whether every watch was released, from the counts of a gateway and of etcd before, during and after streams.

Must live here: what may be concluded, and from which counts. Must not: how and when counts are read.

There are two kinds of evidence. First, the gateway's own counts. More watchers than feeds, or a feed that outlives its
linger, is a leak, whatever other clients did meanwhile. Second, the *foreign* share: what etcd counts beyond what the
gateway reports. The foreign share does not change while no other client of etcd changes anything and while etcd sees
each watch come and go that the gateway reports. If the foreign share moves, other clients may be the reason. Only a
share that moves in step with the rounds, and does not move without them, is a leak of the gateway.

The verdict is "all back" only if all counts add up. Two leaks stay hidden: a leak that the gateway does not know of,
while another client of etcd releases exactly as much in each round; and a leaked watch stream, while in each round one
of the gateway's watch streams for other clients ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

# Seconds for what a gateway does at once: notice that a client has disconnected, end a feed after its linger, cancel
# the feed's watch. Each takes milliseconds; on a busy machine it took some seconds.
GRACE = 10.0


class Outcome(Enum):
    """The result of a check. The values are exit statuses."""

    BACK = 0
    LEAK = 1
    UNKNOWN = 2


@dataclass(frozen=True, slots=True)
class EtcdCounts:
    """What is held at etcd, in etcd's terms."""

    watchers: int
    streams: int

    def __sub__(self, other: EtcdCounts) -> EtcdCounts:
        return EtcdCounts(self.watchers - other.watchers, self.streams - other.streams)

    def __add__(self, other: EtcdCounts) -> EtcdCounts:
        return EtcdCounts(self.watchers + other.watchers, self.streams + other.streams)

    def __str__(self) -> str:
        return f"{counted(self.watchers, 'watcher')} and {counted(self.streams, 'watch stream')}"


NOTHING = EtcdCounts(0, 0)


@dataclass(frozen=True, slots=True)
class GatewayCounts:
    """A gateway's own counts at one moment."""

    process: str  # tells processes apart: each has its own counts
    reconnects: int  # lost connections to etcd; after each the gateway creates all watches again
    opened: int  # streams opened since the process started
    feeds: int
    live: int  # feeds that certainly have their watch; the others may still wait for it
    held: EtcdCounts
    history: int  # of the watchers held: those that read history for old cursors, beside their feeds' own watchers
    subscribers: int
    served: int  # subscribers that have a connection
    unavailable: int = 0  # pins that cannot be held: their feeds come and go, or never have a watch

    @property
    def even(self) -> bool:
        """Whether each feed has a watch, and each watch has a feed."""
        return self.live == self.feeds == self.held.watchers - self.history

    @property
    def excess(self) -> int:
        """The number of watchers that certainly belong to no feed."""
        return self.held.watchers - self.history - self.feeds

    @property
    def unserved(self) -> int:
        """The number of subscribers that have no connection: no longer, or not yet."""
        return self.subscribers - self.served


@dataclass(frozen=True, slots=True)
class Checked:
    """The gateway's counts of the checked range. Times are in seconds.

    ``quiet`` is how long, as far as the check knows, no client has come: the check has closed its streams, the range
    has no other subscriber, and the gateway has opened no stream. ``unread`` is how long the gateway has answered no
    read: a read from memory keeps a feed, for the time of its linger.
    """

    feeds: int  # 1 if the range has a channel, or a feed that is not pinned; else 0
    ours: int = 0  # subscribers of the check
    others: int = 0  # other subscribers, also of the range together with other ranges
    quiet: float = 0.0
    linger: float = 0.0
    pinned: bool = False  # the range lies in a pin, whose feed and watch stay
    unread: float = float("inf")

    @property
    def kept(self) -> str:
        """What must end after the streams: the feed or, if the feed is a pin's, the channel."""
        return "a channel" if self.pinned else "a feed"

    @property
    def stuck(self) -> bool:
        """Whether the range still has a feed, or a channel, although it should have ended."""
        if not self.feeds or self.others:
            return False
        return self.quiet > GRACE if self.ours else self.unused > self.linger + GRACE

    @property
    def unused(self) -> float:
        """How long, as far as the check knows, no client has needed the feed."""
        return min(self.quiet, self.unread)


@dataclass(frozen=True, slots=True)
class Sample:
    """All counts, read as close together as possible."""

    gateway: GatewayCounts
    checked: Checked
    etcd: EtcdCounts

    @property
    def foreign(self) -> EtcdCounts:
        """What etcd counts beyond what the gateway reports."""
        return self.etcd - self.gateway.held


@dataclass(frozen=True, slots=True)
class Round:
    """One round of streams that were opened and closed.

    Args:
        streams: how many streams were open in the sample ``open``.
        looks: the samples taken after the range's feed had ended: until all was released, but for GRACE at most. If the
            range kept its feed: the last samples. At least one sample.
        direct: no proxy stands between the check and the gateway: a proxy could keep connections that the check closed.
    """

    streams: int
    open: Sample
    looks: tuple[Sample, ...]
    direct: bool

    @property
    def after(self) -> Sample:
        """The last sample of the round."""
        return self.looks[-1]

    def always(self, holds: Callable[[GatewayCounts], bool]) -> bool:
        """Whether *holds* was true in every sample, of two or more.

        A single sample proves nothing: while other clients come and go, counts may disagree for a moment.
        """
        return len(self.looks) > 1 and all(holds(sample.gateway) for sample in self.looks)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome and the reasons for it.

    ``suspicious``: etcd's counts look like a leak. More rounds, and samples without streams, can prove or refute it.
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    suspicious: bool = False


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 feed``, ``2 feeds``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def returned(before: Sample, now: Sample) -> bool:
    """Whether all counts are as in *before*, except for what other clients hold at the gateway."""
    return now.foreign == before.foreign and not list(_not_back(before, now))


def conclude(before: Sample, rounds: Sequence[Round], control: Sequence[Sample] = ()) -> Verdict:
    """Return the verdict. *control*: samples taken without streams, for as long as the rounds took."""
    seen = [sample for each in rounds for sample in (each.open, *each.looks)]
    processes = dict.fromkeys(sample.gateway.process for sample in (before, *seen, *control))
    if len(processes) > 1:
        text = f"the counts are of {len(processes)} processes ({', '.join(processes)}): the gateway was restarted, or "
        return Verdict(Outcome.UNKNOWN, (f"{text}several gateways share one address; check each gateway by itself",))
    if leaks := tuple(_leaks(before, rounds)):
        return Verdict(Outcome.LEAK, leaks)
    if doubts := tuple(_doubts(before, rounds, [*seen, *control])):
        return Verdict(Outcome.UNKNOWN, doubts)
    if any(
        sample.foreign != before.foreign
        for sample in (*(each.open for each in rounds), *(each.after for each in rounds))
    ):
        return _moved(before, rounds, control)
    return Verdict(Outcome.BACK, (_balance(rounds),))


def _balance(rounds: Sequence[Round]) -> str:
    after = rounds[-1].after
    times = "in 1 round" if len(rounds) == 1 else f"in {len(rounds)} rounds"
    cost = "no watcher: the range is pinned" if after.checked.pinned else "one watcher, which was released"
    return (
        f"{times}, {counted(rounds[-1].streams, 'open stream')} cost etcd {cost}; etcd counts "
        f"{after.etcd}, of which the gateway holds {after.gateway.held.watchers} and {after.gateway.held.streams}"
    )


# --- the gateway's own counts -----------------------------------------------------------------------------------------


def _leaks(before: Sample, rounds: Sequence[Round]) -> Iterator[str]:
    """Yield the findings that prove a leak, each by itself."""
    for sample, direct in ((before, False), *((each.after, each.direct) for each in rounds)):
        checked = sample.checked
        if checked.stuck and (direct or not checked.ours):
            whom = (
                f"{counted(checked.ours, 'subscriber')} whose connection is closed" if checked.ours else "no subscriber"
            )
            late = f"{checked.quiet:.0f} s after the last stream was closed"
            yield f"the range still has {checked.kept}, for {whom}, {late}"
            break
    for number, each in enumerate(rounds, 1):
        last = each.after.gateway
        found = []
        if each.always(lambda gateway: gateway.excess > 0):
            found.append(f"{counted(last.held.watchers, 'watcher')} at etcd for {counted(last.feeds, 'feed')}")
        if each.always(lambda gateway: gateway.held.streams > 0 and not gateway.feeds):
            found.append(f"{counted(last.held.streams, 'watch stream')} at etcd without a feed")
        if each.after.checked.ours and each.always(lambda gateway: gateway.unserved > 0):
            found.append(f"{counted(last.subscribers, 'subscriber')}, of which it serves {last.served}")
        if found:
            yield f"after round {number} the gateway had {', and '.join(found)}"
            return
    if len(rounds) > 1 and all(each.open.gateway.excess > 0 for each in rounds):
        held, feeds = rounds[-1].open.gateway.held, rounds[-1].open.gateway.feeds
        yield (
            f"watches are not shared: with {counted(rounds[-1].streams, 'stream')} open the gateway held "
            f"{counted(held.watchers, 'watcher')} at etcd for {counted(feeds, 'feed')}"
        )


def _doubts(before: Sample, rounds: Sequence[Round], seen: Sequence[Sample]) -> Iterator[str]:
    """Yield each mismatch in the gateway's counts: it may hide a leak, or may make another client look like one."""
    others = max(sample.checked.others for sample in (before, *seen))
    if others:
        yield f"another client follows the range ({counted(others, 'subscriber')}): choose a range that nobody follows"
        return
    if any(sample.gateway.reconnects != before.gateway.reconnects for sample in seen):
        yield "the gateway lost its connection to etcd meanwhile, and created its watches again"
    if before.checked.feeds:
        yield f"the range had {before.checked.kept} before the first stream: {_keeps(before.checked)}"
        return
    for text in _not_back(before, before):
        yield f"before: {text}"
    if not rounds:
        yield "no round was completed"
    for number, each in enumerate(rounds, 1):
        checked, shown = each.open.checked, each.open.gateway
        if checked.feeds != 1 or checked.ours != each.streams:
            yield (
                f"round {number}: of {counted(each.streams, 'open stream')} the gateway whose counts were read has "
                f"{checked.ours}, in {counted(checked.feeds, 'feed')}; do several gateways share one address?"
            )
        elif not shown.even:
            yield f"round {number}, open: {_uneven(shown)}"
        for text in _not_back(before, each.after):
            yield f"round {number}: {text}"


def _not_back(before: Sample, now: Sample) -> Iterator[str]:
    """Yield what has not returned to its state in *before*. Other clients may have changed feeds and subscribers."""
    gateway, checked = now.gateway, now.checked
    if checked.ours:
        yield (
            f"the gateway still serves {counted(checked.ours, 'stream')} of this check: a proxy before the gateway "
            "probably keeps connections that the check has closed; use the URL of the process itself"
        )
    elif checked.feeds:
        yield f"the range still has {checked.kept}: {_keeps(checked)}"
    if not gateway.even:
        yield _uneven(gateway)
    if gateway.held.streams != before.gateway.held.streams:
        yield (
            f"the gateway holds {counted(gateway.held.streams, 'watch stream')}, but before the rounds "
            f"{before.gateway.held.streams}; other clients may have come or gone"
        )
    if gateway.unserved:
        yield f"the gateway counts {counted(gateway.subscribers, 'subscriber')} and serves {gateway.served}"


def _keeps(checked: Checked) -> str:
    return f"it lingers {checked.linger:g} s, and other clients may have used it until {checked.unused:.0f} s ago"


def _uneven(gateway: GatewayCounts) -> str:
    pins = counted(gateway.unavailable, "pin")
    why = f"{pins} cannot be held, see /readyz" if gateway.unavailable else "other clients may be coming or going"
    return (
        f"the gateway holds {counted(gateway.held.watchers, 'watcher')} for {counted(gateway.feeds, 'feed')}, of which "
        f"{gateway.live} are live; {why}"
    )


# --- etcd's counts ----------------------------------------------------------------------------------------------------


def _step(before: Sample, rounds: Sequence[Round]) -> tuple[EtcdCounts, EtcdCounts] | None:
    """Return by how much the foreign share moved as the streams opened, and as they closed.

    Return None if that differs between the rounds, or does not look like a leak: a leak adds to the share while the
    streams are open, or keeps something after they are closed.
    """
    starts = [before, *(each.after for each in rounds[:-1])]
    steps = {
        (each.open.foreign - start.foreign, each.after.foreign - each.open.foreign)
        for start, each in zip(starts, rounds, strict=True)
    }
    if len(steps) != 1:
        return None
    (step,) = steps
    came, stayed = step[0], step[0] + step[1]
    leaks = min(came.watchers, came.streams, stayed.watchers, stayed.streams) >= 0
    return step if leaks else None


def _moved(before: Sample, rounds: Sequence[Round], control: Sequence[Sample]) -> Verdict:
    """Return the verdict for a foreign share that moved."""
    seen = [before, *(sample for each in rounds for sample in (each.open, *each.looks)), *control]
    shown = rounds[0].open
    if any(min(sample.foreign.watchers, sample.foreign.streams) < 0 for sample in seen) or all(
        each.open.etcd == before.etcd for each in rounds
    ):
        text = f"etcd counted {shown.etcd} while the gateway held {shown.gateway.held}: the counts are not of all etcd "
        return Verdict(Outcome.UNKNOWN, (f"{text}members that the gateway may use; name them all with --etcd-metrics",))
    step = _step(before, rounds)
    quiet = bool(control) and all(sample.foreign == rounds[-1].after.foreign for sample in control)
    if step is not None and len(rounds) > 1 and quiet:
        came, stayed = step[0], step[0] + step[1]
        text = (
            f"watches are not shared: in each of {len(rounds)} rounds etcd counted {came} more than the gateway"
            if stayed == NOTHING
            else f"each of {len(rounds)} rounds left {stayed} at etcd that the gateway does not count"
        )
        return Verdict(Outcome.LEAK, (f"{text}; without streams the counts stood still for as long",))
    watchers, streams = [[getattr(s.foreign, name) for s in seen] for name in ("watchers", "streams")]
    text = f"besides the gateway's, etcd counted {min(watchers)} to {max(watchers)} watchers and {min(streams)} to "
    text += f"{max(streams)} watch streams: other clients of etcd came or went"
    return Verdict(Outcome.UNKNOWN, (text,), suspicious=step is not None and not control)
