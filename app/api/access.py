"""Who may read what: the static token, the allow-list."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from pydantic import SecretStr
from starlette.requests import Request

from app.core.errors import ForbiddenError, UnauthorizedError
from app.core.keys import KeyRange


class Access:
    """The fence around ``/v1``. Checked before a feed starts."""

    def __init__(self, allowed: Sequence[bytes], token: SecretStr | None) -> None:
        self._allowed = tuple(allowed)
        self._token = token

    def check_token(self, request: Request) -> None:
        """Raises UnauthorizedError unless the request carries the token, if there is one."""
        if self._token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        expected = self._token.get_secret_value().encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), expected):
            raise UnauthorizedError("send the header 'Authorization: Bearer <token>' with this gateway's token")

    def check_range(self, watched: KeyRange) -> None:
        """Raises ForbiddenError unless the whole range lies in an allowed prefix."""
        if not any(watched.within(prefix) for prefix in self._allowed):
            raise ForbiddenError(
                f"{watched} lies outside of the prefixes that may be read here", parameter=watched.kind
            )
