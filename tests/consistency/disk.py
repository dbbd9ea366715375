"""A disk that can hang: a separate file system in a file, for one member's data. Needs root."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

TOOLS = ("mkfs.ext4", "mount", "umount", "fsfreeze")
SIZE = 4 * 1024**3  # bytes at most: the file is sparse


class NoDiskError(Exception):
    """This machine cannot have such a disk; with the reason."""


class Disk:
    """A disk; ``folder`` is its mount point. While the disk is frozen, writes to it wait in the kernel."""

    def __init__(self) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="etcd-disk-"))
        self.folder = self._scratch / "mounted"
        self._mounted = self._frozen = False

    async def __aenter__(self) -> Self:
        """Make and mount the disk. Raises NoDiskError."""
        try:
            missing = [tool for tool in TOOLS if shutil.which(tool) is None]
            if os.geteuid() != 0 or missing:
                raise NoDiskError(f"needs root and {', '.join(missing or TOOLS)}")
            image = self._scratch / "image"
            with image.open("wb") as file:
                file.truncate(SIZE)
            self.folder.mkdir()
            await _run("mkfs.ext4", "-q", "-F", str(image))
            await _run("mount", "-o", "loop", str(image), str(self.folder))
            self._mounted = True
        except BaseException:
            shutil.rmtree(self._scratch)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.thaw()
        await _run("umount", "--lazy", str(self.folder))
        shutil.rmtree(self._scratch, ignore_errors=True)

    async def freeze(self) -> None:
        """Freeze the disk: no write is completed from now on."""
        await _run("fsfreeze", "--freeze", str(self.folder))
        self._frozen = True

    async def thaw(self) -> None:
        """Thaw the disk: the waiting writes are completed. Idempotent."""
        if self._frozen:
            await _run("fsfreeze", "--unfreeze", str(self.folder))
            self._frozen = False


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _out, error = await process.communicate()
    if process.returncode != 0:
        raise NoDiskError(f"{' '.join(command)}: {error.decode().strip()}")
