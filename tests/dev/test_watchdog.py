"""The watchdog: whichever of the three processes dies first, etcd and its folder go."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.dev.etcd import WATCHDOG, EmbeddedEtcd, find_etcd
from tests.support.forkserver import MEASURED
from tests.support.processes import alive, ps
from tests.support.waiting import HANG

pytestmark = pytest.mark.process

REPO = WATCHDOG.parents[2]

PARENT = """
import asyncio, sys
from app.dev.etcd import EmbeddedEtcd, find_etcd

async def main():
    async with EmbeddedEtcd(find_etcd()) as etcd:
        print(etcd.pid, etcd.data_dir.parent, flush=True)
        if sys.argv[1:] == ["fork"]:
            import os, time
            if os.fork() == 0:  # holds a copy of the pipe's end
                time.sleep(60)
        await asyncio.Event().wait()

asyncio.run(main())
"""

SLEEP = ("/bin/sleep", "600")


async def until(condition: Callable[[], bool], timeout: float = HANG) -> None:
    """Wait for a condition that no event reports."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@contextmanager
def watched(folder: Path, *command: str, parent: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A watchdog of this test, above *command*.

    The interpreter that ``dev`` starts cannot be measured, because it sees neither the environment nor site-packages.
    """
    folder.mkdir()
    how = () if MEASURED in os.environ else ("-I", "-S")
    with subprocess.Popen(
        [sys.executable, *how, WATCHDOG, str(parent or os.getpid()), str(folder), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def pid_of(process: subprocess.Popen[bytes]) -> int:
    """The pid that the watchdog prints first."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def said_by(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """What the watchdog writes until it ends. ``communicate`` would close the pipe, as a parent's death does."""
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.read(), process.stderr.read()
    process.wait(HANG)
    return out, err


def test_it_ends_with_its_command(tmp_path: Path) -> None:
    """The watchdog ends with its command; the command's output goes to standard error, and its folder stays."""
    with watched(tmp_path / "data", "/bin/sh", "-c", "echo one; echo two >&2") as process:
        assert pid_of(process) > 0
        out, err = said_by(process)

    assert (out, err, process.returncode) == (b"", b"one\ntwo\n", 0)
    assert (tmp_path / "data").exists()


def test_a_command_that_is_none(tmp_path: Path) -> None:
    """A command that cannot run: the reason goes where etcd would log."""
    with watched(tmp_path / "data", str(tmp_path / "nothing")) as process:
        pid_of(process)
        _out, err = said_by(process)

    assert b"No such file or directory" in err


def test_without_its_parent(tmp_path: Path) -> None:
    """The pipe reports the parent's death: the watchdog kills the command, and removes its folder."""
    with watched(tmp_path / "data", *SLEEP) as process:
        child = pid_of(process)
        assert alive(child)
        process.communicate(timeout=HANG)

    assert not alive(child)
    assert not (tmp_path / "data").exists()


def test_a_parent_that_is_another(tmp_path: Path) -> None:
    """A changed parent process also counts as the parent's death, even if another process holds the pipe open."""
    with watched(tmp_path / "data", *SLEEP, parent=1) as process:
        child = pid_of(process)
        process.wait(HANG)

    assert not alive(child)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """A signal to the watchdog ends the command; the folder is left to the parent."""
    with watched(tmp_path / "data", *SLEEP) as process:
        child = pid_of(process)
        process.send_signal(number)
        process.wait(HANG)

    assert not alive(child)
    assert (tmp_path / "data").exists()


def test_it_imports_nothing_of_the_gateway() -> None:
    """The watchdog imports nothing of the gateway, because each start of an etcd waits for the watchdog."""
    assert re.findall(r"^(?:from|import) app.*", WATCHDOG.read_text(), re.MULTILINE) == []


@pytest.mark.etcd
@pytest.mark.parametrize("mode", ["plain", "fork"])
async def test_a_killed_parent_leaves_no_etcd(mode: str) -> None:
    """kill -9 of Python leaves no etcd, even if a fork of Python still holds the pipe through which the watchdog would
    notice at once.
    """
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", PARENT, mode, stdout=subprocess.PIPE, start_new_session=True, cwd=REPO
    )
    try:
        assert parent.stdout is not None
        pid, folder = (await parent.stdout.readline()).split()
        assert alive(int(pid))

        parent.kill()

        await until(lambda: not alive(int(pid)))
        await until(lambda: not Path(folder.decode()).exists())
    finally:
        os.killpg(parent.pid, signal.SIGKILL) if mode == "fork" else None
        await parent.communicate()  # reads to the end of its pipe: wait() leaves the transport open


@pytest.mark.etcd
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_killed_watchdog_leaves_no_etcd(number: signal.Signals) -> None:
    async with EmbeddedEtcd(find_etcd()) as etcd:
        pid = etcd.pid
        os.kill(int(ps(pid, "ppid=")), number)
        if sys.platform == "linux" or number is signal.SIGTERM:
            await until(lambda: not alive(pid))

    assert not alive(pid)
