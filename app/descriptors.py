"""File descriptors: as many as the system gives, and some of them not for clients."""

from __future__ import annotations

import contextlib
import resource

from .settings import SettingsError

# For etcd (two connections, and two more while it changes from one member to the next), the event loop, the log,
# listening sockets, files that are read again, and connections that were just told to go. 24 are open at idle.
RESERVE = 64
# Connections for what is short: probes, metrics, pages, refusals.
SPARE = 32
# Below, there would hardly be any stream.
LEAST = 128
ENDLESS = 1 << 30


def limit() -> int:
    """How many this process may have open."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ENDLESS if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Raise the soft limit to the hard one: 1,024, for programs that use select(), is the default of most systems.

    Raises:
        SettingsError: the hard limit is too low to serve anybody.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS says that there is no limit, and takes no more than another one.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if limit() < LEAST:
        raise SettingsError(
            f"the limit of open files is {limit()}, and at least {LEAST} are needed: raise it (ulimit -n, LimitNOFILE)"
        )


def streams() -> int:
    """How many streams there may be, if nothing else is asked."""
    return limit() - RESERVE - SPARE
