"""The gateway's use of etcd at one moment, as a frozen value for the metrics, ``/v1/feeds`` and ``/readyz``."""

from __future__ import annotations

from dataclasses import dataclass

from ..ports import Condition


@dataclass(frozen=True, slots=True)
class EtcdStatistics:
    """The state of the connection now, and counts since the process began."""

    condition: Condition
    reached: bool  # whether an etcd has ever answered
    watchers: int
    highest_revision: int  # the highest that this process knows, in this history
    reconnects: int
    ranges: int  # Ranges sent to etcd, except one per connection
