"""The command line as a user types it: its errors, ``serve`` and ``dev``, and that nothing is left when they end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app import __version__
from app.cli import main
from app.dev.etcd import free_ports
from app.settings import PREFIX, Settings
from app.settings_text import flag_of, form_of
from tests.support.gateway import environment, gateway, start
from tests.support.processes import processes
from tests.support.streams import watch
from tests.support.waiting import HANG

NOWHERE = "http://127.0.0.1:1"


pytestmark = pytest.mark.usefixtures("clean_environment")


def run(*arguments: str, settings: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``python -m app`` to its end."""
    command = [sys.executable, "-W", "error", "-m", "app", *arguments]
    return subprocess.run(
        command, env=environment(settings or {}), capture_output=True, text=True, timeout=HANG, check=False
    )


# --- without running anything -----------------------------------------------------------------------------------------


@pytest.mark.process
def test_version_and_help() -> None:
    """Version and help go to standard output, with status 0."""
    version, help_text = run("--version"), run("--help")

    assert (version.returncode, version.stdout, version.stderr) == (0, f"{__version__}\n", "")
    assert (help_text.returncode, help_text.stderr) == (0, "")
    assert "serve" in help_text.stdout
    assert "dev" in help_text.stdout


@pytest.mark.process
@pytest.mark.parametrize(
    "command",
    [
        ["version"],
        ["token"],
        ["config", "check"],
        ["policy", "schema"],
        ["check", "--prefix=/a/", f"--url={NOWHERE}"],
        ["check", "--prefix=/a/", f"--url={NOWHERE}", "--json"],
        ["check", "--prefix=/a/", f"--url={NOWHERE}", f"--through={NOWHERE}"],
    ],
    ids=" ".join,
)
def test_output_that_cannot_be_written(command: list[str]) -> None:
    """A full disk is named, with no stack trace. A reader that has left is no error to talk about."""
    arguments = [sys.executable, "-W", "error", "-m", "app", *command]
    reading, left = os.pipe()
    os.close(reading)
    with Path("/dev/full").open("w") as full, os.fdopen(left, "w") as pipe:
        ended = [
            subprocess.run(
                arguments, env=environment({}), stdout=out, stderr=subprocess.PIPE, text=True, timeout=HANG, check=False
            )
            for out in (full, pipe)
        ]

    said = ["etcd-watch-gateway: cannot write to standard output: No space left on device\n", ""]
    assert [(each.returncode, each.stderr) for each in ended] == [(2, text) for text in said]


@pytest.mark.parametrize("command", ["serve", "dev"])
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every setting is a flag, with its variable; ``dev`` starts its own etcd."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())

    assert caught.value.code == 0
    for name in Settings.model_fields:
        shown = command == "serve" or not name.startswith("etcd")
        assert (f"{flag_of(name)} {form_of(name)}" in text) == shown
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
    """A wrong command line gives status 2 and the error."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "dev"])
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--linger", "soon"], "GATEWAY_LINGER (--linger): 'soon' is not a duration"),
        (["--port", "tcp://10.0.0.1:80"], "Kubernetes service link"),
        (["--host", "0.0.0.0"], "GATEWAY_ALLOW_PREFIXES (--allow-prefixes)"),
        (["--allow-prefixes", "/a/,"], "GATEWAY_ALLOW_PREFIXES (--allow-prefixes)"),
        (["--token-file", "/no/such/file"], "GATEWAY_TOKEN_FILE (--token-file): cannot read /no/such/file"),
        (["--token-file", "/"], "GATEWAY_TOKEN_FILE (--token-file): cannot read /"),
    ],
)
def test_bad_settings(command: str, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad settings give status 2 and one line, before anything is started."""
    status = main([command, *flags])
    (line,) = capsys.readouterr().err.splitlines()

    assert status == 2
    assert line.startswith("etcd-watch-gateway: ")
    assert said in line


@pytest.mark.process
def test_bad_setting_of_a_process() -> None:
    """A bad setting from the environment, through ``python -m app``, gives the same and no traceback."""
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
    """A port in use is named, with status 2 and no traceback."""
    other = "admin-port" if setting == "port" else "port"
    done = run("serve", f"--{setting}", str(taken), f"--{other}", "0", "--log-level", "error")
    name = f"GATEWAY_{setting.upper().replace('-', '_')} (--{setting})"

    assert done.returncode == 2
    assert done.stderr == f"etcd-watch-gateway: {name}: cannot listen on 127.0.0.1:{taken}: Address already in use\n"


@pytest.mark.process
def test_one_port_for_both() -> None:
    """The two listeners cannot share a port."""
    (port,) = free_ports(1)
    done = run("serve", "--port", str(port), "--admin-port", str(port), "--log-level", "error")

    assert done.returncode == 2
    assert "GATEWAY_ADMIN_PORT (--admin-port): cannot listen" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
@pytest.mark.process
def test_address_that_is_not_ours(host: str) -> None:
    """For an address of another machine, the error names the host, not the port."""
    done = run("serve", "--host", host, "--allow-prefixes", "", "--port", "0", "--log-level", "error")

    assert done.returncode == 2
    assert done.stderr.startswith(f"etcd-watch-gateway: GATEWAY_HOST (--host): cannot listen on {host}:0: ")


@pytest.mark.process
async def test_serve_says_what_it_ignores() -> None:
    """``serve`` warns about unknown variables by name, does not show their values, and runs nevertheless."""
    unknown = {"GATEWAY_LINGR": "5s", "GATEWAY_SERVICE_HOST": "10.96.0.1"}
    async with gateway(NOWHERE, settings=unknown) as server:
        pass
    warned = [line for line in server.lines if line["message"].startswith("unknown setting")]
    assert [line["variable"] for line in warned] == ["GATEWAY_LINGR", "GATEWAY_SERVICE_HOST"]
    assert [line.get("did_you_mean") for line in warned] == ["GATEWAY_LINGER", None]
    assert "10.96.0.1" not in str(server.lines)


@pytest.mark.process
async def test_open_on_purpose() -> None:
    """On all interfaces, '' for all prefixes is accepted as a deliberate choice."""
    server = await start("--host=0.0.0.0", "--port=0", "--allow-prefixes=", f"--etcd={NOWHERE}")
    await server.listening()
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{server.base}/livez")
    status = await server.stop()

    assert (answer.status_code, status) == (200, 0)


@pytest.mark.process
async def test_one_process_whatever_web_concurrency_says() -> None:
    """There is one process, whatever WEB_CONCURRENCY is, because there is one registry."""
    async with gateway(NOWHERE, settings={"WEB_CONCURRENCY": "4", "UVICORN_WORKERS": "4"}) as server:
        children = [pid for pid, parent, _command in processes() if parent == server.pid]

    assert children == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.process
async def test_signals_end_serve_well(number: int) -> None:
    """Both signals end ``serve`` with status 0, even if etcd was never there and a client waits."""
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
    """On a terminal a log line has time, level, message, and its fields."""
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
