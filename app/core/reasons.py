"""Every reason that clients and metrics receive, as types.

They are the reasons why a stream is reset, closed or ended, and why a request is refused.

Each value is part of the wire contract (docs/wire-contract.md) or a label of a metric (docs/metrics.md). Values are
added, and never changed.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

# Why a mirror starts anew: the ``reason`` of a ``reset``.
ResetReason = Literal["initial", "lagged", "compacted", "cursor-lost", "restored", "unproven"]
# Why the gateway closes a stream: the ``reason`` of a ``close``.
CloseReason = Literal[
    "drain", "max-age", "unavailable", "overloaded", "too-large", "too-slow", "revoked", "revision-not-reached",
    "expired", "scope-changed",
]  # fmt: skip
# The close reasons by which the access control ends a stream.
Denial = Literal["revoked", "expired", "scope-changed"]
# Why a stream ends without a ``close``: the client has gone or takes nothing, the gateway has a defect, or the server
# stops.
BrokenReason = Literal["client", "send-timeout", "error", "shutdown", "cancelled"]
EndReason = CloseReason | BrokenReason
# Which quota refuses a request: the names of the settings (``app.core.quotas``).
QuotaReason = Literal[
    "identity-streams", "identity-selections", "identity-feeds", "identity-joins", "identity-reads", "address-streams",
    "address-joins", "address-reads",
]  # fmt: skip
# Why a request is refused: the codes of problems (docs/problems.md) whose counters exist from the start.
RefusalReason = Literal[
    "too-many-subscribers", "too-many-feeds", "too-many-channels", "too-many-connections", "draining",
    "etcd-unavailable", "pin-unavailable", "too-large", "ranges-need-pin", "selection-too-wide", "unauthorized",
    "forbidden", "cross-origin", "invalid-parameter", "prefix-too-short",
    QuotaReason,
]  # fmt: skip

QUOTA_REASONS = cast("tuple[QuotaReason, ...]", get_args(QuotaReason))
RESET_REASONS = cast("tuple[ResetReason, ...]", get_args(ResetReason))
DENIALS = cast("tuple[Denial, ...]", get_args(Denial))
CLOSE_REASONS = cast("tuple[CloseReason, ...]", get_args(CloseReason))
REFUSAL_REASONS = cast("tuple[RefusalReason, ...]", get_args(RefusalReason))
# The end reasons of a stream that was served. Only a refused stream receives "overloaded".
END_REASONS: tuple[EndReason, ...] = (
    *(reason for reason in CLOSE_REASONS if reason != "overloaded"),
    *cast("tuple[BrokenReason, ...]", get_args(BrokenReason)),
)
