"""A disk that can hang: a file system in a file, mounted through a loop device, and frozen. Root and Linux only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

TOOLS = ("mount", "umount", "mkfs.ext4", "fsfreeze")
# Bytes: etcd preallocates 64 MB for its log. Unwritten blocks use no space.
SIZE = 512 * 1024 * 1024

possible = sys.platform == "linux" and os.geteuid() == 0 and all(map(shutil.which, TOOLS))


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, (command, output.decode())


class Disk:
    """A mounted disk; ``path`` is the mount point."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._frozen = False

    async def freeze(self) -> None:
        """Freeze the disk: every write waits from now on."""
        await _run("fsfreeze", "--freeze", str(self.path))
        self._frozen = True

    async def thaw(self) -> None:
        """Thaw the disk: the waiting writes go on. Idempotent."""
        if self._frozen:
            self._frozen = False
            await _run("fsfreeze", "--unfreeze", str(self.path))


@contextlib.asynccontextmanager
async def disk(folder: Path) -> AsyncIterator[Disk]:
    """A new disk, mounted in *folder*; thawed and unmounted at the end."""
    image, path = folder / "disk.img", folder / "disk"
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE)
    await _run("mkfs.ext4", "-q", "-F", str(image))
    await _run("mount", "-o", "loop", str(image), str(path))
    made = Disk(path)
    try:
        yield made
    finally:
        await made.thaw()
        await _run("umount", "--lazy", str(path))
