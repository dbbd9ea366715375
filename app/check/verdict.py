"""Whether every watch came back: concluded from what a gateway and etcd count before, during and after some streams.

Must live here: what may be concluded, and from what. Must not: how counts are read, and when.

There are two kinds of evidence. The gateway's own word: more watchers than feeds, or a feed that outlives its linger,
is a leak, whoever was there meanwhile. And what etcd counts beyond what the gateway says it holds: that *foreign* share
stays as it is while no other client of etcd does anything, and etcd sees each watch come and go of which the gateway
says so. If it moves, others may have done that; only what moves in step with the rounds, and not without them, is ours.

All is back only where everything adds up. What this cannot see: a leak that the gateway does not know of, while another
client of etcd lets go exactly as much in each round; a watch stream that is left behind, while one of those that the
gateway has for others ends in each round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

# Seconds for what a gateway does at once: notice that a client has gone, end a feed whose linger is over, cancel its
# watch. It takes milliseconds; on a busy machine some seconds were seen.
GRACE = 10.0


class Outcome(Enum):
    """What is known; the values are exit statuses."""

    BACK = 0
    LEAK = 1
    UNKNOWN = 2


@dataclass(frozen=True, slots=True)
class EtcdCounts:
    """What is held at etcd, in etcd's words."""

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
    """What a gateway says of itself, at one moment."""

    process: str  # another one has other counts
    reconnects: int  # connections to etcd that were lost; behind each all watches are made again
    opened: int  # streams, ever
    feeds: int
    live: int  # feeds that have their watch for certain; others may wait for theirs
    held: EtcdCounts
    history: int  # of the watchers held: those that read history for old cursors, beside their feeds' own
    subscribers: int
    served: int  # subscribers that have a connection

    @property
    def even(self) -> bool:
        """Whether each feed has its watch, and each watch its feed."""
        return self.live == self.feeds == self.held.watchers - self.history

    @property
    def excess(self) -> int:
        """Watchers that certainly belong to no feed."""
        return self.held.watchers - self.history - self.feeds

    @property
    def unserved(self) -> int:
        """Subscribers that have no connection any more, or not yet."""
        return self.subscribers - self.served


@dataclass(frozen=True, slots=True)
class Checked:
    """What the gateway says of the range that is checked. Times are in seconds.

    ``quiet`` is how long nobody has come, as far as we know: we have closed our streams, no other is there, and no
    stream was opened at this gateway.
    """

    feeds: int  # one or none
    ours: int = 0  # subscribers
    others: int = 0
    quiet: float = 0.0
    linger: float = 0.0

    @property
    def stuck(self) -> bool:
        """Whether it is still there, though it should have gone."""
        due = GRACE if self.ours else self.linger + GRACE
        return self.feeds > 0 and not self.others and self.quiet > due


@dataclass(frozen=True, slots=True)
class Sample:
    """All counts, as nearly at one moment as they can be had."""

    gateway: GatewayCounts
    checked: Checked
    etcd: EtcdCounts

    @property
    def foreign(self) -> EtcdCounts:
        """What etcd holds beyond what the gateway says."""
        return self.etcd - self.gateway.held


@dataclass(frozen=True, slots=True)
class Round:
    """Streams that came and went.

    Args:
        streams: open at ``open``.
        looks: what was seen since the range had no feed any more, for GRACE unless all was back before; or, if it kept
            its feed, what was seen last. At least one.
        direct: nothing stands between us and the gateway that could keep a connection which we have closed.
    """

    streams: int
    open: Sample
    looks: tuple[Sample, ...]
    direct: bool

    @property
    def after(self) -> Sample:
        """How it ended."""
        return self.looks[-1]

    def always(self, holds: Callable[[GatewayCounts], bool]) -> bool:
        """Whether it held at every look: counts may be out of step for a moment, while others come and go."""
        return len(self.looks) > 1 and all(holds(sample.gateway) for sample in self.looks)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome, and sentences that say why.

    ``suspicious``: etcd's counts are those of a leak; more rounds, and a look at them without streams, can tell.
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    suspicious: bool = False


def counted(number: int, noun: str) -> str:
    """``1 feed``, ``2 feeds``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def returned(before: Sample, now: Sample) -> bool:
    """Whether all is as it was, but for what others have at the gateway."""
    return now.foreign == before.foreign and not list(_not_back(before, now))


def judge(before: Sample, rounds: Sequence[Round], control: Sequence[Sample] = ()) -> Verdict:
    """Conclude from all there is; *control* was seen without streams, for as long as the rounds took."""
    seen = [sample for each in rounds for sample in (each.open, *each.looks)]
    processes = dict.fromkeys(sample.gateway.process for sample in (before, *seen, *control))
    if len(processes) > 1:
        text = f"the counts are of {len(processes)} processes ({', '.join(processes)}): the gateway was restarted, or "
        return Verdict(Outcome.UNKNOWN, (f"{text}several stand behind one address; check each by itself",))
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
    times = "once" if len(rounds) == 1 else f"{len(rounds)} times"
    return (
        f"{times} {counted(rounds[-1].streams, 'open stream')} cost etcd one watcher, and it came back; etcd counts "
        f"{after.etcd}, of which the gateway holds {after.gateway.held.watchers} and {after.gateway.held.streams}"
    )


# --- the gateway's word -----------------------------------------------------------------------------------------------


def _leaks(before: Sample, rounds: Sequence[Round]) -> Iterator[str]:
    """What proves a leak by itself."""
    for sample, direct in ((before, False), *((each.after, each.direct) for each in rounds)):
        checked = sample.checked
        if checked.stuck and (direct or not checked.ours):
            whom = f"{counted(checked.ours, 'subscriber')} whose connection is closed" if checked.ours else "nobody"
            yield f"the range still has a feed, for {whom}, {checked.quiet:.0f} s after the last stream was closed"
            break
    for number, each in enumerate(rounds, 1):
        last = each.after.gateway
        found = []
        if each.always(lambda gateway: gateway.excess > 0):
            found.append(f"{counted(last.held.watchers, 'watcher')} at etcd for {counted(last.feeds, 'feed')}")
        if each.always(lambda gateway: gateway.held.streams > 0 and not gateway.feeds):
            found.append(f"{counted(last.held.streams, 'watch stream')} at etcd without a feed")
        if each.after.checked.ours and each.always(lambda gateway: gateway.unserved > 0):
            found.append(f"{counted(last.subscribers, 'subscriber')}, of whom it serves {last.served}")
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
    """What does not add up at the gateway: a leak could hide in it, or somebody else be taken for one."""
    others = max(sample.checked.others for sample in (before, *seen))
    if others:
        yield f"somebody else follows the range ({counted(others, 'subscriber')}): check one that nobody follows"
        return
    if any(sample.gateway.reconnects != before.gateway.reconnects for sample in seen):
        yield "the gateway lost its connection to etcd meanwhile, and made its watches again"
    if before.checked.feeds:
        yield f"the range had a feed before the first stream: {_keeps(before.checked)}"
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
                f"{checked.ours}, in {counted(checked.feeds, 'feed')}; do several stand behind one address?"
            )
        elif not shown.even:
            yield f"round {number}, open: {_uneven(shown)}"
        for text in _not_back(before, each.after):
            yield f"round {number}: {text}"


def _not_back(before: Sample, now: Sample) -> Iterator[str]:
    """What is not at the gateway as it was. Feeds and subscribers may have come and gone with others."""
    gateway, checked = now.gateway, now.checked
    if checked.ours:
        yield (
            f"the gateway still serves {counted(checked.ours, 'stream')} of ours; something between us and it keeps "
            "connections that we have closed: ask the process directly"
        )
    elif checked.feeds:
        yield f"the range still has a feed: {_keeps(checked)}"
    if not gateway.even:
        yield _uneven(gateway)
    if gateway.held.streams != before.gateway.held.streams:
        yield (
            f"the gateway holds {counted(gateway.held.streams, 'watch stream')}, before "
            f"{before.gateway.held.streams}; others may have come or gone"
        )
    if gateway.unserved:
        yield f"the gateway counts {counted(gateway.subscribers, 'subscriber')} and serves {gateway.served}"


def _keeps(checked: Checked) -> str:
    return f"it lingers {checked.linger:g} s, and others may have come to it until {checked.quiet:.0f} s ago"


def _uneven(gateway: GatewayCounts) -> str:
    return (
        f"the gateway holds {counted(gateway.held.watchers, 'watcher')} for {counted(gateway.feeds, 'feed')}, of which "
        f"{gateway.live} are live; others may be coming or going"
    )


# --- etcd's counts ----------------------------------------------------------------------------------------------------


def _step(before: Sample, rounds: Sequence[Round]) -> tuple[EtcdCounts, EtcdCounts] | None:
    """By how much the foreign share moved as the streams came, and as they went; if that is the same in each round, and
    what a leak does: something came with them, or did not go with them.
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
    """The foreign share did not stay what it was."""
    seen = [before, *(sample for each in rounds for sample in (each.open, *each.looks)), *control]
    shown = rounds[0].open
    if any(min(sample.foreign.watchers, sample.foreign.streams) < 0 for sample in seen) or all(
        each.open.etcd == before.etcd for each in rounds
    ):
        text = f"etcd counted {shown.etcd} while the gateway held {shown.gateway.held}: these are not, or not all, the "
        return Verdict(Outcome.UNKNOWN, (f"{text}members that may serve it; name them all with --etcd-metrics",))
    step = _step(before, rounds)
    quiet = bool(control) and all(sample.foreign == rounds[-1].after.foreign for sample in control)
    if step is not None and len(rounds) > 1 and quiet:
        came, stayed = step[0], step[0] + step[1]
        text = (
            f"watches are not shared: in each of {len(rounds)} rounds etcd counted {came} more than the gateway"
            if stayed == NOTHING
            else f"each of {len(rounds)} rounds left {stayed} at etcd that the gateway does not count"
        )
        return Verdict(Outcome.LEAK, (f"{text}; without streams nothing moved for as long",))
    watchers, streams = [[getattr(s.foreign, name) for s in seen] for name in ("watchers", "streams")]
    text = f"beside the gateway's, etcd counted {min(watchers)} to {max(watchers)} watchers and {min(streams)} to "
    text += f"{max(streams)} watch streams: other clients of etcd came or went"
    return Verdict(Outcome.UNKNOWN, (text,), suspicious=step is not None and not control)
