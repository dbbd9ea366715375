"""The programs of docs/clients.md, and how a test runs them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import pytest

from tests.clients.gateways import Gateways
from tests.support.etcd import EtcdClient
from tests.support.waiting import HANG

LARGE = 1_400_000  # bytes of a value; etcd takes 1.5 MiB in a request

TOP = Path(__file__).parents[2]
PAGE = (TOP / "docs" / "clients.md").read_text(encoding="utf-8")
TOKEN = "matrix-token-0123456789abcdef"
ADDRESS = "http://127.0.0.1:8080"
# The packages of requirements-matrix.txt, in a venv of their own: none of them is part of the project.
VENV = TOP / ".cache" / "matrix"
BLOCK = re.compile(r"```(python|sh|bash)\n(.*?)```", re.DOTALL)


def python_program(heading: str) -> str:
    """The program below a heading of the page."""
    _, _, rest = PAGE.partition(f"\n### {heading}\n")
    found = BLOCK.search(rest)
    assert found is not None, heading
    assert found[1] == "python"
    return found[2]


def java_program() -> str:
    """The program of the page that is in Java."""
    (found,) = re.findall(r"```java\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def shell_program(beginning: str) -> str:
    """The program of the page that begins with this text."""
    (found,) = (text for kind, text in BLOCK.findall(PAGE) if kind != "python" and text.startswith(beginning))
    return str(found)


def needs(program: str) -> str:
    """The path of a program, of the matrix's venv or of the system. Skip the test without it."""
    path = shutil.which(program, path=f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if program != "python":
        if path is None:
            pytest.skip(f"NOT RUN: {program} is not installed")
        return path
    if not (VENV / "bin" / "python").exists():
        pytest.skip("NOT RUN: the Python clients of others are not installed; run `make matrix`")
    return str(VENV / "bin" / "python")


class Running:
    """A program that prints lines, until the block ends."""

    def __init__(self, *words: str, url: str) -> None:
        self._words = tuple(word.replace(ADDRESS, url) for word in words)
        self.lines: list[str] = []
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        """The process."""
        assert self._process is not None
        return self._process

    async def __aenter__(self) -> Self:
        environment = {**os.environ, "TOKEN": TOKEN, "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        self._process = await asyncio.create_subprocess_exec(
            *self._words,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            env=environment,
            limit=1 << 24,
            start_new_session=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.returncode is None:
            os.killpg(self.process.pid, 9)
        await self.process.communicate()

    async def shows(self, text: str) -> str:
        """Wait for a line that has this text."""
        assert self.process.stdout is not None
        async with asyncio.timeout(HANG):
            while True:
                line = (await self.process.stdout.readline()).decode()
                if not line:
                    assert self.process.stderr is not None
                    said = (await self.process.stderr.read()).decode()
                    pytest.fail(f"ended without {text!r}: {self.lines[-5:]} {said}")
                self.lines.append(line.rstrip("\n")[:200])
                if text in line:
                    return line

    async def ends(self) -> tuple[int, str]:
        """Wait for the end: the exit status, and what was said on both streams."""
        async with asyncio.timeout(HANG):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, (out + err).decode()


class Program(Protocol):
    """A client that follows ``/svc/``, in a process or in a browser's tab, and what it prints."""

    lines: list[str]

    async def shows(self, text: str) -> str:
        """Wait for a line that has this text, and return it."""


async def loses_nothing(program: Program, kv: EtcdClient, gateways: Gateways) -> None:
    """State, changes at once, a large value, odd line ends, and a gateway that is killed and comes back."""
    await program.shows("synced")
    assert program.lines[:2] == ["reset ", "put /svc/a"]
    await kv.put("/svc/live", "2")
    await program.shows("put /svc/live")
    await kv.put("/svc/odd", "a\u2028b\u0085c\r\nd")
    await program.shows("put /svc/odd")
    await kv.put("/svc/large", "x" * LARGE)
    await program.shows("put /svc/large")
    await gateways.kill(0)
    await kv.delete("/svc/a")
    await program.shows("disconnected")
    await gateways.start(0)
    await program.shows("delete /svc/a")
    assert program.lines.count("reset ") == 1
    assert program.lines.count("put /svc/large") == 1
