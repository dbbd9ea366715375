"""Letting a watch go, whatever comes of it: what is left to be released behind it must be, too."""

from __future__ import annotations

import logging

from app.ports import Watch

log = logging.getLogger("gateway.feed")


def let_go(watch: Watch | None) -> None:
    """Cancel *watch*, if there is one. An error of ours is logged, and stops nobody."""
    if watch is None:
        return
    try:
        watch.cancel()
    except Exception:
        log.exception("a watch was not let go")
