"""``python -m app serve`` is ``etcd-watch-gateway serve``; installed, it is ``python -m etcd_watch_gateway serve``."""

from __future__ import annotations

import sys

from . import stdio
from .signals import SIGNALS


def entry() -> int:
    """The whole program; the exit status.

    The rest is imported late, for it takes half a second, and a signal is heard from the first moment on: pid 1 of a
    container would not even die of a SIGTERM that nobody handles.
    """
    stdio.mend()
    serves = sys.argv[1:2] in (["serve"], ["dev"])
    if serves:
        SIGNALS.install()
    try:
        from .cli import main

        return main()
    finally:
        if serves:
            SIGNALS.ignore()


if __name__ == "__main__":
    sys.exit(entry())
