"""Keys as files. All files of one state are in a folder of their own; a symlink moves to it at once."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..events import Entry
from ..selection import to_bytes
from .lock import locked

CURRENT = "current"
_VERSIONS = ".versions"
_LONGEST_NAME, _LONGEST_PATH = 255, 2048  # bytes
# One key must not keep all others from being written: on a disk that ignores case two keys may have one path, and a
# disk may refuse names that are not UTF-8.
_NAME_REFUSED = {errno.EEXIST, errno.EILSEQ, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR}


def path_of(key: bytes, strip: bytes = b"") -> bytes | None:
    """Return the relative path of a key's file; None if the key's name cannot be a path inside of the folder."""
    path = key.removeprefix(strip).removeprefix(b"/")
    parts = path.split(b"/")
    # An empty part would make /a//b and /a/b one file.
    if (
        len(path) > _LONGEST_PATH
        or b"\0" in path
        or any(part in (b"", b".", b"..") or len(part) > _LONGEST_NAME for part in parts)
    ):
        return None
    return path


def layout(keys: Iterable[bytes], strip: bytes = b"") -> tuple[dict[bytes, bytes], list[bytes]]:
    """Return the path of each key, and the keys that are refused.

    Two keys may not have one path, and a file cannot also be a folder. There the longer paths win: they are more.
    """
    found = {key: path_of(key, strip) for key in keys}
    paths: dict[bytes, bytes] = {}
    taken: set[bytes] = set()  # files and folders
    # A path inside of a folder is longer than the folder's own.
    for key in sorted(found, key=lambda key: (-len(found[key] or b""), key)):
        path = found[key]
        if path is None or path in taken:
            continue
        paths[key] = path
        parts = path.split(b"/")
        taken.update(b"/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return paths, sorted(found.keys() - paths.keys())


class Folder:
    """``with Folder(path) as folder: folder.write(entries)``. One process at a time may have it."""

    def __init__(self, path: Path, strip: str = "") -> None:
        self.path = path
        self._strip = to_bytes(strip)
        self._held = contextlib.ExitStack()
        self._written: dict[bytes, Entry] = {}  # what the files of the present version have, by their paths

    def __enter__(self) -> Folder:
        (self.path / _VERSIONS).mkdir(parents=True, exist_ok=True)
        refusal = f"another process keeps keys in {self.path}; use another folder"
        self._held.enter_context(locked(self.path / _VERSIONS, refusal))
        return self

    def __exit__(self, *_error: object) -> None:
        self._held.close()

    def write(self, entries: Mapping[bytes, Entry]) -> tuple[bool, list[bytes]]:
        """Make the files those of *entries*. Return whether anything has changed, and the refused keys."""
        paths, refused = layout(entries, self._strip)
        wanted = {path: entries[key] for key, path in paths.items()}
        present = self._present()
        if present is not None and self._is(present, wanted):
            self._written = wanted
            return False, refused
        number = 1 + max((int(one.name) for one in self._versions()), default=0)
        fresh = self.path / _VERSIONS / str(number)
        try:
            for path in self._fill(fresh, wanted, present):
                del wanted[path]
            refused = sorted(key for key in entries if paths.get(key) not in wanted)
            self._swap(fresh)
        except BaseException:
            _remove(fresh)
            raise
        self._written = wanted
        for version in self._versions():
            # A reader may still be in the version before.
            if version not in (fresh, present):
                _remove(version)
        return True, refused

    def _present(self) -> Path | None:
        """The folder to which the symlink points, if it is one of ours."""
        with contextlib.suppress(OSError):
            target = self.path / (self.path / CURRENT).readlink()
            if target.parent == self.path / _VERSIONS and target.is_dir():
                return target
        return None

    def _versions(self) -> list[Path]:
        return [one for one in (self.path / _VERSIONS).iterdir() if one.name.isdecimal()]

    def _is(self, version: Path, wanted: Mapping[bytes, Entry]) -> bool:
        """Whether the files have these values. After a start the files themselves are compared."""
        if self._written:
            return self._written.keys() == wanted.keys() and all(
                self._written[path].value == entry.value for path, entry in wanted.items()
            )
        found = {os.fsencode(file.relative_to(version)) for file in version.rglob("*") if file.is_file()}
        return found == wanted.keys() and all(
            (version / os.fsdecode(path)).read_bytes() == entry.value for path, entry in wanted.items()
        )

    def _fill(self, fresh: Path, wanted: Mapping[bytes, Entry], present: Path | None) -> list[bytes]:
        """Write the files, and return the paths that the disk refuses."""
        fresh.mkdir()
        refused = []
        for path, entry in wanted.items():
            file, known = fresh / os.fsdecode(path), self._written.get(path)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                if present is not None and known is not None and known.value == entry.value:
                    file.hardlink_to(present / os.fsdecode(path))  # the file of the version before
                    continue
                with file.open("xb") as out:
                    out.write(entry.value or b"")
                    out.flush()
                    os.fsync(out.fileno())  # or after a loss of power the symlink may show empty files
                file.chmod(0o444)  # it may be a file of the next versions, too
            except OSError as error:
                if error.errno not in _NAME_REFUSED:
                    raise
                refused.append(path)
        return refused

    def _swap(self, fresh: Path) -> None:
        aside = self.path / f".{CURRENT}.new"
        aside.unlink(missing_ok=True)
        aside.symlink_to(Path(_VERSIONS) / fresh.name)
        aside.replace(self.path / CURRENT)


def _remove(version: Path) -> None:
    shutil.rmtree(version, ignore_errors=True)
