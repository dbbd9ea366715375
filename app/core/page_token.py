"""The token of a REST list's next page. It is pinned to one revision of one history."""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass

from .errors import BadRequestError
from .selection import Ranges


@dataclass(frozen=True, slots=True)
class PageToken:
    """Where the next page starts. ``epoch`` reveals a page of another cluster or of another request."""

    epoch: str
    revision: int
    start: bytes

    def token(self) -> str:
        """Return URL-safe text for ``next_page``."""
        return urlsafe_b64encode(f"{self.epoch}-{self.revision}-".encode() + self.start).decode().rstrip("=")


def parse_page_token(token: bytes, ranges: Ranges) -> PageToken:
    """Parse a token.

    Raises:
        BadRequestError: the text is not a token, or its key lies outside *ranges*.
    """
    try:
        raw = urlsafe_b64decode(token + b"=" * (-len(token) % 4))
        epoch, revision, start = raw.split(b"-", 2)
        page = PageToken(epoch.decode("ascii"), int(revision), start)
    except (ValueError, binascii.Error):
        raise BadRequestError(
            "'page' is not a token of this gateway; use the value of 'next_page'", parameter="page"
        ) from None
    # The next page starts after the last key of the page before, which may be a range by itself.
    inside = any(one.contains(start) or start == one.name + b"\0" for one in ranges)
    if not inside or not 0 < page.revision < 1 << 63:
        raise BadRequestError("'page' belongs to another range; start again without 'page'", parameter="page")
    return page
