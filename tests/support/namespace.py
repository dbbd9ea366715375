"""A separate host on this machine: a Linux network namespace, on cables that can be cut.

Root only, with Debian's iproute2 and iptables.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

_numbers = itertools.count()


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
    """Another host, with *cables* cables to this one."""
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
