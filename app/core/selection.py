"""What one request asks for: a few ranges, and how their keys and values are written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .keys import KeyRange

# The ranges of one selection.
Ranges = tuple[KeyRange, ...]
# The maximum number of ranges in one selection.
MOST_RANGES = 32


def canonical(ranges: Iterable[KeyRange]) -> Ranges:
    """Return *ranges* in the order of their names' bytes, without those that lie inside another.

    Equal sets of keys have equal results as far as names show it. The ranges of a result have no key in common, so
    their order is also the order of their keys.
    """
    kept: list[KeyRange] = []
    # Of equal names, the prefix comes first: the key of that name lies inside it.
    for one in sorted(ranges, key=lambda each: (each.name, each.kind == "key")):
        if not kept or not kept[-1].covers(one):
            kept.append(one)
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class Selection:
    """The parts of a request that decide which mirror it builds. The mode and the format are not among them.

    ``ranges`` must be ``canonical``: equal selections share a channel and a cursor.
    """

    ranges: Ranges
    encoding: str = "auto"
    keys_only: bool = False
    count_only: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The ranges as written in a query: ``prefix=/svc/``."""
        return tuple(map(str, self.ranges))


def divide(ranges: Ranges, pins: Iterable[KeyRange]) -> dict[KeyRange, Ranges]:
    """Return the ranges that etcd must be watched for, and which of *ranges* each of them serves.

    A range inside a pin is served from the pin. Any other range is watched by itself.
    """
    found: dict[KeyRange, Ranges] = {}
    for one in ranges:
        watched = next((pin for pin in pins if pin.covers(one)), one)
        found[watched] = (*found.get(watched, ()), one)
    return found
