"""The files that every worker reads: those of the access control and of TLS, as they were last usable.

The hub reads them, too. A worker that begins while one of them is broken, or while the issuer's keys cannot be fetched,
starts with what was read before. So a worker that dies is replaced, and what was in force stays in force.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from ..access.setup import make_access_control
from ..ports import Clock, Draw
from ..settings import Settings
from ..tls import make_tls


class WorkerFiles:
    """See the module. The constructor reads the files, and raises SettingsError if one cannot be used.

    Args:
        settings: of the workers.
    """

    def __init__(self, settings: Settings, *, clock: Clock, wall: Clock, draw: Draw) -> None:
        self._access = make_access_control(settings, clock=clock, wall=wall, draw=draw)
        self.tls = make_tls(settings, clock=clock, wall=wall)

    def contents(self) -> Mapping[str, bytes]:
        """Return what is in use now, by the names of the settings: ``read_before`` of a worker's gateway."""
        return self._access.contents | (dict(self.tls.files.contents) if self.tls is not None else {})

    async def reload(self) -> None:
        """Read the files now."""
        await self._access.reload()
        if self.tls is not None:
            await self.tls.files.look()

    async def run(self) -> None:
        """Read the files again when they change. Runs for ever."""
        work = [self._access.run()]
        if self.tls is not None:
            work.append(self.tls.files.run())
        await asyncio.gather(*work)
