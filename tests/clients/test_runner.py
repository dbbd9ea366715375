"""The command of ``--exec`` ends with what runs it: the next start must not run the same change beside it."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from etcd_watch_client.cli import runner
from etcd_watch_client.cli.runner import Runner

from tests.support.waiting import HANG

pytestmark = pytest.mark.process

# Each command has the pipe as its descriptor 3, and so has all that it starts: the pipe ends with the last of them.
ENDS = "echo begun >&3; sleep 600; :"
IGNORES = f"trap '' TERM; {ENDS}"
# The shell ends at once. What it has started cleans up, which takes until the test says so.
PROGRAM = """if True:
    import os, signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.write(3, b"begun\\n")
    signal.sigwait({signal.SIGTERM})
    os.write(3, b"asked\\n")
    open("go").read()
    os.write(3, b"clean\\n")
"""
CLEANS_UP = f"{shlex.quote(sys.executable)} -I -S -c {shlex.quote(PROGRAM)} & wait"


async def begin(command: str, folder: Path) -> tuple[asyncio.Task[None], asyncio.StreamReader]:
    """Run a command until it has begun. Return the run, and what the command writes to its descriptor 3."""
    for name in ("said", "go"):
        os.mkfifo(folder / name)
    reader = asyncio.StreamReader()
    file = os.fdopen(os.open(folder / "said", os.O_RDONLY | os.O_NONBLOCK), "rb")
    held = os.open(folder / "said", os.O_WRONLY)  # without a writer the pipe would be at its end
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    whole = f"cd {folder}; exec 3>said; {command}"
    run = asyncio.create_task(Runner(whole, "retry", lambda _: None).run("{}", revision=7, reset=None))
    async with asyncio.timeout(HANG):
        assert await reader.readline() == b"begun\n"
    os.close(held)
    return run, reader


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What is written until no process has the pipe."""
    async with asyncio.timeout(HANG):
        return await reader.read()


async def test_nothing_of_a_command_is_left(tmp_path: Path) -> None:
    """Not only the shell ends: what it waits for does, too."""
    run, said = await begin(ENDS, tmp_path)
    run.cancel()
    assert await rest(said) == b""
    await asyncio.wait([run])
    assert run.cancelled()


async def test_a_command_that_is_cancelled_while_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell may have started others before it is known to have begun itself."""
    create, goes_on = asyncio.create_subprocess_exec, asyncio.Event()

    async def slow(*words: str, **options: Any) -> asyncio.subprocess.Process:
        process = await create(*words, **options)
        await goes_on.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    run, said = await begin(ENDS, tmp_path)
    for _ in range(2):
        run.cancel()
        await asyncio.sleep(0)
    goes_on.set()
    assert await rest(said) == b""
    await asyncio.wait([run])
    assert run.cancelled()


async def test_a_command_that_ignores_the_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed, with all that it has started."""
    monkeypatch.setattr(runner, "_GRACE", 0.01)
    run, said = await begin(IGNORES, tmp_path)
    run.cancel()
    assert await rest(said) == b""
    await asyncio.wait([run])


async def test_who_is_cancelled_again_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second SIGTERM, or Ctrl-C, ends the grace, and leaves nothing either."""
    monkeypatch.setattr(runner, "_GRACE", 10 * HANG)
    run, said = await begin(IGNORES, tmp_path)
    run.cancel()
    for _ in range(9):
        await asyncio.sleep(0)
    run.cancel()
    assert await rest(said) == b""
    await asyncio.wait([run])


async def test_what_cleans_up_has_the_time_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the shell that has started it ends at once."""
    monkeypatch.setattr(runner, "_GRACE", 10 * HANG)
    run, said = await begin(CLEANS_UP, tmp_path)
    run.cancel()
    async with asyncio.timeout(HANG):
        assert await said.readline() == b"asked\n"
    await asyncio.to_thread((tmp_path / "go").write_text, "\n")
    assert await rest(said) == b"clean\n"
    run.cancel()  # or it waits until process 1 has taken note of the orphan's end
    await asyncio.wait([run])


async def test_what_a_command_leaves_behind_goes_on(tmp_path: Path) -> None:
    """The command has succeeded, and a server that it has started stays."""
    run, said = await begin("echo begun >&3; (read -r _ <go; echo served >&3) & :", tmp_path)
    await asyncio.wait([run])
    run.cancel()
    await asyncio.to_thread((tmp_path / "go").write_text, "\n")
    assert await rest(said) == b"served\n"
