"""Reads the state of some ranges from etcd, within the memory that all feeds share."""

from __future__ import annotations

from functools import partial

from ..core.budget import Hold
from ..core.errors import NoRoomError
from ..core.selection import Ranges
from ..core.snapshot import Snapshot
from ..ports import Etcd
from .memory import FeedMemory, Holder
from .snapshot_scheduler import SnapshotScheduler


class StateReader:
    """Reads all of *ranges* at one linearizable revision, for *holder*, which must make room first."""

    def __init__(
        self, ranges: Ranges, etcd: Etcd, memory: FeedMemory, scheduler: SnapshotScheduler, holder: Holder
    ) -> None:
        self.ranges = ranges
        self._etcd = etcd
        self._memory = memory
        self._scheduler = scheduler
        self._holder: Holder | None = holder

    def stop(self) -> None:
        """Read no more. The holder refers to this reader, and the two would wait for the garbage collector."""
        self._holder = None

    async def read(self, *, newest: bool = False) -> tuple[Snapshot, int, Hold]:
        """Return the state, the cluster's id, and a hold that the caller must release. Raises as ``Etcd.snapshot``."""
        return await self._scheduler.read(partial(self._attempt, newest=newest))

    async def _attempt(self, *, newest: bool) -> tuple[Snapshot, int, Hold]:
        hold = self._memory.hold()

        def take(size: int) -> None:
            if self._holder is None or not self._memory.grow(self._holder, hold, size):
                names = ", ".join(map(str, self.ranges))
                msg = f"{hold.size + size} bytes or more of {names} do not fit in the memory that is left"
                raise NoRoomError(msg)

        try:
            return *await self._etcd.snapshot(self.ranges, take, newest=newest), hold
        except BaseException:
            hold.release()
            raise
