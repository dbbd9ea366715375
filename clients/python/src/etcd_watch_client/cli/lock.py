"""A file or a folder that one process at a time may have. The system releases it when the process ends, however."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from . import statuses
from .statuses import CommandError


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold *path*, which may be a folder. Raises CommandError with the *refusal* if another process has it."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CommandError(refusal, statuses.LOCAL) from None
        yield
    finally:
        os.close(descriptor)
