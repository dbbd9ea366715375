"""``python -m tests.support.interrupted serve``: a gateway that gets a SIGTERM with its first line of the log, before
its servers handle signals.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from app import cli


def interrupt(record: logging.LogRecord) -> bool:
    """A filter of the log that passes everything, and sends the signal with the first line."""
    if str(record.msg).startswith("gateway "):
        os.kill(os.getpid(), signal.SIGTERM)
    return True


if __name__ == "__main__":
    logging.getLogger("gateway").addFilter(interrupt)
    sys.exit(cli.main(sys.argv[1:]))
