"""Who may read what: the static token, and the prefixes that are served."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import ForbiddenError, UnauthorizedError
from ..core.keys import KeyRange
from .token import Token


class AccessPolicy:
    """The fence around ``/v1``. Asked before a feed is joined or started."""

    def __init__(self, prefixes: Sequence[bytes], token: Token | None) -> None:
        self._prefixes = tuple(prefixes)
        self.token = token

    def authenticate(self, authorization: bytes) -> None:
        """Raises UnauthorizedError unless the ``Authorization`` header carries the token, if there is one.

        Args:
            authorization: the header's value, in the bytes that the client sent; empty if there was none.
        """
        if self.token is None:
            return
        # Around the token HTTP knows spaces and tabs only: 0xA0 is a part of the token.
        scheme, _, given = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not self.token.matches(given.strip(b" \t")):
            raise UnauthorizedError("send the header 'Authorization: Bearer <token>' with this gateway's token")

    def authorize(self, watched: KeyRange) -> None:
        """Raises ForbiddenError unless the whole range lies in a prefix that is served."""
        if not any(watched.within(prefix) for prefix in self._prefixes):
            raise ForbiddenError(
                f"{watched} lies outside of the prefixes that may be read here", parameter=watched.kind
            )
