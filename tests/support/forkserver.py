"""A fork server: it imports the product once, and each process of the product is then a fork of it.

``python -m app serve`` spends 0.5 s of CPU on its imports, of 0.6 s from start to end, and the suite starts several
hundred processes. A fork runs the same modules by the same ``python -m``, in its own process with its own environment,
arguments and standard streams. It ends when the program has ended, without the interpreter's own end, which would free,
and so copy, each object that the fork shares with the fork server. The fork server's interpreter decides what an
interpreter decides at its start (locale, ``PYTHON*``). A process that needs something else there must start without the
fork server, as ``tests/support/gateway.py`` does. So do the processes of tests/test_cli.py, which test the start
itself.

With ``STEP_CLOCK=1`` in the environment of the tests, the wall clock of all forks steps by an hour, again and again.
It does not in a test with the marker ``wall_clock``, which compares its own clock with that of a process.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import gc
import importlib
import inspect
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coverage

from tests.support.wallclock import WallClock, of_this_process

# The modules that `serve` and `check` import in the end, some of them late: the last four are of an edge, of a hub, of
# its workers and of access control.
MODULES = (
    "app.cli",
    "app.check.command",
    "uvloop",
    "app.api.kv_upstream",
    "app.workers.hub",
    "app.workers.worker",
    "app.access.sessions",
)
# With this variable a fork's interpreter ends as each interpreter does, object by object.
WHOLE_END = "FORK_ENDS_AS_A_WHOLE"
# With this variable coverage.py measures a process. It never measures the fork server, but each fork with the variable.
MEASURED = "COVERAGE_PROCESS_CONFIG"
# The variables that forks get besides those of the test (tests/support/measured.py).
OF_FORKS: dict[str, str] = {}
MOST_BYTES = 1 << 18
LIMIT = 1 << 20
# An order's: standard error, the exit status, and the two sockets of a worker.
MOST_DESCRIPTORS = 4


class Pipe(asyncio.StreamReaderProtocol):
    """The reading end of a pipe; ``ended`` is set once the pipe is closed."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader(limit=LIMIT)
        self.ended = asyncio.get_running_loop().create_future()
        super().__init__(self.reader)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        super().connection_lost(exc)
        self.ended.set_result(None)


class Forked:
    """A forked process, with the part of ``asyncio.subprocess.Process`` that the tests use.

    The process is the fork server's child, not ours. Its output (stderr, or stdout and stderr) is in ``stdout`` and in
    ``stderr``.
    """

    def __init__(self, pid: int, output: Pipe, status: Pipe) -> None:
        self.pid = pid
        self.stdout = self.stderr = output.reader
        self.returncode: int | None = None
        self._ended = asyncio.create_task(self._await_end(output, status))

    def send_signal(self, number: int) -> None:
        """Send a signal; do nothing if the process has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for the exit status; it is negative for the signal that ended the process."""
        return await asyncio.shield(self._ended)

    async def _await_end(self, output: Pipe, status: Pipe) -> int:
        code = int(await status.reader.readline())
        # As asyncio does: all output has arrived, and no pipe is left open.
        await asyncio.gather(output.ended, status.ended)
        self.returncode = code
        return code


async def spawn(module: str, *arguments: str | bytes, env: Mapping[str, str], merged: bool = False) -> Forked:
    """Run ``python -W error -m module arguments`` with stderr piped.

    With *merged*, stdout and stderr share one pipe.
    """
    output, output_in = os.pipe()
    status, status_in = os.pipe()
    words = [os.fsencode(word).decode("utf-8", "surrogateescape") for word in (module, *arguments)]
    stepped = bool(os.environ.get("STEP_CLOCK")) and not _keeps_time
    try:
        _server(stepped).send(json.dumps([words, {**env, **OF_FORKS}, merged]).encode(), output_in, status_in)
    finally:
        os.close(output_in)
        os.close(status_in)
    told, said = await _pipe(status), await _pipe(output)
    return Forked(int(await told.reader.readline()), said, told)


async def _pipe(descriptor: int) -> Pipe:
    _transport, pipe = await asyncio.get_running_loop().connect_read_pipe(Pipe, os.fdopen(descriptor, "rb", 0))
    return pipe


_keeps_time = False


def keep_time(*, kept: bool) -> None:
    """Say whether the processes that start from now on have the machine's own wall clock even with ``STEP_CLOCK``."""
    global _keeps_time  # of the test that runs; there is only one
    _keeps_time = kept


class ForkedWorker:
    """A worker that a forked hub starts, also as a fork. It has the part of ``subprocess.Popen`` that a hub uses.

    ``test_the_commands_of_the_operations_page`` in tests/workers/test_team.py starts a hub that is not a fork.
    """

    def __init__(
        self, command: list[str], *, pass_fds: Sequence[int], env: Mapping[str, str], **_standard: object
    ) -> None:
        words = command[command.index("-m") + 1 : -len(pass_fds)]  # the fork has other descriptors
        output, output_in = os.pipe()
        self._status, status_in = os.pipe()
        try:
            order = json.dumps([words, dict(env), False]).encode()
            socket.send_fds(_ASKS[0], [order], [output_in, status_in, *pass_fds])
        finally:
            os.close(output_in)
            os.close(status_in)
        self.stderr = os.fdopen(output, "rb", 0)
        self._said = b""
        while b"\n" not in self._said:
            self._said += os.read(self._status, 64)
        self.pid = int(self._said.split(b"\n")[0])
        os.set_blocking(self._status, False)

    def poll(self) -> int | None:
        """Return the exit status; None if the process runs."""
        with contextlib.suppress(BlockingIOError):
            self._said += os.read(self._status, 64)
        _pid, status, *rest = self._said.split(b"\n")
        return int(status) if rest else None

    def send_signal(self, number: int) -> None:
        """Send a signal; do nothing if the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


# In a forked hub: the socket on which the hub asks the fork server for workers.
_ASKS: list[socket.socket] = []


class _Server:
    """The connection to one of this process's fork servers. *stepped*: the wall clock of its forks steps."""

    def __init__(self, stepped: bool) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {
            name: value for name, value in os.environ.items() if name != MEASURED and not name.startswith("GATEWAY_")
        }
        if stepped:
            folder = tempfile.mkdtemp(prefix="wall-clock-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            clock = WallClock(Path(folder) / "offset")
            clock.keep_stepping()
            environment |= clock.environment
        with theirs:
            command = [sys.executable, "-W", "error", "-m", "tests.support.forkserver", str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        self._socket = ours
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST_BYTES)
        atexit.register(self._end)

    def send(self, order: bytes, *descriptors: int) -> None:
        socket.send_fds(self._socket, [order], list(descriptors))

    def _end(self) -> None:
        self._socket.close()  # the server notices, and kills its remaining children
        self._process.wait()


_server = functools.cache(_Server)


def serve(orders: socket.socket) -> list[str]:
    """Fork for each order until the tests have ended. In each child, return the words of the child's command."""
    children: dict[int, int] = {}
    of_hubs, asks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asks.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST_BYTES)
    sources: list[Any] = [orders, of_hubs]
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ready = select.select([*sources, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 512)
            _reap(children)
        for source in sources:
            if source not in ready:
                continue
            order, descriptors, _flags, _from = socket.recv_fds(source, MOST_BYTES, MOST_DESCRIPTORS)
            if not order:
                for pid in children:
                    os.kill(pid, signal.SIGKILL)
                while children:
                    _reap(children, 0)
                of_hubs.close()
                asks.close()
                sys.exit()
            output, status, *passed = descriptors
            words, env, merged = json.loads(order)
            child = os.fork()
            if child == 0:
                if "GATEWAY_WORKERS" in env or any(word.startswith("--workers") for word in words):
                    _ASKS.append(asks.dup())
                for sock in (orders, of_hubs, asks):
                    sock.close()
                _become(env, output, {*passed, *(one.fileno() for one in _ASKS)}, merged=merged)
                return [*words, *map(str, passed)]
            for descriptor in (output, *passed):
                os.close(descriptor)
            children[child] = status
            with contextlib.suppress(BrokenPipeError):  # whoever has asked was killed meanwhile
                os.write(status, b"%d\n" % child)


def _become(env: dict[str, str], output: int, kept: set[int], *, merged: bool) -> None:
    """In a child: take on its environment and its standard streams, and close every other descriptor but *kept*."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(output, 2)
    if merged:
        os.dup2(output, 1)
    # Python remembers for each stream whether it can seek: a file that became a pipe would raise.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # as Python's, here and below
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if descriptor > 2 and descriptor not in kept:
            with contextlib.suppress(OSError):  # that of the listing
                os.close(descriptor)
    env |= of_this_process()
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # that of the environment, if a library has asked for it before
    coverage.process_startup()


def _reap(children: dict[int, int], options: int = os.WNOHANG) -> None:
    while children:
        pid, status = os.waitpid(-1, options)
        if not pid:
            return
        descriptor = children.pop(pid)
        with contextlib.suppress(BrokenPipeError):  # the child's test has ended
            os.write(descriptor, b"%d\n" % os.waitstatus_to_exitcode(status))
        os.close(descriptor)


def _warm_up() -> None:
    """Build a gateway as `serve` does, for what Python and the libraries remember of that.

    They import modules late, compile the routes' patterns and look at the handlers' types: 10 ms of CPU in each fork.
    """
    # Not at the top of the file, which pytest imports, too.
    from app.arguments import make_parser
    from app.gateway import Gateway
    from app.main import create_app
    from app.server.admission import Admission
    from app.server.run import make_config
    from app.settings import load

    settings = load({})
    gateway = Gateway(settings)
    make_config(create_app(gateway=gateway), settings, Admission(gateway.capacity)).load()
    make_parser()
    inspect.stack()  # coverage.py asks for it in each measured fork, and only the first time it takes 50 ms


def _run(module: str) -> None:
    """Run *module* as ``python -m`` does. If it ends with an exit status, end the process once nothing of it runs."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, int) or os.environ.get(WHOLE_END):
            raise
        # The interpreter does the same, in this order, before it frees everything: 7,000 page faults, 20 ms of CPU in
        # user mode and 25 ms in the kernel.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        gc.collect()  # what was never closed or awaited warns now
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)


def _main(descriptor: int) -> None:
    for name in MODULES:
        importlib.import_module(name)
    _warm_up()
    gc.collect()
    gc.freeze()  # without this each fork's collector would touch, and so copy, every object
    with socket.socket(fileno=descriptor) as orders:
        module, *arguments = serve(orders)
    sys.argv = [module, *arguments]
    if _ASKS:
        of_workers = importlib.import_module("app.workers.process")
        standard = {"PIPE": subprocess.PIPE, "DEVNULL": subprocess.DEVNULL}
        of_workers.subprocess = SimpleNamespace(Popen=ForkedWorker, **standard)  # type: ignore[attr-defined]
    _run(module)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
