"""The JavaScript package ``etcd-watch-client`` as a subscriber: exact when live, and live only while it is fed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from pathlib import Path

from tests.consistency.client import Client
from tests.consistency.history import Chronicle
from tests.consistency.judge import ViolationError, change_of
from tests.consistency.tokens import Tokens

NODE = shutil.which("node")
PROGRAM = Path(__file__).with_suffix(".mjs")
# Seconds after which a mirror has noticed a silence: three heartbeats of the torture's gateways, its timer, and the
# time until its next line.
SILENT = 3 + 1 + 1
# The status of a process whose token is refused before it was live: a gateway that was frozen has not read its files.
REFUSED = 3
OPTIONS: tuple[tuple[dict[str, object], str], ...] = (
    ({}, "direct"),
    ({"format": "sse"}, "direct"),
    ({"mode": "latest", "query": {"interval": "200ms"}}, "direct"),
    ({}, "shared"),
)


class JavascriptClient(Client):
    """A process of Node, whose mirror follows over NDJSON, over SSE, with ``mode=latest``, or through a worker.

    With *tokens* it presents a token that is replaced again and again.
    """

    def __init__(
        self,
        number: int,
        base: str,
        prefixes: Sequence[str],
        chronicle: Chronicle,
        bound: float,
        tokens: Tokens | None = None,
    ) -> None:
        super().__init__(number, base, prefixes, chronicle)
        self.name = f"etcd-watch-client (Node) {number}"
        self.worst_lag = 0.0
        self._options, self._kind = OPTIONS[number % len(OPTIONS)]
        self._token = str(tokens.present) if tokens is not None else ""
        self._bound = bound + SILENT
        self._live: tuple[int, float] | None = None  # the revision at which it is live, and since when
        self._why = ""  # the mirror has failed

    async def _follow(self) -> None:
        assert NODE is not None
        words = (self._base, json.dumps(list(self._prefixes)), json.dumps(self._options), self._kind, self._token)
        process = await asyncio.create_subprocess_exec(NODE, PROGRAM, *words, stdin=PIPE, stdout=PIPE, limit=1 << 26)
        assert process.stdout is not None
        self._live = None
        try:
            async for line in process.stdout:
                self._hear(json.loads(line))
            await process.wait()  # to kill a process that has just ended would lose its status: asyncio reports 255
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        assert process.returncode == REFUSED, f"{self.name} has ended with status {process.returncode}: {self._why}"
        self._again = True

    def _hear(self, said: dict[str, object]) -> None:
        match said:
            case {"shows": None}:
                self._live = None
            case {"shows": int(revision)}:
                self._live = revision, time.monotonic() if self._live is None else self._live[1]
            case {"failed": str(reason)}:
                self._why = reason
            case {"ended": _}:
                self.renewals += 1
            case {"revision": int(revision), "items": list(items)}:
                if self._history is self._chronicle.now:
                    self._claim(revision, [change_of(item) for item in items])

    def settle(self) -> None:
        """Check the claims, and whether the mirror that is live now lacks something that is too old."""
        super().settle()
        if self._live is None or not self._sound or self._history is not self._chronicle.now:
            return
        revision, since = self._live
        missing = self._history.first_after(self.watched, revision)
        if missing is None:
            return
        lag = time.monotonic() - max(missing[0], since)
        self.worst_lag = max(self.worst_lag, lag)
        if lag > self._bound and self.violation is None:
            self.violation = ViolationError(f"reports live at {revision} for {lag:.1f} s, and lacks {missing[1]}")
