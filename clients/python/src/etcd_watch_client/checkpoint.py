"""A mirror on disk, with which the next process continues."""

from __future__ import annotations

import base64
import contextlib
import glob
import json
import os
import threading
from pathlib import Path
from typing import IO, Any, NamedTuple

from .events import Entry

_FORMAT = 1


class Checkpoint(NamedTuple):
    """What a replica needs to continue."""

    entries: dict[bytes, Entry]
    revision: int
    cursor: str
    ranges: tuple[str, ...] = ()  # a stream that resumes does not say them again


def save(path: Path, query: str, checkpoint: Checkpoint) -> None:
    """Replace the file at once: a reader, or a process that starts after a crash, finds the old one or the new one."""
    entries = [
        [
            _encode(key),
            None if one.value is None else _encode(one.value),
            one.create_revision,
            one.mod_revision,
            one.version,
            one.lease,
        ]
        for key, one in checkpoint.entries.items()
    ]
    content = {
        "format": _FORMAT,
        "query": query,
        "revision": checkpoint.revision,
        "cursor": checkpoint.cursor,
        "ranges": checkpoint.ranges,
        "entries": entries,
    }
    # Two mirrors, or two processes, may have the same file by mistake: neither one writes into the other's.
    aside = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        # The values may be secret, so only the owner may read the file.
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123 - pathlib opens no descriptor
            _lock(file)
            json.dump(content, file, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def load(path: Path, query: str) -> Checkpoint | None:
    """Return what `save` wrote for the same query; None if there is no file, or the file cannot be used."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*-*.tmp"):  # by processes that were killed
        with contextlib.suppress(OSError), left.open("r+b") as file:
            if _lock(file):
                left.unlink()
    try:
        content = json.loads(path.read_bytes())
        if (content["format"], content["query"]) != (_FORMAT, query):
            return None
        entries = {entry.key: entry for entry in map(_entry, content["entries"])}
        ranges = tuple(map(str, content.get("ranges", ())))  # absent in files of older versions
        return Checkpoint(entries, int(content["revision"]), str(content["cursor"]), ranges)
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None  # written by another program, or cut: the gateway sends the state


def _lock(file: IO[Any]) -> bool:
    """Lock a file until it is closed, also by the end of the process. Return whether nobody else has it."""
    try:
        import fcntl  # not on Windows

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _entry(row: Any) -> Entry:
    key, value, create_revision, mod_revision, version, lease = row
    decoded = None if value is None else base64.b64decode(value)
    return Entry(base64.b64decode(key), decoded, int(create_revision), int(mod_revision), int(version), lease)
