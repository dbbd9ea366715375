"""``python -m tests.support.interrupted serve``: a gateway that gets a SIGTERM while it is made, before its servers
handle signals.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from app import cli
from app.server import run

make = run.create_app  # type: ignore[attr-defined]


def make_late(**arguments: Any) -> Any:
    """Make the app, and let the signal come meanwhile."""
    os.kill(os.getpid(), signal.SIGTERM)
    return make(**arguments)


if __name__ == "__main__":
    run.create_app = make_late  # type: ignore[assignment, attr-defined]
    sys.exit(cli.main(sys.argv[1:]))
