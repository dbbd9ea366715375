"""``python -m app serve`` runs ``etcd-watch-gateway serve``. Once installed: ``python -m etcd_watch_gateway serve``."""

from __future__ import annotations

import sys

from . import stdio
from .signals import SIGNALS


def entry() -> int:
    """Run the program and return the exit status.

    The signal handlers are installed before the other imports, which take half a second: without a handler, SIGTERM
    would not even kill pid 1 of a container.
    """
    stdio.make_usable()
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
