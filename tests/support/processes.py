"""What ``ps`` says of processes."""

from __future__ import annotations

import subprocess


def ps(pid: int, column: str) -> str:
    """What ps says of a process; empty if there is none."""
    command = ["ps", "-o", column, "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie, which waits only for somebody to ask for its status, does not."""
    return not ps(pid, "stat=").startswith("Z") and bool(ps(pid, "stat="))


def processes() -> list[tuple[int, int, str]]:
    """Id, parent and command of everything that runs; zombies have no command of interest."""
    command = ["ps", "-A", "-ww", "-o", "pid=,ppid=,command="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = (line.split(None, 2) for line in listing.splitlines())
    return [(int(parts[0]), int(parts[1]), parts[2] if len(parts) > 2 else "") for parts in found]
