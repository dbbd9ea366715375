"""``python -m app serve`` is ``etcd-watch-gateway serve``."""

import sys

from app.cli import main

if __name__ == "__main__":
    sys.exit(main())
