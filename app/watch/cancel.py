"""Cancelling a watch, whatever comes of it: what its owner still has to release after it must be released, too."""

from __future__ import annotations

import logging

from ..ports import Watch

logger = logging.getLogger("gateway.feed")


def cancel_watch(watch: Watch | None) -> None:
    """Cancel *watch*, if there is one. An error of ours is logged, and stops nobody."""
    if watch is None:
        return
    try:
        watch.cancel()
    except Exception:
        logger.exception("a watch was not let go")
