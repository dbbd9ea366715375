"""The access policy: the static bearer token, and the prefixes that the gateway serves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..core.errors import ForbiddenError, UnauthorizedError
from ..core.keys import KeyRange
from .token import Token


class AccessPolicy:
    """The access checks of ``/v1``. They run before a feed is joined or started."""

    def __init__(self, prefixes: Sequence[bytes], token: Token | None) -> None:
        self._prefixes = tuple(prefixes)
        self.token = token

    def authenticate(self, authorization: bytes) -> None:
        """Check the token in the ``Authorization`` header, if the gateway has a token.

        Args:
            authorization: the header's value, in the bytes that the client sent; empty if there was no header.

        Raises:
            UnauthorizedError: the header does not carry the token.
        """
        if self.token is None:
            return
        # HTTP allows only spaces and tabs around the token: 0xA0 is a part of the token.
        scheme, _, given = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not self.token.matches(given.strip(b" \t")):
            raise UnauthorizedError(
                "the bearer token is missing or wrong; send the header 'Authorization: Bearer <token>'"
            )

    def authorize(self, ranges: Iterable[KeyRange]) -> None:
        """Check that all *ranges* lie in the prefixes that are served. Raises ForbiddenError."""
        for one in ranges:
            if not any(one.within(prefix) for prefix in self._prefixes):
                raise ForbiddenError(f"{one} is outside the prefixes that this gateway serves", parameter=one.kind)
