"""Processes, as ``ps`` reports them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def ps(pid: int, column: str) -> str:
    """A column of ``ps`` for a process; empty if the process does not exist."""
    command = ["ps", "-o", column, "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie, which waits only for its parent to read its status, does not run."""
    return not ps(pid, "stat=").startswith("Z") and bool(ps(pid, "stat="))


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has stopped every thread of a process, or the process has ended."""
    if sys.platform != "linux":
        return ps(pid, "stat=")[:1] in ("T", "Z", "")
    try:
        states = [path.read_text().rpartition(") ")[2][:1] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:
        return False  # a thread has ended meanwhile
    return set(states) <= {"T", "Z"}


def processes() -> list[tuple[int, int, str]]:
    """Id, parent and command of every process; the commands of zombies are meaningless."""
    command = ["ps", "-A", "-ww", "-o", "pid=,ppid=,command="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = (line.split(None, 2) for line in listing.splitlines())
    return [(int(parts[0]), int(parts[1]), parts[2] if len(parts) > 2 else "") for parts in found]
