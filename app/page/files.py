"""The files of the page, as they are served: content, media type, ETag."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

FOLDER = Path(__file__).parent
INDEX = "index.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
# The placeholder in index.html for the version in the addresses of the files.
VERSION = "@VERSION@"


@dataclass(frozen=True, slots=True)
class File:
    """One file. ``etag`` changes exactly when the content does."""

    content: bytes
    media_type: str
    etag: str


def make_file(content: bytes, suffix: str) -> File:
    """Return a file with the ETag of its content."""
    return File(content, MEDIA_TYPES[suffix], f'"{_digest(content)}"')


def read_files() -> tuple[str, dict[str, File]]:
    """Return the version of the page, and its files by their paths. The version changes when any file does."""
    paths = sorted(path for path in FOLDER.rglob("*") if path.suffix in MEDIA_TYPES)
    contents = {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in paths}
    version = _digest(b"\0".join(name.encode() + b"\0" + content for name, content in contents.items()))[:12]
    return version, {name: make_file(content, Path(name).suffix) for name, content in contents.items()}


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:32]
