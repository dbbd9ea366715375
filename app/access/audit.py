"""The audit log: who has read what, who was refused, and why. No line holds a value or a token.

Its logger is ``gateway.audit``. Lines are written while any access mode is on but the static token alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from ..core.keys import KeyRange
from .identity import Identity

logger = logging.getLogger("gateway.audit")

Decision = Literal["joined", "permitted", "refused", "failed", "expired", "revoked", "scope-changed"]


def enabled() -> bool:
    """Whether lines are written at all. Otherwise do not work out what they would say."""
    return logger.isEnabledFor(logging.INFO)


def write(
    decision: Decision,
    identity: Identity | None,
    ranges: Sequence[KeyRange],
    *,
    rule: str,
    address: str,
    **more: object,
) -> None:
    """Write one line.

    Args:
        identity: None if the credentials were not accepted.
        ranges: the selection.
        rule: the roles that permit the read, or what has decided instead.
        more: further fields.
    """
    logger.info(
        "audit",
        extra={
            "decision": decision,
            "identity": identity.name if identity is not None else "unknown",
            "address": address,
            "selection": " ".join(map(str, ranges)),
            "rule": rule,
            **more,
        },
    )
