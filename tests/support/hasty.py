"""``python -m tests.support.hasty serve``: a gateway with a short timeout for the head of a request."""

from __future__ import annotations

import sys

from app import cli
from app.server import protocol

# Seconds; the tests wait this long.
HEAD_TIMEOUT = 0.2

if __name__ == "__main__":
    protocol.HEAD_TIMEOUT = HEAD_TIMEOUT
    sys.exit(cli.main(sys.argv[1:]))
