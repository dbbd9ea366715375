"""The headers of streams, prepared once for each format, coding and origin that ``GATEWAY_CORS_ORIGINS`` names.

``StreamResponse`` and the CORS middleware make these headers, as they do for every other answer. Doing so for each
stream was a tenth of the cost of a join.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Message

from ..core.always_true import AlwaysTrue
from ..core.negotiation import Coding
from .cors import Cors
from .stream_response import RawHeaders, common_headers

# Stands for every origin that is not named. Such origins all get the same headers, and clients may send any number.
_OTHER = "other"


@dataclass(frozen=True, slots=True)
class Head:
    """The headers of a stream, for ASGI and as they are on the wire."""

    headers: RawHeaders
    lines: bytes


class Heads(AlwaysTrue):
    """The headers of the streams of one app, without ``X-Request-Id``, which differs each time.

    Args:
        tier: returns the gateway's tier; None until that is known.
        cors: adds the headers for browsers; None if no origin is named.
    """

    def __init__(self, instance: str, tier: Callable[[], int | None], cors: Cors | None) -> None:
        self._instance = instance
        self._tier = tier
        self._cors = cors
        self._prepared: dict[tuple[str, Coding, int | None, str | None], Head] = {}

    async def of(self, chosen: str, coding: Coding, origin: str | None) -> Head:
        """Return the headers. *origin*: the request's ``Origin``, None if it has none."""
        named = self._cors is not None and origin in self._cors.allow_origins
        key = (chosen, coding, self._tier(), origin if named or origin is None else _OTHER)
        found = self._prepared.get(key)
        if found is None:
            found = self._prepared[key] = await self._prepare(chosen, coding, origin)
        return found

    def __len__(self) -> int:
        """Return the number of prepared heads.

        At most, each format and coding has one for each named origin, and two more.
        """
        return len(self._prepared)

    async def _prepare(self, chosen: str, coding: Coding, origin: str | None) -> Head:
        common = common_headers(chosen, coding, self._instance, self._tier())
        head: Message = {"type": "http.response.start", "headers": common}
        if self._cors is not None:

            async def send(message: Message) -> None:
                nonlocal head
                head = message

            await self._cors.send(head, send, Headers({} if origin is None else {"origin": origin}))
        headers = list(head["headers"])
        return Head(headers, b"".join(b"%b: %b\r\n" % header for header in headers))
