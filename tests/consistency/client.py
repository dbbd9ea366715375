"""``docs/examples/mirror.py`` and the package ``etcd_watch_client`` as subscribers: a live one must be exact.

The package also tells its changes: each revision must be told once, whole, and with what was before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from etcd_watch_client import Change as PackageChange
from etcd_watch_client import Entry, RefusedError
from etcd_watch_client import Mirror as PackageMirror

from tests.consistency.history import Change, Chronicle, Several, Watched, kept
from tests.consistency.judge import ViolationError, change_of
from tests.consistency.tokens import Tokens
from tests.examples.test_mirrors import load_mirror

# One state in so many changes is checked: each check copies the whole mirror, and waits for the oracle.
EVERY = 20
ENDED_WITH_TOKENS = {"expired", "revoked", "the token is renewed"}


@dataclass(frozen=True, slots=True)
class Claim:
    """What a mirror has said: ``items`` are its state at ``revision``, or all that happened since ``after``."""

    revision: int
    items: list[Change]
    after: int | None = None


class Client:
    """The reference client, at one gateway. A restore replaces it by a new one: see ``Judge.beyond_promises``."""

    def __init__(self, number: int, base: str, prefixes: Sequence[str], chronicle: Chronicle) -> None:
        self.name = f"mirror.py {number}"
        self.watched = Several(tuple(Watched("prefix", prefix.encode()) for prefix in prefixes))
        self._prefixes = prefixes
        self.checked = 0
        self.renewals = 0  # how many streams have ended with their tokens
        self.violation: AssertionError | None = None
        self._base = base
        self._chronicle = chronicle
        self._history = chronicle.now
        self._changes = 0
        self._sound = False  # whether a check has shown that the mirror is of etcd's current history
        self._again = False
        self._claims: deque[Claim] = deque()
        self.mirror: Any = None

    async def run(self) -> None:
        """Run until cancelled, or until the mirror ends by itself, which is a violation."""
        while True:
            self._history = self._chronicle.now
            self._begin()
            self._sound, self._again, self._changes = False, False, EVERY
            following = asyncio.create_task(self._follow())
            try:
                while self._history is self._chronicle.now and not (self._again or following.done()):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                if following.done():
                    following.result()
            except Exception as error:  # whatever it is, it ends the mirror of a user, too
                told = "".join(traceback.format_exception(error))
                self.violation = ViolationError(f"the mirror has ended by itself: {told}")
                return
            finally:
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await following

    def _begin(self) -> None:
        """Forget what an earlier mirror has said."""
        self._claims.clear()

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
        self._claims.append(Claim(revision, sorted(items, key=lambda change: change.key)))

    def settle(self) -> None:
        """Check the mirror's claims against history, as far as history is known."""
        while self._claims and self._claims[0].revision <= self._history.tip and self.violation is None:
            claim = self._claims.popleft()
            self.checked += 1
            truth = self._truth_of(claim)
            if claim.items == truth:
                # Changes alone may be those of two histories, and so may a state from before the restored snapshot.
                self._sound = self._sound or (claim.after is None and claim.revision > self._history.forked_at)
            elif not self._sound and self._chronicle.now.parent is not None:
                # The mirror's gateway has not noticed a restore yet. If the client is cut off before the gateway does,
                # nothing tells it that its cursor is of the old history.
                self._again = True
                self._claims.clear()
            else:
                wrong = [item for item in claim.items if item not in truth]
                wrong += [item for item in truth if item not in claim.items]
                since = "reports live" if claim.after is None else f"tells all changes since {claim.after}"
                self.violation = ViolationError(
                    f"the mirror {since} at {claim.revision}, and is wrong about {wrong[:5]}"
                )

    def _truth_of(self, claim: Claim) -> list[Change]:
        if claim.after is None:
            return self._history.state(self.watched, claim.revision)
        found = self._history.changes(self.watched, claim.after, claim.revision)
        # A key that is put and deleted in one transaction has two events; the package tells what became of the key.
        last = {(change.mod_revision, change.key): change for change in found}
        return [last[which] for which in sorted(last)]


class PackageClient(Client):
    """The package, over SSE or NDJSON. With *tokens* it presents a token that is replaced again and again."""

    def __init__(
        self, number: int, base: str, prefixes: Sequence[str], chronicle: Chronicle, tokens: Tokens | None = None
    ) -> None:
        super().__init__(number, base, prefixes, chronicle)
        self.name = f"etcd_watch_client {number}"
        self._format = "sse" if number in (0, 3) else "ndjson"  # each with tokens and without
        self._token = tokens.present if tokens is not None else None
        self._reason = ""
        self._told: int | None = None  # the revision up to which all changes have been told

    def _begin(self) -> None:
        super()._begin()
        self._told = None

    async def _follow(self) -> None:
        options: dict[str, Any] = {"format": self._format, "token": self._token}
        mirror = PackageMirror(
            self._base, *self._prefixes, binary=True, on_change=self._hear, on_state=self._see, **options
        )  # fmt: skip
        try:
            async with mirror:
                await mirror.until(lambda _: False)
        except RefusedError as error:
            # A gateway that was frozen has not read its files yet. A client that was live before waits for that; one
            # that has just started takes it for a mistake.
            if error.status != 401 or mirror.age is not None:
                raise
            self._again = True

    def _hear(self, change: PackageChange[bytes, bytes]) -> None:
        self._changes += len(change)
        after, self._told = self._told, change.revision
        if change.reset is None and after is not None and self._history is self._chronicle.now:
            events = [
                Change(event.key, change.revision) if event.entry is None else _change_of(event.entry)
                for event in change
            ]
            self._claims.append(Claim(change.revision, sorted(events, key=lambda event: event.key), after))

    def _see(self, mirror: PackageMirror[bytes, bytes]) -> None:
        if mirror.reason.startswith("reset: "):
            self._told = None  # if the states are equal, no change is told
        elif mirror.reason != self._reason:
            self.renewals += mirror.reason in ENDED_WITH_TOKENS
        self._reason = mirror.reason
        if mirror.state == "live" and self._is_due():
            self._claim(mirror.revision, [_change_of(mirror.entry(key)) for key in mirror])


def _change_of(entry: Entry) -> Change:
    lease = int(entry.lease or "0", 16)
    value = None if entry.value is None else kept(entry.value)
    return Change(entry.key, entry.mod_revision, value, entry.create_revision, entry.version, lease)
