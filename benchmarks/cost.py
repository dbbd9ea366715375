"""The cost of a process: CPU time, memory and descriptors, read from ``/proc``. Linux only."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")


def tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    children = [
        int(child) for task in (PROC / str(pid) / "task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [pid, *(found for child in children for found in tree(child))]


def cpu_seconds(pid: int) -> float:
    """CPU time used by the process and all its descendants, user and system, to the nanosecond.

    The source is ``schedstat``, the scheduler's own account: ``stat`` counts ticks of 10 ms. The kernel's work on
    loopback for the receiver's socket happens in the sender's ``send`` and counts for the sender: alike for every peer.
    """
    total = 0
    for process in tree(pid):
        for task in (PROC / str(process) / "task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_kib(pid: int) -> int:
    """Resident memory of the process and all its descendants, in KiB."""
    total = 0
    for process in tree(pid):
        lines = (PROC / str(process) / "status").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return total


def descriptors(pid: int) -> int:
    """The number of open file descriptors of the process and all its descendants: a connection is one."""
    return sum(len(list((PROC / str(process) / "fd").iterdir())) for process in tree(pid))
