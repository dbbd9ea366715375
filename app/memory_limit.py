"""The memory that the process may use, compared with the memory that its settings allow it to use."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from .settings import Settings

logger = logging.getLogger("gateway")

MIB = 1 << 20
# docs/sizing.md: an idle process with its pages under way, and what the allocator makes of a counted byte.
BASE = 105 * MIB
FACTOR = 1.25
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


def needed(max_feed_bytes: int, workers: int) -> int:
    """Return the bytes that the gateway may use, without its subscribers. With workers, the hub is a process more."""
    processes = workers + 1 if workers > 1 else 1
    return int(processes * (BASE + FACTOR * max_feed_bytes))


def memory_limit(own_groups: Path = OWN_GROUPS, groups: Path = GROUPS) -> int | None:
    """Return the bytes that the control group, or RLIMIT_AS, allows; None without a limit."""
    limits = list(_group_limits(own_groups, groups))
    address_space, _hard = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space)
    return min(limits, default=None)


def _group_limits(own_groups: Path, groups: Path) -> Iterator[int]:
    """Yield the limit of each group above the process: a group may use what all the groups around it allow, too."""
    try:
        lines = os.fsdecode(own_groups.read_bytes()).split("\n")
    except OSError:
        return
    for line in filter(None, lines):
        _number, kinds, name = line.split(":", 2)
        if not kinds:
            top, file = groups, "memory.max"
        elif "memory" in kinds.split(","):
            top, file = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = top / name.lstrip("/")
        # In a container the name may be that on the host, and the container's own group is at the top.
        for folder in [own, *own.parents]:
            if folder.is_relative_to(top):
                with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                    yield int((folder / file).read_text())


def warn_of_small_limit(settings: Settings, workers: int) -> None:
    """Log a warning if the limit is below what the gateway may use: the kernel would kill it without a line."""
    limit, wanted = memory_limit(), needed(settings.max_feed_bytes, workers)
    if limit is not None and limit < wanted:
        logger.warning(
            "the memory limit is %d MiB, and the gateway may use %d MiB: "
            "lower GATEWAY_MAX_FEED_BYTES, or raise the limit",
            limit // MIB,
            wanted // MIB,
        )
