"""``python -m tests.support.hasty serve``: a gateway that does not wait long for the head of a request."""

from __future__ import annotations

import sys

from app import cli
from app.server import protocol

# Seconds; tests wait for it.
HEAD_TIMEOUT = 0.2

if __name__ == "__main__":
    protocol.HEAD_TIMEOUT = HEAD_TIMEOUT
    sys.exit(cli.main(sys.argv[1:]))
