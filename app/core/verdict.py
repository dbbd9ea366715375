"""Whether every watch came back: concluded from what a gateway and etcd counted before, during and after some streams.

Must live here: what may be concluded, and from what. Must not: how counts are read, and when.

Two kinds of evidence. The gateway's own word: more watchers than feeds, or a feed that outlives its linger, is a leak
whoever was there meanwhile. And etcd's counts less the gateway's own: that *foreign* share stays what it is, as long as
no other client of etcd does anything and etcd sees every watch come and go that the gateway says it opens and closes.
If it moves, others may have done that. Only what moves in step with the rounds, and not when there are none, is ours.

All is back only where everything adds up in every sample, so that no leak can hide; all else is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

# Seconds that a gateway has for what it does at once: to notice that a client has gone, to end a feed whose linger is
# over, to have its watch cancelled. It takes milliseconds; a machine under load may need some seconds.
GRACE = 10.0


class Outcome(Enum):
    """What is known; the values are exit statuses."""

    BACK = 0
    LEAK = 1
    UNKNOWN = 2


@dataclass(frozen=True, slots=True)
class Held:
    """What is held at etcd, in etcd's words."""

    watchers: int
    streams: int

    def __sub__(self, other: Held) -> Held:
        return Held(self.watchers - other.watchers, self.streams - other.streams)

    def __add__(self, other: Held) -> Held:
        return Held(self.watchers + other.watchers, self.streams + other.streams)

    def __str__(self) -> str:
        return f"{counted(self.watchers, 'watcher')} and {counted(self.streams, 'watch stream')}"


@dataclass(frozen=True, slots=True)
class Gateway:
    """What a gateway says of itself, at one moment."""

    process: str  # another one has other counts
    reconnects: int  # connections to etcd that were lost; each makes all watches again
    opened: int  # streams, ever
    feeds: int
    held: Held
    subscribers: int
    served: int  # subscribers that have a connection

    @property
    def excess(self) -> int:
        """Watchers that belong to no feed; negative while feeds wait for theirs."""
        return self.held.watchers - self.feeds

    @property
    def unserved(self) -> int:
        """Subscribers that have no connection any more, or not yet."""
        return self.subscribers - self.served


@dataclass(frozen=True, slots=True)
class Checked:
    """What the gateway says of the range that is checked.

    Args:
        quiet: seconds for which nobody has followed it, or opened any stream at this gateway, as far as we know; those
            that we have closed don't count.
    """

    feeds: int  # one or none
    ours: int = 0  # subscribers
    others: int = 0
    quiet: float = 0.0
    linger: float = 0.0

    @property
    def stuck(self) -> bool:
        """Whether it stays, though it should have gone."""
        if not self.feeds or self.others:
            return False
        return self.quiet > GRACE + (0.0 if self.ours else self.linger)


@dataclass(frozen=True, slots=True)
class Sample:
    """All counts, as nearly at one moment as they can be had."""

    gateway: Gateway
    checked: Checked
    etcd: Held

    @property
    def foreign(self) -> Held:
        """What etcd holds that is not the gateway's."""
        return self.etcd - self.gateway.held


@dataclass(frozen=True, slots=True)
class Round:
    """*streams* were open at ``open``; all have gone, and there was time to release them, at ``after``.

    Args:
        direct: nothing stands between us and the gateway that could have kept their connections.
    """

    streams: int
    open: Sample
    after: Sample
    direct: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome, and sentences that say why."""

    outcome: Outcome
    reasons: tuple[str, ...]


def counted(number: int, noun: str) -> str:
    """``1 feed``, ``2 feeds``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def judge(before: Sample, rounds: Sequence[Round], control: Sequence[Sample] = ()) -> Verdict:
    """Conclude from all there is; *control* are samples from a time as long as the rounds took, without streams."""
    samples = [before, *(sample for each in rounds for sample in (each.open, each.after)), *control]
    if broken := tuple(_broken(before, samples)):
        return Verdict(Outcome.UNKNOWN, broken)
    if leaks := tuple(_leaks(before, rounds)):
        return Verdict(Outcome.LEAK, leaks)
    if doubts := tuple(_doubts(before, rounds)):
        return Verdict(Outcome.UNKNOWN, doubts)
    if all(sample.foreign == before.foreign for sample in samples):
        return Verdict(Outcome.BACK, (_balance(before, rounds),))
    return _foreign(before, rounds, control)


def returned(before: Sample, now: Sample) -> bool:
    """Whether all is as it was."""
    return not tuple(_not_back(before, now)) and now.foreign == before.foreign


def needs_control(before: Sample, rounds: Sequence[Round]) -> bool:
    """Whether only a look at etcd without streams can tell a leak from what others do."""
    if tuple(_broken(before, [s for each in rounds for s in (each.open, each.after)])):
        return False
    return (
        not tuple(_leaks(before, rounds))
        and not tuple(_doubts(before, rounds))
        and _in_step(before, rounds) is not None
    )


def _broken(before: Sample, samples: Sequence[Sample]) -> Iterator[str]:
    """Why the samples are not of one thing."""
    processes = list(dict.fromkeys(sample.gateway.process for sample in (before, *samples)))
    if len(processes) > 1:
        yield (
            f"the counts are of {len(processes)} processes ({', '.join(processes)}): the gateway was restarted, or "
            "several stand behind one address; check each by itself"
        )
    elif any(sample.gateway.reconnects != before.gateway.reconnects for sample in samples):
        yield "the gateway lost a connection to etcd meanwhile, and made its watches again"


def _leaks(before: Sample, rounds: Sequence[Round]) -> Iterator[str]:
    """What the gateway's own words prove."""
    for sample, direct in ((before, False), *((each.after, each.direct) for each in rounds)):
        checked = sample.checked
        if checked.stuck and (direct or not checked.ours):
            what = f"{counted(checked.ours, 'subscriber')} whose connection is closed" if checked.ours else "nobody"
            yield (
                f"the range still has its feed, for {what}, after {checked.quiet:.0f} s "
                f"(the gateway lingers {checked.linger:g} s)"
            )
            break
    # What is there for a moment, while others come and go, is not there after each of the rounds.
    after = [each.after.gateway for each in rounds]
    if not after:
        return
    last = after[-1]
    if all(gateway.excess > 0 for gateway in after):
        yield f"the gateway holds {counted(last.held.watchers, 'watcher')} at etcd for {counted(last.feeds, 'feed')}"
    elif all(each.open.gateway.excess > 0 for each in rounds):
        shown = rounds[-1].open.gateway
        yield (
            "watches are not shared: while the streams were open the gateway held "
            f"{counted(shown.held.watchers, 'watcher')} at etcd for {counted(shown.feeds, 'feed')}"
        )
    if all(each.open.checked.feeds > 1 for each in rounds):
        yield f"watches are not shared: the range had {rounds[-1].open.checked.feeds} feeds"
    if all(gateway.held.streams > 0 and not gateway.feeds for gateway in after):
        yield f"the gateway holds {counted(last.held.streams, 'watch stream')} at etcd and has no feed"
    if all(gateway.unserved > 0 for gateway in after):
        yield f"the gateway counts {counted(last.subscribers, 'subscriber')} and serves {last.served}"


def _doubts(before: Sample, rounds: Sequence[Round]) -> Iterator[str]:
    """What does not add up at the gateway; with one of them a leak could hide, or somebody else be taken for one."""
    others = max(
        [before.checked.others, *(max(each.open.checked.others, each.after.checked.others) for each in rounds)]
    )
    if others:
        yield f"{counted(others, 'other subscriber')} on the range: check one that nobody follows"
        return
    if before.checked.feeds:
        yield "the range had a feed before, and kept it"
    if not rounds:
        yield "no round was completed"
    for number, each in enumerate(rounds, 1):
        checked = each.open.checked
        if checked.feeds != 1 or checked.ours != each.streams:
            yield (
                f"round {number}: the gateway whose counts were read had {checked.ours} of the "
                f"{counted(each.streams, 'open stream')}: do several stand behind one address?"
            )
        elif each.open.gateway.excess != before.gateway.excess:
            yield (
                f"round {number}, open: the gateway held {counted(each.open.gateway.held.watchers, 'watcher')} for "
                f"{counted(each.open.gateway.feeds, 'feed')}, before {before.gateway.held.watchers} for "
                f"{before.gateway.feeds}"
            )
        for text in _not_back(before, each.after):
            yield f"round {number}: {text}"


def _not_back(before: Sample, now: Sample) -> Iterator[str]:
    """What the gateway has after a round that it did not have before. Feeds and subscribers of others may change."""
    then, gateway = before.gateway, now.gateway
    if now.checked.ours:
        yield (
            f"{counted(now.checked.ours, 'closed stream')} still served: something between us and the gateway keeps "
            "the connections; ask the process directly"
        )
    elif now.checked.feeds:
        yield (
            f"the range still has a feed, which may linger {now.checked.linger:g} s: the last time that a stream was "
            f"opened at the gateway is {now.checked.quiet:.0f} s ago"
        )
    if gateway.excess != then.excess:
        yield (
            f"the gateway holds {counted(gateway.held.watchers, 'watcher')} for {counted(gateway.feeds, 'feed')}, "
            f"before {then.held.watchers} for {then.feeds}"
        )
    if gateway.held.streams != then.held.streams:
        yield f"the gateway holds {counted(gateway.held.streams, 'watch stream')}, before {then.held.streams}"
    if gateway.unserved != then.unserved:
        yield (
            f"the gateway counts {counted(gateway.subscribers, 'subscriber')} and serves {gateway.served}, "
            f"before {then.subscribers} and {then.served}"
        )


def _steps(before: Sample, rounds: Sequence[Round]) -> list[tuple[Held, Held]]:
    """Of each round: by how much the foreign share moved as the streams came, and as they went."""
    found = []
    last = before.foreign
    for each in rounds:
        found.append((each.open.foreign - last, each.after.foreign - each.open.foreign))
        last = each.after.foreign
    return found


def _in_step(before: Sample, rounds: Sequence[Round]) -> tuple[Held, Held] | None:
    """The step that etcd's counts make in every round, if it is the same and one that a leak would make: what comes
    with the streams beyond what the gateway says, and does not go with them.
    """
    steps = _steps(before, rounds)
    if len(steps) < 2 or len(set(steps)) > 1:
        return None
    came, went = steps[0]
    stayed = came + went
    rises = min(came.watchers, came.streams, stayed.watchers, stayed.streams) >= 0
    return steps[0] if rises and steps[0] != (Held(0, 0), Held(0, 0)) else None


def _foreign(before: Sample, rounds: Sequence[Round], control: Sequence[Sample]) -> Verdict:
    """etcd's counts moved by more than the gateway's."""
    samples = [before, *(sample for each in rounds for sample in (each.open, each.after)), *control]
    step = _in_step(before, rounds)
    if step is not None and control and all(sample.foreign == rounds[-1].after.foreign for sample in control):
        came, went = step
        text = (
            f"each of the {len(rounds)} rounds left {came + went} at etcd that the gateway does not know of"
            if came + went != Held(0, 0)
            else f"watches are not shared: each round had {came} more at etcd than the gateway says"
        )
        return Verdict(Outcome.LEAK, (f"{text}, and nothing moved for as long without streams",))
    if any(min(sample.foreign.watchers, sample.foreign.streams) < 0 for sample in samples) or all(
        each.open.etcd == before.etcd for each in rounds
    ):
        shown = rounds[0].open
        return Verdict(
            Outcome.UNKNOWN,
            (
                f"etcd counted {shown.etcd} while the gateway said that it holds {shown.gateway.held}: the metrics are "
                "not those of the member that serves it; name all members with --etcd-metrics",
            ),
        )
    watchers = [sample.foreign.watchers for sample in samples]
    streams = [sample.foreign.streams for sample in samples]
    return Verdict(
        Outcome.UNKNOWN,
        (
            "other clients of etcd moved its counts: beside the gateway's it held "
            f"{min(watchers)} to {max(watchers)} watchers and {min(streams)} to {max(streams)} watch streams",
        ),
    )


def _balance(before: Sample, rounds: Sequence[Round]) -> str:
    opened = max(each.open.gateway.held.watchers - before.gateway.held.watchers for each in rounds)
    return (
        f"in {counted(len(rounds), 'round')} of {counted(rounds[-1].streams, 'open stream')} "
        f"{counted(opened, 'watcher')} came and went, and etcd holds {rounds[-1].after.etcd}, as before"
    )
