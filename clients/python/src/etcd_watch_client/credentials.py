"""The bearer token of a client: fixed, or from a source that is asked again for each connection."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path

# The token itself, a file that has it, or a function that returns the present one.
Token = str | Path | Callable[[], str | Awaitable[str]]


class Bearer:
    """Asks for the token."""

    def __init__(self, token: Token | None) -> None:
        self._token = token
        self.renewable = token is not None and not isinstance(token, str)
        self.sent = ""  # the token of the last request

    async def headers(self) -> dict[str, str]:
        """Return the header for the next request. Raises what the source raises."""
        self.sent = await self._present()
        return {"Authorization": f"Bearer {self.sent}"} if self.sent else {}

    async def is_replaced(self) -> bool:
        """Whether the source has another token than the one that was sent. One that fails, or is empty, has none."""
        try:
            present = await self._present() if self.renewable else ""
            return present not in ("", self.sent)
        except Exception:  # whatever the source raises: the token that was sent may still be valid
            return False

    async def _present(self) -> str:
        token = self._token
        if isinstance(token, Path):
            token = token.read_text(encoding="utf-8", errors="surrogateescape")
        elif callable(token):
            given = token()
            token = await given if inspect.isawaitable(given) else given
        return (token or "").strip(" \t\r\n\v\f")  # as the gateway does: other spaces are parts of the token
