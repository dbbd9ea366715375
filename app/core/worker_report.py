"""What one worker holds, as a message to the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .merged_feeds import Body
from .merged_metrics import Family, Sample


@dataclass(frozen=True, slots=True)
class Report:
    """What one worker holds: the body of its own ``/v1/feeds``, and its metrics."""

    feeds: Body
    metrics: Sequence[Family]

    def encode(self) -> Body:
        """Return the report as a message has it."""
        families = [
            [one.name, one.kind, one.text, [[each.name, each.labels, each.value] for each in one.samples]]
            for one in self.metrics
        ]
        return {"feeds": self.feeds, "metrics": families}

    @staticmethod
    def decode(found: Body) -> Report:
        """Return the report of a message."""
        return Report(found["feeds"], [_family(*one) for one in found["metrics"]])


def _family(name: str, kind: str, text: str, samples: Sequence[Any]) -> Family:
    read = (Sample(one, tuple((label, value) for label, value in labels), value) for one, labels, value in samples)
    return Family(name, kind, text, tuple(read))
