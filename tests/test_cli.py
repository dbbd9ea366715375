"""The command line, as it is typed: its errors, ``serve`` and ``dev``, and that nothing is left when they end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from app import __version__
from app.cli import main
from app.settings import PREFIX, Settings
from tests.support.gateway import environment, gateway, start
from tests.support.streams import watch
from tests.support.waiting import HANG, eventually

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any setting of whoever runs the tests."""
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture(name="taken")
def _taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        yield owner.getsockname()[1]


def run(*arguments: str, settings: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``python -m app`` to its end."""
    command = [sys.executable, "-W", "error", "-m", "app", *arguments]
    return subprocess.run(
        command, env=environment(settings or {}), capture_output=True, text=True, timeout=HANG, check=False
    )


# --- without running anything -----------------------------------------------------------------------------------------


@pytest.mark.process
def test_version_and_help() -> None:
    """On standard output, with status 0."""
    version, help_text = run("--version"), run("--help")

    assert (version.returncode, version.stdout, version.stderr) == (0, f"{__version__}\n", "")
    assert (help_text.returncode, help_text.stderr) == (0, "")
    assert "serve" in help_text.stdout
    assert "dev" in help_text.stdout


@pytest.mark.parametrize("command", ["serve", "dev"])
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every setting is a flag, with its variable; ``dev`` brings its own etcd."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())

    assert caught.value.code == 0
    for name in Settings.model_fields:
        shown = command == "serve" or not name.startswith("etcd")
        assert (f"--{name.replace('_', '-')} VALUE" in text) == shown
        assert bool(re.search(rf"{PREFIX}{name.upper()}\b", text)) == shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: command"),
        (["run"], "invalid choice: 'run'"),
        (["serve", "--lingr", "1s"], "unrecognized arguments: --lingr 1s"),
        (["serve", "--linger"], "expected one argument"),
        (["dev", "--etcd", "http://a:1"], "unrecognized arguments: --etcd http://a:1"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, and what is wrong."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "dev"])
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--linger", "soon"], "GATEWAY_LINGER (--linger): 'soon' is no duration"),
        (["--port", "tcp://10.0.0.1:80"], "Kubernetes service link"),
        (["--host", "0.0.0.0"], "GATEWAY_ALLOW_PREFIXES (--allow-prefixes)"),
        (["--allow-prefixes", "/a/,"], "GATEWAY_ALLOW_PREFIXES (--allow-prefixes)"),
        (["--token-file", "/no/such/file"], "GATEWAY_TOKEN_FILE (--token-file): cannot read /no/such/file"),
        (["--token-file", "/"], "GATEWAY_TOKEN_FILE (--token-file): cannot read /"),
    ],
)
def test_bad_settings(command: str, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 and one line, before anything is started."""
    status = main([command, *flags])
    (line,) = capsys.readouterr().err.splitlines()

    assert status == 2
    assert line.startswith("etcd-watch-gateway: ")
    assert said in line


@pytest.mark.process
def test_bad_setting_of_a_process() -> None:
    """The same from the environment and through ``python -m app``: no traceback."""
    done = run("serve", settings={"GATEWAY_MAX_FEEDS": "many", "GATEWAY_HEARTBEAT": "-1"})

    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(":")[1].strip() for line in done.stderr.splitlines()] == [
        "GATEWAY_MAX_FEEDS (--max-feeds)",
        "GATEWAY_HEARTBEAT (--heartbeat)",
    ]


# --- serve ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["port", "admin-port"])
@pytest.mark.process
def test_port_in_use(taken: int, setting: str) -> None:
    """Named, with status 2 and no traceback."""
    other = "admin-port" if setting == "port" else "port"
    done = run("serve", f"--{setting}", str(taken), f"--{other}", "0", "--log-level", "error")
    name = f"GATEWAY_{setting.upper().replace('-', '_')} (--{setting})"

    assert done.returncode == 2
    assert done.stderr == f"etcd-watch-gateway: {name}: cannot listen on 127.0.0.1:{taken}: Address already in use\n"


@pytest.mark.process
def test_one_port_for_both() -> None:
    """The two listeners can't share one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = run("serve", "--port", str(port), "--admin-port", str(port), "--log-level", "error")

    assert done.returncode == 2
    assert "GATEWAY_ADMIN_PORT (--admin-port): cannot listen" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
@pytest.mark.process
def test_address_that_is_not_ours(host: str) -> None:
    """It is the host that is wrong, not the port."""
    done = run("serve", "--host", host, "--allow-prefixes", "", "--port", "0", "--log-level", "error")

    assert done.returncode == 2
    assert done.stderr.startswith(f"etcd-watch-gateway: GATEWAY_HOST (--host): cannot listen on {host}:0: ")


@pytest.mark.process
async def test_serve_says_what_it_ignores() -> None:
    """Unknown variables are warned about by name, their values are not shown; it runs none the less."""
    unknown = {"GATEWAY_LINGR": "5s", "GATEWAY_SERVICE_HOST": "10.96.0.1"}
    async with gateway(NOWHERE, settings=unknown) as server:
        warned = [line["variable"] for line in server.lines if line["message"].startswith("unknown setting")]

    assert warned == ["GATEWAY_LINGR", "GATEWAY_SERVICE_HOST"]
    assert "10.96.0.1" not in str(server.lines)


@pytest.mark.process
async def test_open_on_purpose() -> None:
    """All interfaces, with '' for all prefixes: accepted."""
    server = await start("--host=0.0.0.0", "--port=0", "--allow-prefixes=", f"--etcd={NOWHERE}")
    await server.listening()
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{server.base}/livez")
    status = await server.stop()

    assert (answer.status_code, status) == (200, 0)


def processes() -> list[tuple[int, int, str]]:
    """Id, parent and command of everything that runs; zombies have no command of interest."""
    command = ["ps", "-A", "-ww", "-o", "pid=,ppid=,command="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = (line.split(None, 2) for line in listing.splitlines())
    return [(int(parts[0]), int(parts[1]), parts[2] if len(parts) > 2 else "") for parts in found]


@pytest.mark.process
async def test_one_process_whatever_web_concurrency_says() -> None:
    """One process is one registry."""
    async with gateway(NOWHERE, settings={"WEB_CONCURRENCY": "4", "UVICORN_WORKERS": "4"}) as server:
        children = [pid for pid, parent, _command in processes() if parent == server.pid]

    assert children == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.process
async def test_signals_end_serve_well(number: int) -> None:
    """Status 0 for both: it was asked to stop, and did; also when etcd was never there, and somebody waits."""
    async with (
        gateway(NOWHERE) as server,
        await watch(server.base, "prefix=/", {"Accept": "text/event-stream"}) as stream,
    ):
        status = await server.stop(number)
        last = await stream.next_event()

    assert status == 0
    assert last is not None
    assert last.type == "close"


@pytest.mark.process
async def test_human_log() -> None:
    """For a terminal: time, level, message, and what belongs to it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "serve", "--port=0", f"--etcd={NOWHERE}", "--log-format=human"),
        env=environment({}),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(HANG):
        lines = [(await process.stderr.readline()).decode() for _ in range(2)]
        process.terminate()
        await process.communicate()

    assert re.match(
        rf"\d\d:\d\d:\d\d\.\d{{3}}Z info    gateway {re.escape(__version__)} +listen=127.0.0.1:0 etcd=", lines[0]
    )
    assert re.match(r"\S+ info    listening +port=\d+\n", lines[1])
    assert process.returncode == 0


# --- dev --------------------------------------------------------------------------------------------------------------


class Dev:
    """``python -m app dev``, as a terminal runs it: a process group of its own, with a scratch folder to look into."""

    def __init__(self, process: asyncio.subprocess.Process, scratch: Path) -> None:
        self.process = process
        self.scratch = scratch
        self.text = ""

    async def ready(self) -> str:
        """Read until it has said everything; its URL."""
        assert self.process.stdout is not None
        async with asyncio.timeout(HANG):
            while "Ctrl-C" not in self.text:
                line = (await self.process.stdout.readline()).decode()
                assert line, await self.process.communicate()
                self.text += line
        found = re.search(r"a page +(http://127\.0\.0\.1:\d+)/", self.text)
        assert found is not None, self.text
        return found[1]

    def etcds(self) -> list[str]:
        """Processes that have to do with its scratch folder."""
        return [command for _pid, _parent, command in processes() if str(self.scratch) in command]

    async def signal(self, number: int) -> int:
        """As Ctrl-C is sent, to the whole group; the exit status."""
        os.killpg(self.process.pid, number)
        async with asyncio.timeout(HANG):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode

    async def nothing_left(self) -> bool:
        """No process and no folder."""
        return self.etcds() == [] and list(self.scratch.iterdir()) == []


@contextlib.asynccontextmanager
async def dev(scratch: Path, *flags: str) -> AsyncIterator[Dev]:
    """Running, whatever it has come to."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "app", "dev", "--port=0", *flags),
        env=environment({"TMPDIR": str(scratch)}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield Dev(process, scratch)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.mark.etcd
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_dev(tmp_path: Path, number: int) -> None:
    """Prints what to open, serves data that changes, and ends well with all that it started, streams included."""
    async with dev(tmp_path) as running:
        base = await running.ready()
        urls = re.findall(r"http://127\.0\.0\.1:\d+/[^\s']*", running.text)
        async with httpx.AsyncClient(timeout=HANG) as http:
            for url in [url for url in urls if "/v1/watch" not in url]:
                assert (await http.get(url)).status_code == 200, url
            listed = (await http.get(f"{base}/v1/kv?prefix=/svc/")).json()
        assert f"curl -N '{base}/v1/watch?prefix=/svc/'" in running.text
        assert f"{base}/v1/watch?prefix=/svc/&format=ndjson" in urls
        assert running.etcds() != []
        async with await watch(base, "prefix=/svc/") as stream:
            state = await stream.until("synced")
            changes = await stream.changes(2)
            status = await running.signal(number)
            last = (await stream.until("close"))[-1]

        assert len(listed["kvs"]) >= 10
        assert len(state) >= 10
        assert changes[0].data["key"].startswith("/svc/")
        assert last.data["reason"] == "drain"
        assert status == 0
        assert await running.nothing_left()


@pytest.mark.etcd
async def test_dev_with_a_token(tmp_path: Path) -> None:
    """What it prints works as printed, and keeps the token out of the terminal's scrollback."""
    token = tmp_path / "a token"
    token.write_text("s3cret\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    async with dev(scratch, "--token-file", str(token)) as running:
        await running.ready()
        command = re.search("curl -s .*", running.text)
        assert command is not None
        shell = await asyncio.create_subprocess_shell(command[0], stdout=asyncio.subprocess.PIPE)
        out, _ = await shell.communicate()
        await running.signal(signal.SIGTERM)

    assert json.loads(out)["count"] >= 10
    assert "s3cret" not in running.text


@pytest.mark.etcd
async def test_dev_killed(tmp_path: Path) -> None:
    """kill -9 leaves no time for anything: its etcd and its folder go none the less."""
    async with dev(tmp_path) as running:
        await running.ready()
        assert running.etcds() != []
        status = await running.signal(signal.SIGKILL)

        assert status == -signal.SIGKILL
        await eventually(running.nothing_left)


@pytest.mark.etcd
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_dev_interrupted_while_it_starts(tmp_path: Path, number: int) -> None:
    """Nothing is left either; it was asked to stop, and did."""
    async with dev(tmp_path) as running:

        async def etcd_is_starting() -> bool:
            return any("--data-dir" in command for command in running.etcds())

        await eventually(etcd_is_starting)
        status = await running.signal(number)

        assert status == 0
        await eventually(running.nothing_left)


@pytest.mark.etcd
async def test_dev_with_a_port_in_use(tmp_path: Path, taken: int) -> None:
    """The error of ``serve``, and no etcd left."""
    async with dev(tmp_path, "--port", str(taken), "--log-level", "error") as running:
        async with asyncio.timeout(HANG):
            _out, error = await running.process.communicate()

        assert running.process.returncode == 2
        assert f"GATEWAY_PORT (--port): cannot listen on 127.0.0.1:{taken}: Address already in use" in error.decode()
        assert "Traceback" not in error.decode()
        assert await running.nothing_left()
