"""``python -m tests.support.seldom serve``: a gateway that reads a range's history again only after an hour."""

from __future__ import annotations

import sys

from app import cli
from app.core import backfill

if __name__ == "__main__":
    backfill.INTERVAL = backfill.LONGEST_INTERVAL = 3600.0
    sys.exit(cli.main(sys.argv[1:]))
