"""React, Vue and a compiler for JSX, from npm, in .cache: the components of the documentation need them."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent / "components"
CACHE = Path(__file__).parents[2] / ".cache" / "components"


class NotToBeHadError(Exception):
    """This machine cannot get the packages, with the reason."""


def ensure() -> Path:
    """The folder ``node_modules`` with exactly the packages of the lock; fetched if the lock is a new one.

    Raises:
        NotToBeHadError: there is no npm. A failed download raises its own error.
    """
    npm = shutil.which("npm")
    if npm is None:
        msg = "the components in the documentation: npm is not installed"
        raise NotToBeHadError(msg)
    CACHE.mkdir(parents=True, exist_ok=True)
    lock = (SOURCES / "package-lock.json").read_bytes()
    stamp = CACHE / "installed"
    with (CACHE / ".lock").open("w") as held:  # all pytest workers may fetch at once
        fcntl.flock(held, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_bytes() != lock:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(SOURCES / name, CACHE)
            subprocess.run([npm, "ci", "--silent", "--ignore-scripts"], check=True, cwd=CACHE, timeout=300)
            stamp.write_bytes(lock)
    return CACHE / "node_modules"
