"""The JavaScript package in Node, as one more client of the cases of ``test_mirrors.py``."""

from __future__ import annotations

import asyncio
import json
import shutil
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

NODE = shutil.which("node")
DRIVER = Path(__file__).with_name("mirror_driver.mjs")


class Node:
    """One process, which runs one mirror after the other."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    async def start(cls) -> Node:
        """Start the process."""
        assert NODE is not None
        # A view may contain a value of 12 MiB.
        return cls(await asyncio.create_subprocess_exec(NODE, DRIVER, stdin=PIPE, stdout=PIPE, limit=1 << 28))

    async def call(self, *words: object) -> Any:
        """Give a command, and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        return json.loads(await self._process.stdout.readline())

    async def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
