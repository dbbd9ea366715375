"""A separate host on this machine: a Linux network namespace, on cables that can be cut.

Root only, with Debian's iproute2 and iptables. Both ends of a cable are in namespaces: a browser aborts requests
(ERR_NETWORK_CHANGED) when the machine that it runs on gets an interface or an address, and a page that loaded beside
such a test stayed empty. The proxies ``ToMachine`` and ``ToHost`` connect this machine with an end of a cable: a socket
stays in the namespace in which it was made.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from tests.support.proxy import Proxy

CLONE_NEWNET = 0x40000000  # linux/sched.h

_libc = ctypes.CDLL(None, use_errno=True)  # Python has os.setns since 3.12
_numbers = itertools.count()


def _enter(network: int) -> None:
    if _libc.setns(network, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextlib.contextmanager
def _inside(name: str) -> Iterator[None]:
    """Make sockets in the namespace *name*. Nothing may be awaited meanwhile: it is the thread that enters."""
    outside, inside = os.open("/proc/thread-self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        _enter(inside)
        try:
            yield
        finally:
            _enter(outside)
    finally:
        os.close(outside)
        os.close(inside)


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, (command, output.decode())


@dataclass(frozen=True)
class Cable:
    """A cable between this end (address ``here``) and the other host (``there``); ``device`` is this end's interface,
    in the namespace ``network``.
    """

    network: str
    device: str
    here: str
    there: str

    def listen(self) -> socket.socket:
        """A socket that listens at this end."""
        with _inside(self.network):
            return socket.create_server((self.here, 0))

    async def connect(self, port: int) -> socket.socket:
        """A connection from this end to a port of the other host."""
        with _inside(self.network):
            sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (self.there, port))
        return sock

    async def drop(self) -> None:
        """Drop every packet, both ways: no connection is closed by that, and neither side is notified."""
        await self._iptables("-I")

    async def heal(self) -> None:
        """Drop no more packets."""
        await self._iptables("-D")

    async def _iptables(self, action: str) -> None:
        for chain, way in (("INPUT", "-i"), ("OUTPUT", "-o")):
            rule = ("iptables", "-w", action, chain, way, self.device, "-j", "DROP")
            await _run("ip", "netns", "exec", self.network, *rule)


class ToMachine(Proxy):
    """Forwards connections that the other host makes over *cable* to *target*, an address of this machine."""

    def __init__(self, cable: Cable, target: str) -> None:
        super().__init__(target, cable.here)
        self._cable = cable

    async def listen(self) -> asyncio.Server:
        """See ``Proxy``."""
        return await asyncio.start_server(self._connections.accept, sock=self._cable.listen())


class ToHost(Proxy):
    """Forwards connections of this machine over *cable* to a port of the other host."""

    def __init__(self, cable: Cable, port: int) -> None:
        super().__init__(f"http://{cable.there}:{port}")
        self._cable, self._port = cable, port

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """See ``Proxy``."""
        return await asyncio.open_connection(sock=await self._cable.connect(self._port))


@dataclass(frozen=True)
class Namespace:
    """The other host; ``before`` is the command prefix that runs a command there."""

    before: tuple[str, ...]
    cables: tuple[Cable, ...]


@contextlib.asynccontextmanager
async def namespace(cables: int) -> AsyncIterator[Namespace]:
    """Another host, with *cables* cables."""
    name = f"gateway-{os.getpid()}-{next(_numbers)}"  # of nobody else on this machine
    here, there = f"{name}-here", f"{name}-there"
    made: list[Cable] = []
    async with contextlib.AsyncExitStack() as stack:
        for network in (here, there):
            await _run("ip", "netns", "add", network)
            stack.push_async_callback(_run, "ip", "netns", "delete", network)  # with its interfaces
            await _run("ip", "-n", network, "link", "set", "lo", "up")
        for index in range(cables):
            device = f"eth{index}"
            cable = Cable(here, device, f"10.99.{index}.1", f"10.99.{index}.2")
            await _run("ip", "-n", here, "link", "add", device, "type", "veth", "peer", "name", device, "netns", there)
            for network, address in ((here, cable.here), (there, cable.there)):
                await _run("ip", "-n", network, "address", "add", f"{address}/30", "dev", device)
                await _run("ip", "-n", network, "link", "set", device, "up")
            made.append(cable)
        yield Namespace(("ip", "netns", "exec", there), tuple(made))
