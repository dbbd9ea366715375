"""The token of a REST list's next page. It is pinned to one revision of one history, and to one identity."""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, replace
from hashlib import sha256

from .errors import BadRequestError, PageExpiredError
from .selection import Ranges

# Bytes of the hash that binds a token to an identity.
READER_BYTES = 9


@dataclass(frozen=True, slots=True)
class PageToken:
    """Where the next page starts.

    Args:
        epoch: reveals a page of another cluster or of another request.
        reader: what ``reader_of`` makes of the identity that the page is for. Empty if all readers are equal. A gateway
            that follows another one is a reader there: then the readers of all tiers, the upstream's first.
    """

    epoch: str
    revision: int
    start: bytes
    reader: str = ""

    def token(self, reader: str = "") -> str:
        """Return URL-safe text for ``next_page``, for this *reader* of this tier."""
        text = urlsafe_b64encode(f"{self.epoch}-{self.revision}-".encode() + self.start).decode().rstrip("=")
        return ".".join(part for part in (text, self.reader, reader) if part)

    def of_reader(self, reader: str, *, from_gateway: bool = False) -> PageToken:
        """Return the page without the reader of this tier, so that equal pages of all readers are one read.

        Without a *reader*, all readers of this tier are equal.

        The token is no credential: each page's ranges are authorized like those of any request, so a forged reader
        reads nothing more. The check keeps a token, which contains a key, from being passed on.

        Args:
            from_gateway: another gateway asks. A page that it has made from its own memory has no reader of this tier.
                So a page without any reader is accepted. Any client can say that it is a gateway. It gets what it would
                get with its own reader, which it can compute.

        Raises:
            PageExpiredError: the page is for another reader.
        """
        if not reader or (from_gateway and not self.reader):
            return self
        upstream, _, own = self.reader.rpartition(".")
        if own != reader:
            raise _of_another_identity()
        return replace(self, reader=upstream)

    def check_read(self) -> None:
        """Check that no reader is left: the page is read here, and not at another gateway. Raises PageExpiredError."""
        if self.reader:
            raise _of_another_identity()


def _of_another_identity() -> PageExpiredError:
    return PageExpiredError(
        "the token in 'page' belongs to another identity; start over without 'page'", parameter="page"
    )


def reader_of(identity: str) -> str:
    """Return the text that binds a token to an identity. It is equal on all replicas."""
    return urlsafe_b64encode(sha256(f"page of {identity}".encode()).digest()[:READER_BYTES]).decode()


def parse_page_token(token: bytes, ranges: Ranges) -> PageToken:
    """Parse a token.

    Raises:
        BadRequestError: the text is not a token, or its key lies outside *ranges*.
    """
    text, _, reader = token.partition(b".")
    try:
        raw = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
        epoch, revision, start = raw.split(b"-", 2)
        page = PageToken(epoch.decode("ascii"), int(revision), start, reader.decode("ascii"))
    except (ValueError, binascii.Error):
        raise BadRequestError(
            "'page' is not a token of this gateway; use the value of 'next_page'", parameter="page"
        ) from None
    # The next page starts after the last key of the page before, which may be a range by itself.
    inside = any(one.contains(start) or start == one.name + b"\0" for one in ranges)
    if not inside or not 0 < page.revision < 1 << 63:
        raise BadRequestError("'page' belongs to another range; start again without 'page'", parameter="page")
    return page
