"""``python -m app.workers HUB LINK PASSED``: the process of one worker. The hub starts it, with two inherited sockets.

HUB is the path of the Unix socket at which the hub serves.
"""

from __future__ import annotations

import socket
import sys

from .. import stdio
from ..allocator import importing
from ..signals import SIGNALS


def entry() -> int:
    """Run the worker and return the exit status. Signals are handled before the imports, which take half a second."""
    stdio.make_usable()
    SIGNALS.install()
    path, *numbers = sys.argv[1:]
    link, passed = (socket.socket(fileno=int(word)) for word in numbers)
    try:
        with importing():
            from .worker import main
        return main(link, passed, path)
    finally:
        SIGNALS.ignore()


if __name__ == "__main__":
    sys.exit(entry())
