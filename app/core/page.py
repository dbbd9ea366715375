"""The token of a REST list's next page: pinned to one revision of one history."""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass

from .errors import BadRequestError
from .keys import KeyRange


@dataclass(frozen=True, slots=True)
class Page:
    """Where the next page starts. ``epoch`` tells a page of another cluster or another request from ours."""

    epoch: str
    revision: int
    start: bytes

    def token(self) -> str:
        """URL-safe text for ``next_page``."""
        return urlsafe_b64encode(f"{self.epoch}-{self.revision}-".encode() + self.start).decode().rstrip("=")


def parse_page(token: bytes, watched: KeyRange) -> Page:
    """Read a token. Raises BadRequestError when it is none, or its keys are not of *watched*."""
    try:
        raw = urlsafe_b64decode(token + b"=" * (-len(token) % 4))
        epoch, revision, start = raw.split(b"-", 2)
        page = Page(epoch.decode("ascii"), int(revision), start)
    except (ValueError, binascii.Error):
        raise BadRequestError("'page' is no token of ours: take it from 'next_page'", parameter="page") from None
    if not watched.contains(start) or not 0 < page.revision < 1 << 63:
        raise BadRequestError("'page' belongs to another range", parameter="page")
    return page
