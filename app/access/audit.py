"""The audit log: who has read what, who was refused, and why. No line holds a value or a token.

Its logger is ``gateway.audit``. Lines are written if any access mode other than the static token is on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from .. import logs
from ..core.keys import KeyRange
from .identity import Identity

logger = logging.getLogger("gateway.audit")

# Characters of one range. A long range must not push the others out of a line.
MOST_OF_RANGE = 256

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
    """Write one line. Call this only if lines are ``enabled``.

    Args:
        identity: None if the credentials were not accepted.
        ranges: the selection.
        rule: the roles that permit the read, or what has decided instead.
        more: further fields.
    """
    fields: dict[str, object] = {
        "decision": decision,
        "identity": identity.name if identity is not None else "unknown",
        "address": address,
        "selection": " ".join(map(_shown, ranges)),
        "rule": rule,
    }
    logs.info(logger, "audit", fields | more)


def _shown(one: KeyRange) -> str:
    text = str(one)
    return text if len(text) <= MOST_OF_RANGE else text[:MOST_OF_RANGE] + "…"
