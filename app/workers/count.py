"""How many workers ``--workers auto`` means: as many as the container may use processors."""

from __future__ import annotations

import os
from pathlib import Path

AUTO = "auto"
# Where Linux states the quota of the control group: version 2, and the two files of version 1.
QUOTA = Path("/sys/fs/cgroup/cpu.max")
QUOTA_V1 = (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))
# More processors than any machine has: the quota where there is none.
ENDLESS = 1 << 20


def worker_count(setting: int | str) -> int:
    """Return the number of workers that GATEWAY_WORKERS asks for."""
    return available_processors() if setting == AUTO else int(setting)


def available_processors() -> int:
    """Return how many processors this process may use, rounded down, but at least 1."""
    return max(1, min(_processors(), int(cpu_quota() or ENDLESS)))


def cpu_quota() -> float | None:
    """Return the processors that the control group allows; None without a limit, or without control groups."""
    try:
        words = QUOTA.read_text().split()
    except OSError:
        try:
            words = [path.read_text().strip() for path in QUOTA_V1]
        except OSError:
            return None
    return parse_cpu_quota(words)


def parse_cpu_quota(words: list[str]) -> float | None:
    """Return the processors that a quota and its period, in microseconds, allow. ``max`` and -1 are no limit.

    >>> parse_cpu_quota(["150000", "100000"])
    1.5
    """
    try:
        used, period = (int(word) for word in words)
    except ValueError:
        return None
    return used / period if used > 0 and period > 0 else None


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
