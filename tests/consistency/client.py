"""``docs/examples/mirror.py`` as one of the subscribers: whenever it says that it is live, it has to be exact."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

from tests.consistency.history import Change, Chronicle, Watched
from tests.consistency.judge import ViolationError, change_of
from tests.examples.test_mirrors import load_mirror

# Claims that wait for the oracle; one in so many changes is looked at, for each is a copy of the whole mirror.
EVERY = 20


class Client:
    """The reference client, at one gateway. It is made anew after a restore: see ``Judge.beyond_promises``."""

    def __init__(self, number: int, base: str, prefix: str, chronicle: Chronicle) -> None:
        self.name = f"mirror.py {number}"
        self.watched = Watched("prefix", prefix.encode())
        self.checked = 0
        self.violation: AssertionError | None = None
        self._base = base
        self._chronicle = chronicle
        self._history = chronicle.now
        self._changes = 0
        self._sound = False  # it was seen to be of the history that etcd is in
        self._again = False
        self._claims: deque[tuple[int, list[Change]]] = deque()
        self.mirror: Any = None

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            self._history = self._chronicle.now
            self._claims.clear()
            self._sound, self._again, self._changes = False, False, EVERY
            self.mirror = load_mirror().Mirror(self._base, self.watched.name, onchange=self._look)
            following = asyncio.create_task(self.mirror.run())
            try:
                while self._history is self._chronicle.now and not (self._again or following.done()):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                if following.done():
                    following.result()
            finally:
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await following

    def _look(self, mirror: Any, changes: list[dict[str, Any]]) -> None:
        self._changes += len(changes)
        if mirror.state == "live" and self._changes >= EVERY and self._history is self._chronicle.now:
            self._changes = 0
            items = [change_of({**item, "type": "put"}) for item in mirror.items.values()]
            self._claims.append((mirror.revision, sorted(items, key=lambda change: change.key)))

    def settle(self) -> None:
        """Hold what it said against history, as far as that is known."""
        while self._claims and self._claims[0][0] <= self._history.tip and self.violation is None:
            revision, items = self._claims.popleft()
            self.checked += 1
            truth = self._history.state(self.watched, revision)
            if items == truth:
                self._sound = True
            elif not self._sound and self._chronicle.now.parent is not None:
                # Its gateway has not noticed a restore yet. Cut off before it does, its cursor tells nobody.
                self._again = True
                self._claims.clear()
            else:
                wrong = [item for item in items if item not in truth] + [item for item in truth if item not in items]
                self.violation = ViolationError(f"it says live at {revision}, and is wrong about {wrong[:5]}")
