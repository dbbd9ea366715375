"""How far a gateway has seen etcd's history come. It reports that to the gateways below, which so notice a restore.

A restore sets etcd's revision, raft term and raft index back. A gateway notices by comparing with what it knew before.
A gateway that was started after the restore knows nothing from before. But the gateways below it do: each answer to
them has its numbers (``HEADER``), and they compare these with what they know (``known_history``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, Self

HEADER = "X-Gateway-History"
_FORM = re.compile(r"([0-9a-f]{1,16}); first=(\d+)-(\d+)-(\d+); highest=(\d+)-(\d+)-(\d+); age=(\d+(?:\.\d+)?)")
ROUNDING = 0.001  # seconds: of the age
_LONGEST = 200  # bytes of the header's value that are looked at: eight numbers of 64 bits have fewer


class HistoryProgress(NamedTuple):
    """How far a history has come. None of the three falls while the history goes on. 0: not known."""

    revision: int
    raft_term: int
    raft_index: int

    def fallen(self, other: HistoryProgress) -> list[bool]:
        """Return of each of the three whether it is below *other*'s."""
        return [0 < mine < theirs for mine, theirs in zip(self, other, strict=True)]

    def fell_below(self, other: HistoryProgress) -> bool:
        """Whether one of the three is below *other*'s."""
        return any(self.fallen(other))

    def raised_to(self, other: HistoryProgress) -> HistoryProgress:
        """Return the higher one of each of the three: the history has come at least as far as *other*."""
        return HistoryProgress(*map(max, self, other))


@dataclass(frozen=True, slots=True)
class WitnessedHistory:
    """What a gateway has seen of the present history of a cluster.

    Args:
        first: what the first read of the gateway's present connection to etcd found. The read was linearizable, so
            whatever any gateway had seen of this history before *first_at* is not above it.
        first_at: when that read began, or earlier, in monotonic seconds of this process.
        highest: the highest values that the gateway knows of this history.
    """

    cluster_id: int
    first: HistoryProgress
    first_at: float
    highest: HistoryProgress

    def header(self, now: float) -> str:
        """Return the value of ``HEADER``. The age stands for the time: two processes have different clocks."""
        first, highest = ("-".join(map(str, progress)) for progress in (self.first, self.highest))
        return f"{self.cluster_id:x}; first={first}; highest={highest}; age={max(0.0, now - self.first_at):.3f}"

    @classmethod
    def parse(cls, text: str, asked_at: float) -> Self | None:
        """Read a value of ``HEADER``; None if it is not one.

        *asked_at*: when the request was sent, in monotonic seconds. The age was taken after that, so the read cannot
        have begun before *asked_at* less the age.
        """
        found = _FORM.fullmatch(text) if len(text) <= _LONGEST else None
        if found is None:
            return None
        cluster_id, *numbers, age = found.groups()
        values = [int(number) for number in numbers]
        first, highest = HistoryProgress(*values[:3]), HistoryProgress(*values[3:])
        return cls(int(cluster_id, 16), first, asked_at - float(age) - ROUNDING, highest)
