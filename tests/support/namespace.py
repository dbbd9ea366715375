"""A separate host on this machine: a Linux network namespace, on cables that can be cut.

Root only, with Debian's iproute2 and iptables. The tests that use it have a network of their own (``own_network``): a
browser aborts all its requests (ERR_NETWORK_CHANGED) when the machine that it runs on gets an interface or an address,
and a page beside such a test stayed empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

# Of this thread, also where the process is one of several threads.
NETWORK = Path("/proc/thread-self/ns/net")
CLONE_NEWNET = 0x40000000  # linux/sched.h

_libc = ctypes.CDLL(None, use_errno=True)  # Python has os.unshare and os.setns since 3.12
_numbers = itertools.count()
_own: set[Path] = set()  # the network that ``own_network`` has made and not left, if any


def _network() -> Path:
    """The network of this thread, as its inode."""
    return NETWORK.readlink()


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """Give this thread, and all that it starts meanwhile, a network of its own: an empty one, with the loopback.

    Nothing that was started before can be reached. Raises OSError without root's rights.
    """
    before = os.open(NETWORK, os.O_RDONLY)
    try:
        _check(_libc.unshare(CLONE_NEWNET))
        try:
            _own.add(_network())
            subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
            yield
        finally:
            _own.clear()
            _check(_libc.setns(before, CLONE_NEWNET))
    finally:
        os.close(before)


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, (command, output.decode())


@dataclass(frozen=True)
class Cable:
    """A cable between this host (address ``here``) and the other (``there``); ``device`` is this host's end."""

    device: str
    here: str
    there: str

    async def drop(self) -> None:
        """Drop every packet, both ways: no connection is closed by that, and neither side is notified."""
        for chain, way in (("INPUT", "-i"), ("OUTPUT", "-o")):
            await _run("iptables", "-w", "-I", chain, way, self.device, "-j", "DROP")

    async def heal(self) -> None:
        """Drop no more packets."""
        for chain, way in (("INPUT", "-i"), ("OUTPUT", "-o")):
            await _run("iptables", "-w", "-D", chain, way, self.device, "-j", "DROP")


@dataclass(frozen=True)
class Namespace:
    """The other host; ``before`` is the command prefix that runs a command there."""

    before: tuple[str, ...]
    cables: tuple[Cable, ...]


@contextlib.asynccontextmanager
async def namespace(cables: int) -> AsyncIterator[Namespace]:
    """Another host, with *cables* cables to this one. Call this inside ``own_network``."""
    assert _network() in _own, "a cable changes the network of all that runs on this machine"
    number = next(_numbers)
    # Unique to this process. The name must fit 15 bytes; the network is one of 16,384 in 10.99.0.0/16.
    name = f"g{os.getpid() % 0xFFFFF:x}n{number}"
    made: list[Cable] = []
    await _run("ip", "netns", "add", name)
    try:
        await _run("ip", "-n", name, "link", "set", "lo", "up")
        for index in range(cables):
            network = (os.getpid() * 8 + number * cables + index) % 16_384
            base = f"10.99.{network // 64}.{network % 64 * 4}".rpartition(".")
            cable = Cable(f"{name}c{index}", f"{base[0]}.{int(base[2]) + 1}", f"{base[0]}.{int(base[2]) + 2}")
            await _run("ip", "link", "add", cable.device, "type", "veth", "peer", "name", "eth", "netns", name)
            await _run("ip", "-n", name, "link", "set", "eth", "name", f"eth{index}")
            await _run("ip", "address", "add", f"{cable.here}/30", "dev", cable.device)
            await _run("ip", "link", "set", cable.device, "up")
            await _run("ip", "-n", name, "address", "add", f"{cable.there}/30", "dev", f"eth{index}")
            await _run("ip", "-n", name, "link", "set", f"eth{index}", "up")
            made.append(cable)
        yield Namespace(("ip", "netns", "exec", name), tuple(made))
    finally:
        for cable in made:
            with contextlib.suppress(AssertionError):
                await _run("ip", "link", "delete", cable.device)
        await _run("ip", "netns", "delete", name)
