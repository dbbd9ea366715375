"""The bearer token, in a file that may change while the process runs: a Secret is rotated, an operator edits it."""

from __future__ import annotations

import hmac
import logging
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from ..ports import Clock
from ..settings import SettingsError

logger = logging.getLogger("gateway")

# Seconds between looks into the file, while requests come: 30 us each, where a look for each request would be its most
# expensive part.
LOOK = 1.0

Outcome = Literal["unchanged", "changed", "unusable"]
# A larger file holds no token: a header may have 64 KiB in all.
MAX_TOKEN = 16 * 1024
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def read_token(path: Path, named: str) -> SecretStr:
    """The bearer token in a file. Raises SettingsError, with *named* in front, when there is none that can be sent.

    Bytes that are not UTF-8 are surrogates in it (``surrogateescape``).
    """
    try:
        data = _first_bytes(path, MAX_TOKEN + 1)
    except OSError as error:
        raise SettingsError(f"{named}: cannot read {path}: {error.strerror or error}") from None
    if len(data) > MAX_TOKEN:
        raise SettingsError(f"{named}: {path} has more than {MAX_TOKEN} bytes")
    if data.startswith(_BYTE_ORDER_MARKS):
        raise SettingsError(f"{named}: {path} begins with a byte order mark, which no client sends: save it without")
    data = data.strip(b" \t\r\n\v\f")
    if not data:
        raise SettingsError(f"{named}: {path} is empty")
    if re.search(rb"[\x00-\x1f\x7f]", data):
        raise SettingsError(f"{named}: {path} has a line break or another character that no header can have")
    return SecretStr(data.decode(errors="surrogateescape"))


def _first_bytes(path: Path, most: int) -> bytes:
    """The first *most* bytes of a file. A pipe that nobody writes to is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = b""
        while len(data) < most and (part := os.read(descriptor, most - len(data))):
            data += part
        return data
    finally:
        os.close(descriptor)


class Token:
    """What the file said when it last said something usable. Read at once; raises SettingsError if it can't be used."""

    def __init__(self, path: Path, named: str, *, clock: Clock) -> None:
        self._path = path
        self._named = named
        self._clock = clock
        self._looked = clock()
        self._bytes = self._read()
        self._trouble = ""

    def _read(self) -> bytes:
        return read_token(self._path, self._named).get_secret_value().encode(errors="surrogateescape")

    def matches(self, given: bytes) -> bool:
        """Whether *given* is the token, in a time that does not depend on where they differ."""
        self.refresh()
        return hmac.compare_digest(given, self._bytes)

    @property
    def usable(self) -> bool:
        """Whether the file can be used as it is now; if not, the token of before goes on."""
        self.refresh()
        return not self._trouble

    def refresh(self) -> None:
        """Look, if the last look is some time ago."""
        if self._clock() - self._looked >= LOOK:
            self.look()

    def look(self) -> Outcome:
        """Read the file. Its content counts, not its date: two writes may share one, a swapped link has an old one."""
        self._looked = self._clock()
        try:
            found = self._read()
        except SettingsError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                logger.warning(
                    "the token's file cannot be used: the token of before goes on", extra={"reason": str(error)}
                )
            return "unusable"
        if self._trouble:
            self._trouble = ""
            logger.info("the token's file can be used again", extra={"file": str(self._path)})
        if found == self._bytes:
            return "unchanged"
        self._bytes = found
        logger.info("the token has changed", extra={"file": str(self._path)})
        return "changed"
