"""What Linux holds for sockets: their states, their queues, and their memory."""

from __future__ import annotations

import os
import re
import subprocess
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


def socket_memory(port: int) -> int:
    """Bytes of the kernel's memory that the server's ends of its connections hold: queued both ways, and reserved.

    The figures are for each socket, from sock_diag (`ss -m`): /proc/net/sockstat counts the whole machine's memory,
    other tests' included (CI once showed 39 MB of it).
    """
    told = subprocess.run(
        ("ss", "-tmnHO", "state", "all", f"sport = :{port}"), check=True, capture_output=True, text=True
    ).stdout
    found = re.findall(r"skmem:\(r(\d+),rb\d+,t\d+,tb\d+,f(\d+),w(\d+),", told)
    return sum(int(size) for sizes in found for size in sizes)


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process so far."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """The resident memory of a process, in bytes."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
