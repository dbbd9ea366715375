"""The bearer token, in a file that may change during a run: a Secret is rotated, or an operator edits the file."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from hashlib import sha256
from pathlib import Path

from pydantic import SecretStr

from ..file_watch import Outcome
from ..files import BYTE_ORDER_MARKS, first_bytes
from ..ports import Clock
from ..settings import SettingsError

logger = logging.getLogger("gateway")

# Seconds between reads of the file while requests arrive. A read takes 30 us: a read for each request would be the most
# expensive part of the request.
LOOK = 1.0

# Bytes. A larger file does not hold a token: the whole head of a request may have 64 KiB.
MAX_TOKEN = 16 * 1024


def read_token(path: Path, named: str) -> SecretStr:
    """Return the bearer token in a file. Bytes that are not UTF-8 become surrogates (``surrogateescape``).

    Raises:
        SettingsError: the file has no token that a client can send; the text begins with *named*.
    """
    try:
        data = first_bytes(path, MAX_TOKEN + 1)
    except OSError as error:
        raise SettingsError(f"{named}: cannot read {path}: {error.strerror or error}") from None
    if len(data) > MAX_TOKEN:
        raise SettingsError(f"{named}: {path} has more than {MAX_TOKEN} bytes, which is too long for a token")
    if data.startswith(BYTE_ORDER_MARKS):
        raise SettingsError(
            f"{named}: {path} begins with a byte order mark, which no client sends; save it without one"
        )
    data = data.strip(b" \t\r\n\v\f")
    if not data:
        raise SettingsError(f"{named}: {path} is empty; it must hold the token")
    if re.search(rb"[\x00-\x1f\x7f]", data):
        raise SettingsError(f"{named}: {path} has a line break or a control character, which a header cannot carry")
    return SecretStr(data.decode(errors="surrogateescape"))


class Token:
    """The file's latest usable token. The constructor reads the file, and raises SettingsError if it is unusable.

    *read_before*: the token that was read before. It counts instead, until a change is seen.
    """

    def __init__(self, path: Path, named: str, *, clock: Clock, read_before: bytes | None = None) -> None:
        self._path = path
        self._named = named
        self._clock = clock
        self._looked = clock()
        self.content = self._read() if read_before is None else read_before
        self._trouble = ""

    def _read(self) -> bytes:
        return read_token(self._path, self._named).get_secret_value().encode(errors="surrogateescape")

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the token."""
        self.refresh()
        return self.last_digest

    @property
    def last_digest(self) -> bytes:
        """The SHA-256 of the token that the last ``matches`` has compared. The file is not looked at."""
        return sha256(self.content).digest()

    def matches(self, given: bytes) -> bool:
        """Whether *given* is the token. The time that this takes does not depend on where the two differ."""
        self.refresh()
        return hmac.compare_digest(given, self.content)

    @property
    def usable(self) -> bool:
        """Whether the file is usable now. If it is not, the previous token stays valid."""
        self.refresh()
        return not self._trouble

    async def run(self) -> None:
        """Read the file in every ``LOOK`` seconds, also while no request comes. Runs for ever."""
        while True:
            await asyncio.sleep(LOOK)
            self.refresh()

    def refresh(self) -> None:
        """Read the file if the last read is at least ``LOOK`` seconds ago."""
        if self._clock() - self._looked >= LOOK:
            self.look()

    def look(self) -> Outcome:
        """Read the file. The content counts, not the date: two writes may share a date, and a swapped link has an
        old date.
        """
        self._looked = self._clock()
        try:
            found = self._read()
        except SettingsError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                logger.warning(
                    "the token's file cannot be used: the previous token stays valid", extra={"reason": str(error)}
                )
            return "unusable"
        if self._trouble:
            self._trouble = ""
            logger.info("the token's file can be used again", extra={"file": str(self._path)})
        if found == self.content:
            return "unchanged"
        self.content = found
        logger.info("the token has changed", extra={"file": str(self._path)})
        return "changed"
