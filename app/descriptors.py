"""File descriptors: the limit, and the share of them that clients cannot use."""

from __future__ import annotations

import contextlib
import resource

from .settings import SettingsError

# For etcd (two connections, and two more while the gateway moves from one member to the next), idle connections to
# an upstream gateway, the event loop, the log, listening sockets, files that are read again, and connections that are
# being evicted. 24 are open when idle.
RESERVE = 64
# Connections for short requests: probes, metrics, pages, refusals.
SPARE = 32
# A lower limit leaves hardly any descriptor for a stream.
LEAST = 128
# OPEN_MAX of macOS: the highest soft limit that its setrlimit(2) promises to accept.
OPEN_MAX = 10240
ENDLESS = 1 << 30


def limit() -> int:
    """Return how many file descriptors this process may have open."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ENDLESS if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Raise the soft limit to the hard limit. Most systems set the soft limit to 1,024, for programs that use select().

    Raises:
        SettingsError: the hard limit is too low to serve clients.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS reports no hard limit, and refuses a soft limit above another limit. Its default of 256 would leave room for
    # 160 streams.
    for wanted in (hard, max(soft, OPEN_MAX)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            break
    if limit() < LEAST:
        raise SettingsError(
            f"the limit of open files is {limit()}, but the gateway needs at least {LEAST}: "
            "raise the limit (ulimit -n, LimitNOFILE)"
        )


def streams() -> int:
    """Return how many streams the limit leaves room for, after RESERVE and SPARE."""
    return limit() - RESERVE - SPARE
