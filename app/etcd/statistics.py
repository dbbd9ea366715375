"""What the gateway holds at etcd at one moment, as a frozen value: for the metrics, ``/v1/feeds`` and ``/readyz``."""

from __future__ import annotations

from dataclasses import dataclass

from ..ports import Condition


@dataclass(frozen=True, slots=True)
class EtcdStatistics:
    """The connection now, and what was counted since the process began."""

    condition: Condition
    reached: bool  # whether an etcd has ever answered
    watchers: int
    highest_revision: int  # that this process has heard of, in this history
    reconnects: int
    ranges: int  # sent to etcd, but for one a connection
