"""What Linux holds for sockets: their states, what they have queued, and the memory of all of them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

LISTEN = 0x0A


@dataclass(frozen=True, slots=True)
class Held:
    """One end of a connection, as /proc/net/tcp shows it."""

    state: int
    unsent: int  # bytes that the other end has not acknowledged


def sockets(port: int) -> list[Held]:
    """The server's ends of its connections, in any state in which they hold something (not TIME-WAIT)."""
    found = []
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        words = line.split()
        state = int(words[3], 16)
        if int(words[1].rpartition(":")[2], 16) == port and state not in (LISTEN, 0x06):
            found.append(Held(state, int(words[4].partition(":")[0], 16)))
    return found


def tcp_memory() -> int:
    """Bytes of the kernel's memory that all TCP sockets hold, whoever's they are."""
    found = re.search(r"^TCP:.* mem (\d+)$", Path("/proc/net/sockstat").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * os.sysconf("SC_PAGE_SIZE")


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
