"""Files that are read again when they change. A file that cannot be used changes nothing, and says so.

Files whose values depend on each other are read together (``poll_together``): one swap of a link may replace them all.

The content counts, not the date: two writes may share a date, and Kubernetes replaces a file of a Secret or a ConfigMap
by renaming a link to another folder.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from .event_loop import BESIDE
from .files import first_bytes
from .settings import SettingsError, named

logger = logging.getLogger("gateway")

T = TypeVar("T")

# Seconds between two looks at a file. A change counts when two looks have seen the same content, so within half a
# second: an editor may write the file in pieces, and half a policy can be a valid policy.
LOOK = 0.25
# Looks after which a content that could not be used is parsed again, a minute: a certificate may have become valid.
AGAIN = 240


Outcome = Literal["unchanged", "changed", "unusable"]

# What a look has found: a content and its value, which may be put to use; or why there is nothing to put to use, for
# example because this look is the first to see the content ("moved").
Found = Outcome | Literal["moved"] | tuple[tuple[bytes, ...], T]


class FileError(Exception):
    """A file cannot be used. The message says why, in one line for each fault, without values of the file.

    If several files are read together, *setting* names the file that is at fault.
    """

    def __init__(self, message: str, setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting


class Source(Protocol):
    """Something that is read again while the gateway runs: a file, or the keys at a URL."""

    setting: str
    trouble: str  # why it cannot be read now; what was read before then stays valid

    @property
    def ready(self) -> bool:
        """Whether it has been read once."""

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call *listener* after each change."""

    @property
    def contents(self) -> Mapping[str, bytes]:
        """What is in use now, by the names of the settings; empty before it was read."""

    async def look(self) -> Outcome:
        """Read it now, and use it if it has changed, or read it soon. For SIGHUP."""

    async def run(self) -> None:
        """Read it again whenever that may be needed. Runs for ever."""


class WatchedFiles(Generic[T]):
    """The latest usable content of files that belong together. The constructor reads the files, if it must.

    Args:
        files: the files, by the names of their settings.
        parse: makes the value of the contents, in the order of *files*, or raises FileError. It runs in another thread.
        most: the most bytes that a file may have.
        what: what the log calls the files.
        read_before: contents by the names of settings. They count instead of the files' own, until a change is seen.
        parse_before: is *parse* for *read_before*. What is in force stays in force, also if it could not be used now.

    Raises:
        SettingsError: a file cannot be used.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        parse: Callable[..., T],
        most: int,
        what: str,
        read_before: Mapping[str, bytes] | None = None,
        parse_before: Callable[..., T] | None = None,
    ) -> None:
        self.setting = next(iter(files))
        self.trouble = ""
        self.ready = True
        self._files = files
        self._listeners: list[Callable[[], None]] = []
        self._parse = parse
        self._most = most
        self._what = what
        # The last content that could not be used, and why, so that it is not parsed at each look; and the looks since.
        self._refused: tuple[tuple[bytes, ...], FileError] | None = None
        self._refused_looks = 0
        try:
            self._data = tuple(map(read_before.__getitem__, files)) if read_before else self._read()
            self.value = self._made(self._data, parse_before if read_before else None)
        except FileError as error:
            raise SettingsError(self._explained(error)) from None
        self._seen = self._data

    @property
    def contents(self) -> Mapping[str, bytes]:
        """See ``Source``."""
        return dict(zip(self._files, self._data, strict=True))

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call *listener* after each change."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Look at the files in every ``LOOK`` seconds."""
        await run_together((self,))

    async def look(self) -> Outcome:
        """Read the files now, and use them as soon as they are parsed. For SIGHUP."""
        return await self.poll(at_once=True)

    async def poll(self, *, at_once: bool = False) -> Outcome:
        """Look at the files. See ``poll_together``."""
        return (await poll_together((self,), at_once=at_once))[0]

    async def find(self, *, at_once: bool) -> Found[T]:
        """Read and parse the files, and return what can be put to use. Reads before it first gives way to others.

        *at_once*: also what was not seen before. Parse also what could not be used before: a certificate may be valid
        meanwhile.
        """
        try:
            data = self._read()
            seen, self._seen = self._seen, data
            if data == self._data:
                return self._recovered()
            if not at_once:
                if data != seen:
                    return "moved"
                if self._refused is not None and self._refused[0] == data:
                    self._refused_looks = (self._refused_looks + 1) % AGAIN
                    if self._refused_looks:
                        return self._unusable(self._refused[1])
            # In another thread: 25,000 tokens take 0.4 s, and all streams would wait.
            return data, await BESIDE.call(self._made, data)
        except FileError as error:
            return self._unusable(error)

    def adopt(self, found: Found[T]) -> Outcome:
        """Put to use what ``find`` has found. The listeners are not called yet."""
        if isinstance(found, str):
            return "unchanged" if found == "moved" else found
        data, value = found
        if data != self._seen or data == self._data:
            return "unchanged"  # while this was parsed, another look has seen a newer content, or used this one
        self._recovered()
        self._data, self.value = data, value
        logger.info("%s has changed", self._what, extra=self._named())
        return "changed"

    def tell(self) -> None:
        """Call the listeners, after ``adopt``."""
        for listener in self._listeners:
            listener()

    def _read(self) -> tuple[bytes, ...]:
        return tuple(self._content(setting, path) for setting, path in self._files.items())

    def _content(self, setting: str, path: Path) -> bytes:
        try:
            data = first_bytes(path, self._most + 1)
        except OSError as error:
            raise FileError(f"cannot be read: {error.strerror or error}", setting) from None
        if len(data) > self._most:
            raise FileError(f"has more than {self._most} bytes", setting)
        return data

    def _made(self, data: tuple[bytes, ...], parse: Callable[..., T] | None = None) -> T:
        try:
            return (parse or self._parse)(*data)
        except FileError as error:
            self._refused = data, error
            raise
        except Exception as error:  # a defect of a parser must not end the gateway, nor change who may read
            self._refused = data, FileError(f"cannot be parsed ({type(error).__name__})")
            raise self._refused[1] from None

    def _recovered(self) -> Outcome:
        if self.trouble:
            self.trouble = ""
            logger.info("%s can be used again", self._what, extra=self._named())
        return "unchanged"

    def _unusable(self, error: FileError) -> Outcome:
        trouble = self._explained(error)
        if trouble != self.trouble:
            self.trouble = trouble
            logger.warning(
                "%s cannot be used: what was read before stays valid",
                self._what,
                extra={**self._named(), "reason": trouble},
            )
        return "unusable"

    def _named(self) -> dict[str, str]:
        return {"setting": self.setting, "file": str(self._files[self.setting])}

    def _explained(self, error: FileError) -> str:
        setting = error.setting or self.setting
        return "\n".join(f"{named(setting)}: {self._files[setting]}: {line}" for line in str(error).splitlines())


class WatchedFile(WatchedFiles[T]):
    """One file."""

    def __init__(
        self,
        path: Path,
        setting: str,
        parse: Callable[[bytes], T],
        most: int,
        what: str = "a file",
        read_before: Mapping[str, bytes] | None = None,
    ) -> None:
        super().__init__({setting: path}, parse, most, what, read_before)


async def poll_together(files: Sequence[WatchedFiles[Any]], *, at_once: bool = False) -> list[Outcome]:
    """Look at files, and put to use what can be used: all of it before any listener is called.

    A change is used if two looks in a row have seen the same content of all files: a link may be swapped between the
    reads of two of them. *at_once*: it is used anyway.
    """
    found = await asyncio.gather(*(file.find(at_once=at_once) for file in files))
    if "moved" in found:
        found = ["unchanged" if isinstance(one, tuple) else one for one in found]
    outcomes = [file.adopt(one) for file, one in zip(files, found, strict=True)]
    for file, outcome in zip(files, outcomes, strict=True):
        if outcome == "changed":
            file.tell()
    return outcomes


async def run_together(files: Sequence[WatchedFiles[Any]]) -> None:
    """Look at files together in every ``LOOK`` seconds. Runs for ever."""
    while True:
        await asyncio.sleep(LOOK)
        await poll_together(files)
