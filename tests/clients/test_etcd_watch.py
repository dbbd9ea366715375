"""The command `etcd-watch` on a real gateway and a real etcd."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from typing import Any

import pytest
from etcd_watch_client.cli import statuses

from app.dev.etcd import free_ports
from tests.clients.etcd_watch import COMMAND, SOURCES, environment, line_of, run, start
from tests.clients.gateways import Gateways
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway
from tests.support.waiting import HANG, eventually

pytestmark = [pytest.mark.etcd, pytest.mark.one_etcd]


async def end(process: Process, number: int = signal.SIGINT) -> tuple[int, str]:
    """Send a signal; return the exit status and stderr."""
    process.send_signal(number)
    async with asyncio.timeout(HANG):
        _, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, err.decode()


def changes_in(file: Path) -> list[dict[str, Any]]:
    """The changes that a command appended to a file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


# --- get and wait -----------------------------------------------------------------------------------------------------


async def test_get(server: GatewayProcess, kv: EtcdClient) -> None:
    """A value, lines, JSON, names; and the status says what is absent."""
    await kv.put("/svc/b", "two\nlines")
    revision = await kv.put(b"/svc/\xff", b"\0")
    assert await run(server.base, "get", "/svc/b") == (0, "two\nlines\n", "")
    assert await run(server.base, "get", "/svc/") == (0, "/svc/b\ttwo\\nlines\n/svc/\\xff\t\\x00\n", "")
    assert await run(server.base, "get", "/svc/", "--keys") == (0, "/svc/b\n/svc/\\xff\n", "")
    other = await kv.put("/other", "x")
    status, out, _ = await run(server.base, "get", "--prefix", "/svc/b", "--key", "/other", "/svc/b", "--json")
    first, second = map(json.loads, out.splitlines())
    assert status == 0
    assert (first["key"], first["mod_revision"]) == ("/other", other)
    assert (second["value"], second["mod_revision"]) == ("two\nlines", revision - 1)
    assert await run(server.base, "get", "/none") == (statuses.NOT_FOUND, "", "etcd-watch: there is no key '/none'\n")
    hint = "etcd-watch: there is no key '/svc', but there are keys under '/svc/'\n"
    assert await run(server.base, "get", "/svc") == (statuses.NOT_FOUND, "", hint)
    hint = "etcd-watch: there is no key under 'svc/', but there are keys under '/svc/'\n"
    assert await run(server.base, "get", "svc/") == (statuses.NOT_FOUND, "", hint)
    status, out, err = await run(server.base, "get", "/none/", "/svc/b")
    assert (status, out, "/none/" in err) == (statuses.NOT_FOUND, "/svc/b\ttwo\\nlines\n", True)


async def test_get_reads_all_pages_from_a_gateway_that_answers(server: GatewayProcess, kv: EtcdClient) -> None:
    """The first gateway of the list is away, and the prefix has more keys than a page."""
    number = 10_500  # a page has 10,000
    for start_at in range(0, number, 100):
        await kv.transact({f"/many/{one:06}": "" for one in range(start_at, start_at + 100)})
    away = f"http://127.0.0.1:{free_ports(1)[0]}"
    status, out, err = await run("", "get", "/many/", "--keys", "-g", away, "-g", server.base, "--timeout", "2m")
    assert (status, err) == (0, "")
    assert out.splitlines() == [f"/many/{one:06}" for one in range(number)]
    status, _, err = await run(away, "get", "/a", "--timeout", "300ms")
    assert (status, "no answer within 0.3 s" in err, away in err) == (statuses.UNREACHED, True, True)


async def test_wait(server: GatewayProcess, kv: EtcdClient) -> None:
    """Until a key exists, has a value, is absent, or a revision is reached."""
    exists = await start(server.base, "wait", "/svc/a")
    value = await start(server.base, "wait", "/svc/a", "--value", "done", "-q")
    assert exists.stderr is not None
    async with asyncio.timeout(HANG):
        assert b"live: 0 keys" in await exists.stderr.readline()
    await kv.put("/svc/a", "busy")
    async with asyncio.timeout(HANG):
        assert (await exists.communicate())[0] == b"busy\n"
    assert (exists.returncode, value.returncode) == (0, None)
    revision = await kv.put("/svc/a", "done")
    async with asyncio.timeout(HANG):
        assert await value.communicate() == (b"", b"")
    assert value.returncode == 0

    assert await run(server.base, "wait", "/svc/z", "--absent", "-q") == (0, "", "")
    assert (await run(server.base, "wait", "/svc/", "--revision", str(revision), "-q"))[:2] == (0, "")
    status, out, err = await run(server.base, "wait", "/svc/z", "--timeout", "200ms", "-q")
    assert (status, out) == (statuses.TIMED_OUT, "")
    assert "gave up after 0.2 s" in err


async def test_refusals(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """What would fail again ends the command, with a status of its own. The token may come from a file."""
    token = "0123456789abcdef0123456789abcdef"
    file = tmp_path / "token"
    file.write_text(token + "\n")
    settings = {"GATEWAY_TOKEN_FILE": str(file), "GATEWAY_ALLOW_PREFIXES": "/svc/"}
    async with gateway(etcd.endpoint, settings=settings) as server:
        for words in (
            ["get", "/svc/"],
            ["follow", "/svc/", "--json"],
            ["wait", "/svc/"],
            ["mirror", str(tmp_path), "/svc/"],
        ):
            status, out, err = await run(server.base, *words, "-q")
            assert (status, out) == (statuses.REFUSED, ""), words
            assert "the gateway refuses: HTTP 401 unauthorized" in err
            assert "--token-file" in err
        assert (await run(server.base, "get", "/other/", ETCD_WATCH_TOKEN=token))[0] == statuses.REFUSED
        known = ["--token-file", str(file), "--timeout", "2m"]
        assert (await run(server.base, "get", "/svc/", *known))[0] == statuses.NOT_FOUND
    status, _, err = await run("", "get", "/svc/", "--token-file", str(tmp_path / "none"))
    assert (status, "No such file" in err) == (statuses.LOCAL, True)


# --- follow -----------------------------------------------------------------------------------------------------------


async def test_follow_in_a_pipe(server: GatewayProcess, kv: EtcdClient) -> None:
    """A line for each event, a JSON line for each change, at once; Ctrl-C and SIGTERM end it without a word."""
    await kv.put("/svc/a", "1")
    text = await start(server.base, "follow", "/svc/", "-q")
    documents = await start(server.base, "follow", "/svc/", "--json")
    assert re.fullmatch(r"\d+\tput\t/svc/a\t1", await line_of(text))
    assert json.loads(await line_of(documents))["reset"] == "initial"
    revision = await kv.transact({"/svc/a": None, "/svc/b": "\x1b[2J"})
    assert {await line_of(text), await line_of(text)} == {
        f"{revision}\tdelete\t/svc/a", f"{revision}\tput\t/svc/b\t\\x1b[2J",
    }  # fmt: skip
    change = json.loads(await line_of(documents))
    assert (change["revision"], [event["type"] for event in change["events"]]) == (revision, ["delete", "put"])
    assert await end(text) == (statuses.INTERRUPTED, "")
    status, err = await end(documents, signal.SIGTERM)
    assert status == statuses.TERMINATED
    assert re.fullmatch(r"etcd-watch: live: 1 key at revision \d+\n", err)


@pytest.mark.parametrize("quiet", [True, False])
async def test_a_reader_that_leaves(server: GatewayProcess, kv: EtcdClient, quiet: bool) -> None:
    """`| head -1` ends the command, without a traceback, also if nothing more is to be written."""
    await kv.put("/svc/a", "1")
    process = await start(server.base, "follow", "/svc/", "-q")
    await line_of(process)
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    if not quiet:
        await kv.put("/svc/a", "2")
    assert process.stderr is not None
    async with asyncio.timeout(HANG):
        assert await process.stderr.read() == b""
        assert await process.wait() == statuses.BROKEN_PIPE


async def test_streams_that_are_closed(server: GatewayProcess, kv: EtcdClient, tmp_path: Path) -> None:
    """What is closed leads nowhere, and is not the next file or connection. A value that nobody gets is an error."""
    await kv.put("/svc/a", "1")
    command = f"{shlex.join(COMMAND)} get /svc/a"
    script = f"{command} <&- >&- 2>&-; echo $? >{tmp_path}/status"
    process = await asyncio.create_subprocess_exec("sh", "-c", script, env=environment(server.base))
    async with asyncio.timeout(HANG):
        await process.wait()
    assert (tmp_path / "status").read_text() == f"{statuses.LOCAL}\n"


async def test_exec_loses_no_change(kv: EtcdClient, gateways: Gateways, tmp_path: Path) -> None:
    """Whatever is killed, the gateway, the command itself, the commands that it runs: each change is handled, in order.

    The command fails at every third attempt. A change may be handled twice, if the kill comes before the file is
    written, and never not at all.
    """
    log, tries, resume = tmp_path / "log", tmp_path / "tries", tmp_path / "resume"
    script = f"echo x >> {tries}; [ $(($(wc -l < {tries}) % 3)) != 0 ] || exit 1; printf '%s\\n' \"$(cat)\" >> {log}"
    # A pause of 1 s before each second attempt would be most of the time of this test.
    fast = "from etcd_watch_client.cli import main, runner; runner._FIRST_PAUSE = 0.01; main.entry()"
    command = [sys.executable, "-W", "error", "-c", fast]
    words = ["follow", "/svc/", "--exec", script, "--resume", str(resume), "-q"]

    async def spawn() -> Process:
        return await asyncio.create_subprocess_exec(
            *command, *words, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=environment(",".join(gateways.urls))
        )

    async def handles(revision: int) -> None:
        async def handled() -> bool:
            return revision in {change["revision"] for change in changes_in(log)}

        await eventually(handled)

    revisions = [await kv.put("/svc/a", "0")]
    process = await spawn()
    await handles(revisions[0])
    for round_ in range(4):
        revisions += [await kv.put("/svc/a", f"{round_}.{number}") for number in range(6)]
        await handles(revisions[-4])
        if round_ == 1:
            await gateways.kill(0)
            await gateways.kill(1)
            await gateways.start(0)
            await gateways.start(1)
        process.send_signal(signal.SIGKILL if round_ % 2 else signal.SIGTERM)
        await process.communicate()
        revisions.append(await kv.put("/svc/a", f"while it is away {round_}"))
        process = await spawn()
    await handles(revisions[-1])
    await end(process)

    changes = changes_in(log)
    assert changes[0]["reset"] == "initial"
    assert [change for change in changes[1:] if "reset" in change] == []
    order = list(dict.fromkeys(change["revision"] for change in changes))
    assert order == sorted(order)
    assert set(revisions) <= set(order)


async def test_exec_that_fails(server: GatewayProcess, kv: EtcdClient) -> None:
    """``skip`` goes on, ``stop`` ends with a status of its own; the command knows the revision and the reason."""
    await kv.put("/svc/a", "1")
    said = 'echo "$ETCD_WATCH_REVISION $ETCD_WATCH_RESET"; exit 7'
    process = await start(server.base, "follow", "/svc/", "--exec", said, "--on-error", "skip", "-q")
    assert re.fullmatch(r"\d+ initial", await line_of(process))
    revision = await kv.put("/svc/a", "2")
    assert await line_of(process) == f"{revision} "
    status, err = await end(process)
    assert (status, "failed with status 7; it is skipped" in err) == (statuses.INTERRUPTED, True)
    status, _, err = await run(server.base, "follow", "/svc/", "--exec", "exit 7", "--on-error", "stop", "-q")
    assert (status, "failed with status 7" in err) == (statuses.COMMAND_FAILED, True)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, statuses.INTERRUPTED),
        (signal.SIGTERM, statuses.TERMINATED),
        (signal.SIGHUP, statuses.TERMINATED),
    ],
)
async def test_exec_ends_with_its_command(server: GatewayProcess, kv: EtcdClient, number: int, status: int) -> None:
    """Whichever signal ends it. Who reads its output waits for all that has it: also what the shell has started."""
    await kv.put("/svc/a", "1")
    process = await start(server.base, "follow", "/svc/", "--exec", "echo begun; sleep 600; :", "-q")
    assert await line_of(process) == "begun"
    assert await end(process, number) == (status, "")


async def test_a_live_table(server: GatewayProcess, kv: EtcdClient) -> None:
    """On a terminal: keys, values, state, and the screen as it was when the command ends."""
    await kv.put("/svc/a", "first")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 60, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "follow", "/svc/", stdin=DEVNULL, stdout=theirs, stderr=PIPE,
        env=environment(server.base, TERM="xterm", COLUMNS="60", LINES="12"),
    )  # fmt: skip
    os.close(theirs)
    screen = bytearray()

    def read() -> None:
        screen.extend(os.read(ours, 65_536))

    loop = asyncio.get_running_loop()
    loop.add_reader(ours, read)

    async def shows(text: bytes) -> None:
        async def seen() -> bool:
            return text in screen

        await eventually(seen)

    try:
        await shows(b"\x1b[32mlive\x1b[0m  1 keys at revision")
        assert b"/svc/a" in screen
        assert b"first" in screen
        await kv.put("/svc/b", "second")
        await shows(b"second")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(HANG):
            assert await process.wait() == statuses.INTERRUPTED
        assert process.stderr is not None
        assert await process.stderr.read() == b""
        await shows(b"\x1b[?1049l")
    finally:
        loop.remove_reader(ours)
        os.close(ours)
    assert screen.startswith(b"\x1b[?1049h")


# --- mirror -----------------------------------------------------------------------------------------------------------


async def test_keys_as_files(server: GatewayProcess, kv: EtcdClient, tmp_path: Path) -> None:
    """The files follow, a command is told of each swap, and no key climbs out."""
    await kv.transact({"/svc/a": "1", "/svc/d/b": b"\0", "/svc/../../out": "evil"})
    folder, log = tmp_path / "app", tmp_path / "log"
    words = ["mirror", str(folder), "/svc/", "--strip", "/svc/"]
    process = await start(server.base, *words, "--exec", f"cat >> {log}")
    current = folder / "current"

    async def has(expected: dict[str, bytes]) -> None:
        async def equal() -> bool:
            shown = current.resolve()  # first: the next swap must not fall between the names and the values
            return {
                str(one.relative_to(shown)): one.read_bytes() for one in shown.rglob("*") if one.is_file()
            } == expected

        await eventually(equal)

    async def ran_twice() -> bool:
        return log.exists() and log.read_text().count("current") == 2

    await has({"a": b"1", "d/b": b"\0"})
    await kv.transact({"/svc/a": None, "/svc/c": "3"})
    await has({"c": b"3", "d/b": b"\0"})
    await eventually(ran_twice)
    status, err = await end(process)
    assert status == statuses.INTERRUPTED
    assert err.count("the key /svc/../../out is refused") == 1
    assert not (tmp_path / "out").exists()

    await kv.put("/svc/c", "4")
    assert (await run(server.base, *words, "--once", "-q"))[0] == 0
    await has({"c": b"4", "d/b": b"\0"})


# --- completion -------------------------------------------------------------------------------------------------------

ASK = {
    "bash": """
        eval "$(etcd-watch completion bash)"
        COMP_WORDS=(etcd-watch fol) COMP_CWORD=1
        _etcd_watch
        echo "${COMPREPLY[@]}"
    """,
    "zsh": """
        compdef() { }
        compadd() { print -r -- ${(P)2} }
        eval "$(etcd-watch completion zsh)"
        words=(etcd-watch fol) CURRENT=2
        _etcd_watch
    """,
    "fish": """
        etcd-watch completion fish | source
        complete -C 'etcd-watch fol'
    """,
}


@pytest.mark.parametrize("shell", ASK)
def test_completion_in_the_shell_itself(shell: str, tmp_path: Path) -> None:
    """The script loads, and asks the program."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"NOT RUN: {shell} is not installed")
    wrapper = tmp_path / "etcd-watch"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={SOURCES} exec {sys.executable} -m etcd_watch_client "$@"\n')
    wrapper.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [program, "-c", ASK[shell]], capture_output=True, text=True, check=True, env={**environment(), "PATH": path}
    )
    assert done.stdout.split() == ["follow"], done.stderr
