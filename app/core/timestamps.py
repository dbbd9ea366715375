"""Times as clients and logs read them."""

from __future__ import annotations

from datetime import UTC, datetime

# The last second of the year 9999: a later one cannot be written.
LAST_MOMENT = 253_402_300_799


def rfc3339(seconds: float) -> str:
    """Return *seconds* since the epoch as UTC, to the whole second: ``2026-01-31T12:00:00Z``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
