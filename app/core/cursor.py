"""The cursor ``<epoch>-<revision>``: the position of a client's mirror. Every replica can read it.

The derivation of the epoch is frozen within v1 of the wire contract: a change would reset every client.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from hashlib import sha256

from .selection import Selection

_FORM = re.compile(r"([0-9a-f]{8})-(0|[1-9][0-9]{0,18})")


# Every join needs the epoch, twice: 9 us of a join before it was kept. Clients choose the ranges: 256 selections as
# long as a request may be take 16 MiB.
@functools.lru_cache(maxsize=256)
def derive_epoch(cluster_id: int, gateway_epoch: str, selection: Selection) -> str:
    """Return eight hex digits that change with the cluster, ``GATEWAY_EPOCH`` and the selection."""
    canonical = json.dumps(
        [
            "v1",
            f"{cluster_id:016x}",
            gateway_epoch,
            [[one.kind, one.name.hex()] for one in selection.ranges],
            {
                "encoding": selection.encoding,
                "keys_only": selection.keys_only,
                "count_only": selection.count_only,
            },
        ],
        sort_keys=True,
        separators=(",", ":"),
    )
    return sha256(canonical.encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Cursor:
    """A cursor as a client sent it. ``epoch`` is None if the cursor could not be parsed."""

    epoch: str | None
    revision: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.revision}"

    @property
    def empty(self) -> bool:
        """Whether the cursor means that the client holds nothing."""
        return self.epoch is not None and self.revision == 0


NOTHING = Cursor("", 0)
UNREADABLE = Cursor(None, 0)


def parse_cursor(text: str) -> Cursor:
    """Parse a cursor that a client sent. Never raises.

    An empty text means that the client holds nothing. A text that cannot be parsed gives ``UNREADABLE``. etcd's
    revisions are int64, so the gateway cannot have issued a larger one.
    """
    if not text:
        return NOTHING
    match = _FORM.fullmatch(text)
    if match is None or int(match[2]) >= 1 << 63:
        return UNREADABLE
    return Cursor(match[1], int(match[2]))
