"""Every reason that clients and metrics are given, as types: why a stream is reset, closed, ended or refused.

Each value is part of the wire contract (docs/wire-contract.md) or a label of a metric (docs/metrics.md): it is added
to, and never changed.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

# Why a mirror begins anew: the ``reason`` of a ``reset``.
ResetReason = Literal["initial", "lagged", "compacted", "cursor-lost", "restored", "unproven"]
# Why the gateway ends a stream: the ``reason`` of a ``close``.
CloseReason = Literal["drain", "max-age", "unavailable", "overloaded", "too-large", "too-slow", "revoked"]
# Why a stream ends of which nobody can be told: the client has gone or takes nothing, a defect of ours, the server.
BrokenReason = Literal["client", "send-timeout", "error", "shutdown", "cancelled"]
EndReason = CloseReason | BrokenReason
# Why a request is refused: codes of problems (docs/problems.md), as far as they are counted from the start.
RefusalReason = Literal[
    "too-many-subscribers", "too-many-feeds", "too-many-connections", "draining", "etcd-unavailable", "too-large",
    "unauthorized", "forbidden", "invalid-parameter",
]  # fmt: skip

RESET_REASONS = cast("tuple[ResetReason, ...]", get_args(ResetReason))
CLOSE_REASONS = cast("tuple[CloseReason, ...]", get_args(CloseReason))
REFUSAL_REASONS = cast("tuple[RefusalReason, ...]", get_args(RefusalReason))
# Of a stream that was served. Only a refused one is told "overloaded".
END_REASONS: tuple[EndReason, ...] = (
    *(reason for reason in CLOSE_REASONS if reason != "overloaded"),
    *cast("tuple[BrokenReason, ...]", get_args(BrokenReason)),
)
