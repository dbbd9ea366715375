"""Who may read what: the static token, the allow-list."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request

from app.access.token import Token
from app.core.errors import ForbiddenError, UnauthorizedError
from app.core.keys import KeyRange


class Access:
    """The fence around ``/v1``. Checked before a feed starts."""

    def __init__(self, allowed: Sequence[bytes], token: Token | None) -> None:
        self._allowed = tuple(allowed)
        self.token = token

    def check_token(self, request: Request) -> None:
        """Raises UnauthorizedError unless the request carries the token, if there is one."""
        if self.token is None:
            return
        # Bytes, as they came; around the token HTTP knows spaces and tabs only, and 0xA0 is a part of it.
        header = request.headers.get("authorization", "").encode("latin-1")
        scheme, _, given = header.partition(b" ")
        if scheme.lower() != b"bearer" or not self.token.matches(given.strip(b" \t")):
            raise UnauthorizedError("send the header 'Authorization: Bearer <token>' with this gateway's token")

    def check_range(self, watched: KeyRange) -> None:
        """Raises ForbiddenError unless the whole range lies in an allowed prefix."""
        if not any(watched.within(prefix) for prefix in self._allowed):
            raise ForbiddenError(
                f"{watched} lies outside of the prefixes that may be read here", parameter=watched.kind
            )
