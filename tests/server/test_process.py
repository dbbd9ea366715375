"""The process and its surroundings: signals at any moment, standard streams and a log that nobody reads, odd starts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from app.dev.etcd import free_ports
from app.server.sockets import bind
from app.settings import SettingsError
from tests.support.embedded import EmbeddedEtcd
from tests.support.forkserver import OF_FORKS, WHOLE_END
from tests.support.gateway import GatewayProcess, environment, gateway, start
from tests.support.metrics import gateway_metric
from tests.support.raw_http import Line
from tests.support.streams import watch
from tests.support.waiting import eventually, soon

NOWHERE = "http://127.0.0.1:1"
linux = pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: reads /proc, or sizes a pipe, as on Linux")


# --- signals ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def repeated(process: int, number: int, period: float) -> Iterator[None]:
    """Send the signal again and again until the process is gone; from a thread, which a busy loop does not delay."""
    over = threading.Event()
    descriptor = os.pidfd_open(process)  # never signals another process that got the same pid

    def repeat() -> None:
        with contextlib.suppress(ProcessLookupError):
            while not over.is_set():
                signal.pidfd_send_signal(descriptor, number)
                over.wait(period)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.close(descriptor)


async def gone(running: GatewayProcess) -> int:
    """Wait until the process has ended by itself; return the status."""
    async with asyncio.timeout(60):
        await running.process.wait()
    return await running.stop()


@linux
@pytest.mark.parametrize("period", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_come_until_the_end(number: int, period: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """An orderly end has status 0 however late a signal comes: the handler must stay until the process has gone."""
    monkeypatch.setitem(OF_FORKS, WHOLE_END, "1")
    running = await start("--port=0", f"--etcd={NOWHERE}")
    await running.listening()
    with repeated(running.pid, number, period):
        status = await gone(running)

    assert status == 0
    assert running.lines[-1]["message"] == "stopped"
    assert [line["message"] for line in running.lines].count("stopping at once") <= 2
    assert running.other == []


@linux
@pytest.mark.etcd
async def test_signals_come_until_the_end_of_streams(etcd: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """With subscribers, who get the reason for the close, late signals also end in status 0; a SIGHUP changes
    nothing.
    """
    monkeypatch.setitem(OF_FORKS, WHOLE_END, "1")
    running = await start("--port=0", f"--etcd={etcd.endpoint}")
    await running.listening()
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(await watch(running.base, "prefix=/")) for _ in range(20)]
        for stream in streams:
            await stream.until("synced")
        with repeated(running.pid, signal.SIGTERM, 0.003), repeated(running.pid, signal.SIGHUP, 0.005):
            status = await gone(running)

    assert status == 0
    assert running.lines[-1]["message"] == "stopped"


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


@linux
@pytest.mark.parametrize("command", ["serve", "dev"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_while_it_starts(command: str, number: int) -> None:
    """A signal after the first handler is installed, long before the gateway listens, ends the gateway with status
    0.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "app", command, "--port=0", "--log-format=json"),
        env=environment({}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )

    async def handled() -> bool:
        # Python handles SIGINT from the beginning; once SIGTERM is handled, both are.
        return catches(process.pid, signal.SIGTERM)

    await eventually(handled)
    process.send_signal(number)
    async with asyncio.timeout(60):
        _out, error = await process.communicate()

    assert process.returncode == 0, error
    assert b"Traceback" not in error


async def test_sighup_reloads(tmp_path: Path) -> None:
    """SIGHUP reads the token file at once, and the log reports the result for each part; the process continues."""
    file = tmp_path / "token"
    file.write_bytes(b"one\n")
    async with gateway(NOWHERE, settings={"GATEWAY_TOKEN_FILE": str(file)}) as server:
        contents = ((b"two\n", "changed"), (b"two\n", "unchanged"), (b"", "unusable"))
        for turn, (content, said) in enumerate(contents):
            file.write_bytes(content)
            server.process.send_signal(signal.SIGHUP)
            line = (await server.logged("reloaded", turn + 1))[turn]
            assert line["token"] == said
            assert line["etcd"] == "read for each connection"
        async with httpx.AsyncClient(base_url=server.base) as http:
            allowed = await http.get("/v1/feeds", headers={"Authorization": "Bearer two"})
        assert allowed.status_code == 200


@pytest.mark.parametrize("way", ["hang-up", "shell"])
async def test_a_terminal_that_goes_away(way: str) -> None:
    """``serve`` ends in order with its terminal, even if a shell passes SIGHUP on while the terminal still exists."""
    master, slave = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(  # noqa: ASYNC220  # asyncio's runs no code in the child
        [sys.executable, "-W", "error", "-m", "app", "serve", "--port=0", f"--etcd={NOWHERE}"],
        env=environment({}),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=own_terminal,
    )
    os.close(slave)
    try:
        said = b""
        while b"listening" not in said:
            said += os.read(master, 4096)
        if way == "shell":
            process.send_signal(signal.SIGHUP)
            while b"reloaded" not in said:
                said += os.read(master, 4096)
        os.close(master)  # the kernel sends SIGHUP to the session's leader, which is this gateway
        status = await asyncio.to_thread(process.wait, 30)
    finally:
        process.kill()

    assert status == 0


async def test_sighup_that_was_ignored_stays_so() -> None:
    """SIGHUP that was ignored at the start stays ignored, as nohup requires."""
    program = (
        sys.executable,
        "-c",
        "import os, signal, sys; signal.signal(1, signal.SIG_IGN); os.execv(*eval(sys.argv[1]))",
    )
    command = [sys.executable, "-m", "app", "serve", "--port=0", f"--etcd={NOWHERE}", "--log-format=json"]
    process = await asyncio.create_subprocess_exec(
        *program, repr((command[0], command)), env=environment({}), stderr=asyncio.subprocess.PIPE
    )
    running = GatewayProcess(process)
    await running.listening()
    process.send_signal(signal.SIGHUP)
    status = await running.stop()

    assert status == 0
    assert [line for line in running.lines if line["message"] == "reloaded"] == []


# --- the log ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def quiet_gateway(
    descriptor: int, *flags: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    """A gateway whose standard error is *descriptor*: its process, and its URL once it answers."""
    (port,) = free_ports(1)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "app", "serve", f"--port={port}", f"--etcd={NOWHERE}"),
        *("--log-format=json", *flags),
        env=environment({}),
        stderr=descriptor,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:

            async def alive() -> bool:
                assert process.returncode is None
                try:
                    return (await http.get("/livez")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(alive)
            yield process, http
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def end(process: asyncio.subprocess.Process) -> int:
    """Send SIGTERM; return the status."""
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        return await process.wait()


LONG = "x" * 4000


async def log_much(http: httpx.AsyncClient, lines: int) -> None:
    """Cause refusals, whose log lines contain a range of 4,000 bytes."""

    async def down() -> bool:
        return bool((await http.get("/readyz")).json()["etcd"]["state"] == "down")

    await eventually(down)
    line = Line(http.base_url.port or 0)
    for _ in range(lines):
        assert (await line.ask(f"/v1/watch?prefix={LONG}")).status == 503
    await line.close()


def read_log(descriptor: int, lines: list[dict[str, object]]) -> None:
    """Read the log to its end into *lines*."""
    with open(descriptor, "rb") as file:
        for line in file:
            lines.append(json.loads(line))  # noqa: PERF401  # the test looks at them meanwhile


async def test_a_stalled_reader_stops_nothing() -> None:
    """With a full pipe on standard error, the gateway still serves, drops lines beyond its bound, and counts them."""
    reading, writing = os.pipe()
    async with quiet_gateway(writing) as (process, http):
        os.close(writing)
        await log_much(http, 400)
        assert (await http.get("/livez")).status_code == 200
        dropped = await gateway_metric(http, "log_lines_dropped_total")
        assert 50 < dropped < 400
        lines: list[dict[str, object]] = []
        reader = asyncio.create_task(asyncio.to_thread(read_log, reading, lines))
        # The report comes once all pending lines are written, which on a slow machine could be after the end has begun.
        await soon(lambda: any(line["logger"] == "gateway.log" for line in lines))
        status = await end(process)
        await reader

    assert status == 0
    (notice,) = [line for line in lines if line["logger"] == "gateway.log"]
    assert notice["lines"] == dropped
    assert lines[-1]["message"] == "stopped"
    refused = [line for line in lines if line["message"] == "refused"]
    assert len(refused) + dropped == 400


async def test_a_killed_gateway_has_written_its_log() -> None:
    """What was logged before a SIGKILL, as the kernel sends it when memory runs out, is not lost."""
    reading, writing = os.pipe()
    async with quiet_gateway(writing) as (process, http):
        os.close(writing)
        line = Line(http.base_url.port or 0)
        asked = await line.ask("/v1/watch?prefix=/svc/")
        process.kill()
        await process.wait()
        await line.close()
    lines: list[dict[str, object]] = []
    read_log(reading, lines)

    assert asked.status == 503
    assert [one["range"] for one in lines if one["message"] == "refused"] == ["prefix=/svc/"]


async def test_a_reader_that_stalls_for_good() -> None:
    """If nobody ever reads the log, the process still ends, with status 0."""
    reading, writing = os.pipe()
    async with quiet_gateway(writing) as (process, http):
        os.close(writing)
        await log_much(http, 30)
        status = await end(process)
    os.close(reading)

    assert status == 0


async def test_a_reader_that_has_gone() -> None:
    """With EPIPE for every line, the gateway still serves, counts the lines, and ends with status 0."""
    reading, writing = os.pipe()
    async with quiet_gateway(writing) as (process, http):
        os.close(writing)
        os.close(reading)
        await log_much(http, 3)

        async def counted() -> bool:
            return await gateway_metric(http, "log_lines_dropped_total") >= 3

        await eventually(counted)
        status = await end(process)

    assert status == 0


async def test_a_log_that_does_not_block() -> None:
    """The parent may share a descriptor that does not block: lines wait, and stay whole."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    async with quiet_gateway(writing) as (process, http):
        os.close(writing)
        await log_much(http, 30)
        lines: list[dict[str, object]] = []
        reader = asyncio.create_task(asyncio.to_thread(read_log, reading, lines))
        status = await end(process)
        await reader

    assert status == 0
    assert [line["message"] for line in lines].count("refused") == 30
    assert lines[-1]["message"] == "stopped"


def test_what_python_prints_by_itself_is_logged() -> None:
    """Warnings, and exceptions that Python cannot raise to a caller, become lines of the log, which never blocks."""
    program = """
import warnings
from app import logs
logs.install("json", "info")
warnings.warn("a warning")
class Broken:
    def __del__(self):
        raise RuntimeError("nobody hears it")
Broken()
logs.finish()
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment({}), capture_output=True, check=True)
    warned, failed = [json.loads(line) for line in done.stderr.splitlines()]

    assert "a warning" in warned["message"]
    assert failed["level"] == "error"
    assert "RuntimeError: nobody hears it" in failed["exception"]


# --- odd starts -------------------------------------------------------------------------------------------------------

CLOSED = ["2>&-", "<&- >&- 2>&-", "<&- 2>/dev/null", ">&- 2>/dev/null", "2>/dev/full", ">/dev/full 2>/dev/full"]


async def shell(text: str, *, settings: dict[str, str] | None = None, cwd: Path | None = None) -> tuple[int, bytes]:
    """Run a gateway as a shell starts it; wait until it answers or ends; return its status and its output."""
    (port,) = free_ports(1)
    top = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_shell(
        text.replace("GATEWAY", f"exec {sys.executable} -m app serve --port={port} --etcd={NOWHERE}"),
        env=environment({"PYTHONPATH": str(top), **(settings or {})}),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    talk = asyncio.create_task(process.communicate())
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:

        async def answers_or_ended() -> bool:
            if talk.done():
                return True
            try:
                return (await http.get("/livez")).status_code == 200 and (await http.get("/")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(answers_or_ended)
    if not talk.done():
        process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        _out, error = await talk
    assert process.returncode is not None
    return process.returncode, error


@pytest.mark.parametrize("streams", CLOSED)
async def test_without_standard_streams(streams: str) -> None:
    """With closed or full standard streams the gateway serves, and ends with status 0. No socket gets a standard
    stream's number.
    """
    status, _error = await shell(f"GATEWAY {streams}")

    assert status == 0


@pytest.mark.parametrize("streams", CLOSED)
async def test_bad_settings_without_standard_streams(streams: str) -> None:
    """Without standard streams only the status reports bad settings."""
    status, _error = await shell(f"GATEWAY --linger=soon {streams}")

    assert status == 2


def links_of(pid: int) -> dict[str, str]:
    """The targets of a process' open descriptors."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[entry.name] = str(entry.readlink())
    return found


@linux
async def test_closed_streams_are_not_given_away() -> None:
    """Descriptors 0 to 2 are the null device, not a listening socket."""
    command = f"{sys.executable} -m app serve --port=0 --etcd={NOWHERE} <&- >&- 2>&-"
    process = await asyncio.create_subprocess_shell(f"exec {command}", env=environment({}))

    async def listens() -> bool:
        return any(link.startswith("socket:") for link in links_of(process.pid).values())

    await eventually(listens)
    links = links_of(process.pid)
    status = await end(process)

    assert [links[number] for number in ("0", "1", "2")] == [os.devnull] * 3
    assert status == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"LC_ALL": "xx"},
        {"LANG": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"HOME": "/no/such/folder", "TMPDIR": "/no/such/folder"},
    ],
)
async def test_odd_environments(settings: dict[str, str]) -> None:
    """Without the locale or a home the gateway serves, and the error names a bad setting, whatever characters the
    locale can print.
    """
    status, error = await shell("GATEWAY", settings=settings)
    refused, named = await shell("GATEWAY --log-level=läut", settings=settings)

    assert (status, b"Traceback" in error) == (0, False)
    assert refused == 2
    assert b"GATEWAY_LOG_LEVEL (--log-level)" in named
    assert b"Traceback" not in named


async def test_without_a_folder_or_an_environment(tmp_path: Path) -> None:
    """The gateway serves if its working folder is gone or not writable, or if the environment is empty."""
    gone = tmp_path / "gone"
    status, error = await shell(f"mkdir {gone}; cd {gone}; rmdir {gone}; GATEWAY")
    assert (status, error.count(b"Traceback")) == (0, 0)
    status, error = await shell("cd /proc/self; GATEWAY")
    assert (status, error.count(b"Traceback")) == (0, 0)
    top = Path(__file__).parents[2]
    bare = await asyncio.create_subprocess_shell(
        f"cd {top}; exec env -i {sys.executable} -m app serve --linger=soon", stderr=asyncio.subprocess.PIPE
    )
    _out, error = await bare.communicate()
    assert (bare.returncode, error.count(b"Traceback")) == (2, 0)


@pytest.mark.parametrize("host", ["::", "[::]", "::1"])
def test_no_ipv6(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kernel without IPv6 the error names the host."""

    def refuse(family: int, *_rest: object) -> None:
        assert family == socket.AF_INET6
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr("app.server.sockets.socket.socket", refuse)
    with pytest.raises(SettingsError, match=r"^GATEWAY_HOST \(--host\): cannot listen on .*not supported"):
        bind(host, 0, 65536, "GATEWAY_PORT (--port)")


async def test_all_addresses_of_ipv6() -> None:
    """``--host ::`` listens if the system has IPv6."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("NOT RUN: this machine has no IPv6")
    running = await start("--host=::", "--allow-prefixes=", "--port=0", f"--etcd={NOWHERE}")
    await running.listening()
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"http://[::1]:{running.port}/livez")
    status = await running.stop()

    assert (answer.status_code, status) == (200, 0)
