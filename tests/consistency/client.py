"""``docs/examples/mirror.py`` and the package ``etcd_watch_client`` as subscribers: a live one must be exact."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Any

from etcd_watch_client import Change as PackageChange
from etcd_watch_client import Entry
from etcd_watch_client import Mirror as PackageMirror

from tests.consistency.history import Change, Chronicle, Several, Watched
from tests.consistency.judge import ViolationError, change_of
from tests.examples.test_mirrors import load_mirror

# One claim in so many changes is checked: each claim copies the whole mirror, and waits for the oracle.
EVERY = 20


class Client:
    """The reference client, at one gateway. A restore replaces it by a new one: see ``Judge.beyond_promises``."""

    def __init__(self, number: int, base: str, prefixes: Sequence[str], chronicle: Chronicle) -> None:
        self.name = f"mirror.py {number}"
        self.watched = Several(tuple(Watched("prefix", prefix.encode()) for prefix in prefixes))
        self._prefixes = prefixes
        self.checked = 0
        self.violation: AssertionError | None = None
        self._base = base
        self._chronicle = chronicle
        self._history = chronicle.now
        self._changes = 0
        self._sound = False  # whether a check has shown that the mirror is of etcd's current history
        self._again = False
        self._claims: deque[tuple[int, list[Change]]] = deque()
        self.mirror: Any = None

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            self._history = self._chronicle.now
            self._claims.clear()
            self._sound, self._again, self._changes = False, False, EVERY
            following = asyncio.create_task(self._follow())
            try:
                while self._history is self._chronicle.now and not (self._again or following.done()):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                if following.done():
                    following.result()
            finally:
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await following

    async def _follow(self) -> None:
        """Run a new mirror."""
        self.mirror = load_mirror().Mirror(self._base, self._prefixes, onchange=self._look)
        await self.mirror.run()

    def _look(self, mirror: Any, changes: list[dict[str, Any]]) -> None:
        self._changes += len(changes)
        if mirror.state == "live" and self._is_due():
            self._claim(mirror.revision, [change_of({**item, "type": "put"}) for item in mirror.items.values()])

    def _is_due(self) -> bool:
        return self._changes >= EVERY and self._history is self._chronicle.now

    def _claim(self, revision: int, items: list[Change]) -> None:
        self._changes = 0
        self._claims.append((revision, sorted(items, key=lambda change: change.key)))

    def settle(self) -> None:
        """Check the mirror's claims against history, as far as history is known."""
        while self._claims and self._claims[0][0] <= self._history.tip and self.violation is None:
            revision, items = self._claims.popleft()
            self.checked += 1
            truth = self._history.state(self.watched, revision)
            if items == truth:
                self._sound = True
            elif not self._sound and self._chronicle.now.parent is not None:
                # The mirror's gateway has not noticed a restore yet. If the client is cut off before the gateway does,
                # nothing tells it that its cursor is of the old history.
                self._again = True
                self._claims.clear()
            else:
                wrong = [item for item in items if item not in truth] + [item for item in truth if item not in items]
                self.violation = ViolationError(
                    f"the mirror reports live at {revision}, and is wrong about {wrong[:5]}"
                )


class PackageClient(Client):
    """The package, over SSE: the other followers and mirror.py read NDJSON more often."""

    def __init__(self, number: int, base: str, prefixes: Sequence[str], chronicle: Chronicle) -> None:
        super().__init__(number, base, prefixes, chronicle)
        self.name = f"etcd_watch_client {number}"

    async def _follow(self) -> None:
        def count(change: PackageChange[bytes, bytes]) -> None:
            self._changes += len(change)

        def look(mirror: PackageMirror[bytes, bytes]) -> None:
            if mirror.state == "live" and self._is_due():
                self._claim(mirror.revision, [_change_of(mirror.entry(key)) for key in mirror])

        mirror = PackageMirror(
            self._base, *self._prefixes, binary=True, format="sse", on_change=count, on_state=look
        )  # fmt: skip
        async with mirror:
            await mirror.until(lambda _: False)


def _change_of(entry: Entry) -> Change:
    lease = int(entry.lease or "0", 16)
    return Change(entry.key, entry.mod_revision, entry.value, entry.create_revision, entry.version, lease)
