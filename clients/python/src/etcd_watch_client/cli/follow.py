"""`etcd-watch follow`, `wait` and `mirror`: each is a mirror, and what is done with it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import select
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

from ..changes import Change
from ..credentials import Token
from ..mirror import Mirror
from ..options import Options
from ..selection import to_bytes
from . import statuses
from .folder import Folder
from .lock import locked
from .runner import Runner
from .statuses import CommandError
from .text import change_json, change_lines, paint, printable, table

Bytes = Mirror[bytes, bytes]
T = TypeVar("T")
_ALTERNATE_SCREEN, _NORMAL_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
# Seconds between two drawings when nothing changes, because the age moves; and between two looks at the pipe.
_TICK = 1.0
_FRAME = 0.1  # seconds that a drawing stays: a thousand changes per second are not a thousand drawings


class Follower:
    """What the three commands share: the mirror that the arguments ask for, and how its state is reported."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        prefixes: list[str],
        keys: list[str],
        token: Token | None,
        write: Callable[[bytes], None],
        report: Callable[[str], None],
    ) -> None:
        self.arguments = arguments
        self.write = write
        self.report = report
        self.colours = bool(arguments.colours)
        self._prefixes = prefixes
        self._options: Options = {
            "keys": keys,
            "permitted": arguments.permitted,
            "token": token,
            "ca": arguments.cacert,
            "cert": arguments.client_cert,
            "key": arguments.client_key,
        }
        self._said = ("", "")

    def mirror(self, **options: object) -> Bytes:
        """Return the mirror, which has not started."""
        merged: Options = {**self._options, **options}  # type: ignore[typeddict-item]
        return Mirror(self.arguments.gateways, *self._prefixes, binary=True, **merged)

    def say_state(self, mirror: Bytes) -> None:
        """Report each new state on stderr. The end is reported by who ends it."""
        said = mirror.state, mirror.reason
        if self.arguments.quiet or said == self._said or mirror.state == "closed" or said[1] == "reset: initial":
            return
        self._said = said
        if mirror.state == "live":
            keys = "1 key" if len(mirror) == 1 else f"{len(mirror):,} keys"
            self.report(f"live: {keys} at revision {mirror.revision}")
        elif mirror.state == "connecting" and len(self.arguments.gateways) == 1:
            self.report(f"connecting to {self.arguments.gateways[0]}: {mirror.reason}")
        else:
            self.report(f"{mirror.state}: {mirror.reason}")

    def runner(self) -> Runner | None:
        """Return what runs the command of ``--exec``."""
        if self.arguments.exec is None:
            return None
        return Runner(self.arguments.exec, self.arguments.on_error, self.report)


async def follow(follower: Follower, *, table_wanted: bool) -> int:
    """Print changes, or run a command for each, until the command is ended."""
    arguments, runner = follower.arguments, follower.runner()

    async def handle(change: Change[bytes, bytes]) -> None:
        document = change_json(change)
        if arguments.json:
            follower.write(document.encode() + b"\n")
        elif runner is None and not table_wanted:
            lines = change_lines(change, colours=follower.colours)
            follower.write("".join(f"{line}\n" for line in lines).encode())
        if runner is not None:
            await runner.run(document, revision=change.revision, reset=change.reset)

    changed = asyncio.Event()

    def on_state(mirror: Bytes) -> None:
        changed.set()
        if not table_wanted:
            follower.say_state(mirror)

    more = {"resume": arguments.resume, "latest": arguments.latest, "min_revision": arguments.min_revision}
    with held(arguments.resume):
        async with follower.mirror(on_change=handle, on_state=on_state, **more) as mirror:
            if table_wanted:
                await draw(mirror, changed, follower)
            if arguments.json or runner is None:
                await until_reader_leaves(mirror)
            await mirror.until(lambda _: False)
    raise AssertionError


async def until_reader_leaves(mirror: Bytes) -> None:
    """Raise BrokenPipeError when nobody reads standard output any more, or what ends the mirror.

    A write would raise it, but on a quiet prefix none comes: `follow | head -1` would not end.
    """
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)
    while not any(happened & (select.POLLERR | select.POLLHUP) for _, happened in stdout.poll(0)):
        with contextlib.suppress(TimeoutError):
            await mirror.until(lambda _: False, _TICK)
    raise BrokenPipeError


def held(resume: str | None) -> contextlib.AbstractContextManager[None]:
    """Hold the file to continue from: two processes would run the command twice, and overwrite each other's position.

    The file itself is replaced with each change, so another file beside it is held.
    """
    if resume is None:
        return contextlib.nullcontext()
    Path(resume).parent.mkdir(parents=True, exist_ok=True)
    return locked(Path(f"{resume}.lock"), f"another process continues from {resume}; end it, or use another file")


async def draw(mirror: Bytes, changed: asyncio.Event, follower: Follower) -> None:
    """Draw a table until the mirror ends."""
    recent = 0
    follower.write(_ALTERNATE_SCREEN.encode())
    try:
        while mirror.state != "closed":
            changed.clear()
            follower.write(picture(mirror, recent, shutil.get_terminal_size(), colours=follower.colours).encode())
            recent = mirror.revision
            await asyncio.sleep(_FRAME)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK):
                    await changed.wait()
    finally:
        follower.write(_NORMAL_SCREEN.encode())


def picture(mirror: Bytes, recent: int, size: tuple[int, int], *, colours: bool) -> str:
    """Return the whole screen: a line about the state, and the table."""
    columns, rows = size
    colour = {"live": "green", "stale": "yellow"}.get(mirror.state, "red")
    age = f", unproven for {mirror.age:.0f} s" if mirror.state == "stale" and mirror.age is not None else ""
    about = f"  {len(mirror):,} keys at revision {mirror.revision}{age}  {mirror.reason}"
    head = paint(mirror.state, colour, on=colours) + about[: max(columns - len(mirror.state), 0)]
    entries = [mirror.entry(key) for key in mirror]
    lines = [head, "", *table(entries, columns, rows - 3, recent=recent, colours=colours)]
    return _HOME + "".join(f"{line}{_CLEAR_LINE}\r\n" for line in lines[: rows - 1]) + _CLEAR_BELOW


async def wait(follower: Follower) -> int:
    """Wait for the condition of the arguments. No state is skipped, however short it is."""
    arguments = follower.arguments
    value = None if arguments.value is None else to_bytes(arguments.value)

    def holds(mirror: Bytes) -> bool:
        if not mirror.revision:  # there is no state yet
            return False
        if arguments.revision is not None:
            return mirror.revision >= int(arguments.revision)
        if arguments.absent:
            return not len(mirror)
        return bool(len(mirror)) if value is None else value in mirror.values()

    found: list[bytes] = []

    def check(mirror: Bytes) -> bool:
        if holds(mirror):
            found.extend(mirror.values())
            return True
        return False

    # The gateway asks etcd for its progress: a quiet prefix reaches a revision at once, and not at the next heartbeat.
    least = arguments.revision or 0
    async with follower.mirror(on_state=follower.say_state, min_revision=least) as mirror:
        try:
            await mirror.until(check, arguments.timeout)
        except TimeoutError as error:
            gave_up = f"gave up after {arguments.timeout:g} s: {unmet(arguments)}"
            said = gave_up if mirror.state == "live" else str(error)
            raise CommandError(said, statuses.TIMED_OUT) from None
    if value is None and arguments.revision is None and len(found) == 1:
        follower.write(found[0] + b"\n")
    return statuses.DONE


def unmet(arguments: argparse.Namespace) -> str:
    """Return what the keys lack, of what `wait` waits for."""
    if arguments.revision is not None:
        return f"etcd has not reached revision {arguments.revision}"
    if arguments.absent:
        return "a key still exists"
    return "there is no such key" if arguments.value is None else f"no key has the value {arguments.value!r}"


async def keep_files(follower: Follower) -> int:
    """Keep the keys as files. If they change faster than files are written, states between are skipped."""
    arguments, runner = follower.arguments, follower.runner()
    complained: set[bytes] = set()
    first = True  # the command runs once at the start: an earlier process may have ended between swap and command
    with Folder(Path(arguments.dir), arguments.strip) as folder:
        async with follower.mirror(on_state=follower.say_state, min_revision=arguments.min_revision) as mirror:
            async for revision in states(mirror):
                entries = {key: mirror.entry(key) for key in mirror}
                changed, refused = await to_the_end(folder.write, entries)
                for key in sorted(set(refused) - complained):
                    follower.report(f"the key {printable(key)} is refused: its name cannot be the path of a file here")
                complained = set(refused)
                if (changed or first) and runner is not None:
                    document = json.dumps({"revision": revision, "dir": str(folder.path / "current")})
                    await runner.run(document, revision=revision, reset=None)
                first = False
                if arguments.once:
                    return statuses.DONE
    raise AssertionError


async def to_the_end(work: Callable[..., T], *words: object) -> T:
    """Run *work* in a thread. Who is cancelled waits for it: a folder must not be given up while it is written."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *words))
    try:
        return await asyncio.shield(running)
    finally:
        await asyncio.wait([running])


async def states(mirror: Bytes) -> AsyncIterator[int]:
    """Yield the revision of each state: the first one that is complete, then the newest after each change."""
    seen = mirror.changes()
    await mirror.until(lambda found: found.revision)
    while True:
        seen.skip()
        yield mirror.revision
        await anext(seen)
