"""Cancel a watch without raising: the watch's owner must still release everything else that it holds."""

from __future__ import annotations

import logging

from ..ports import Watch

logger = logging.getLogger("gateway.feed")


def cancel_watch(watch: Watch | None) -> None:
    """Cancel *watch*, if there is one. A defect is logged, and does not reach the caller."""
    if watch is None:
        return
    try:
        watch.cancel()
    except Exception:
        logger.exception("cancelling a watch failed; etcd may hold the watch until its stream ends")
