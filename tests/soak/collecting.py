"""``python -m tests.soak.collecting serve``: a gateway that collects its garbage on SIGUSR2.

Cycles that wait for the collector are 20,000 blocks at one moment and 5,000 at another. In a short run that is more
than a leak. How many objects a collection has found, is in the gateway's metrics.
"""

from __future__ import annotations

import gc
import signal
import sys

from app import cli

if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, lambda *_: gc.collect() and None)
    sys.exit(cli.main(sys.argv[1:]))
