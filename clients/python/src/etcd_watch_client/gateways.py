"""The gateways of a mirror: which one is asked next, for what, with which token, over which TLS."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from urllib.parse import quote

import httpx

from .backoff import Backoff
from .connection import messages
from .credentials import Bearer
from .errors import RefusedError, StreamEnd
from .events import Close, Message, Status
from .framing import Format
from .selection import base_url
from .tls import Http

# Seconds after which no other token is hoped for, from the first refusal on. The kubelet takes up to two minutes to
# write a Secret that has changed into a pod's files, those of the gateway too.
_RENEWAL = 150.0
# Seconds between two questions for a newer token. Some sources make a token for each question, so every token is newer;
# and if it lived less than the gateway's 30 s of notice, a new stream would be opened without a pause.
_ASK = 2.0


class Gateways:
    """Opens one stream after the other.

    ``age()`` is for how many seconds the client has not been current, None if it never was: what is wrong at the first
    attempt is a mistake, and what is wrong later may pass.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        query: str,
        form: Format,
        bearer: Bearer,
        http: Http,
        age: Callable[[], float | None],
        clock: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        given = urls if isinstance(urls, Sequence) and not isinstance(urls, (str, bytes)) else [urls]
        if not given:
            msg = "no gateway is given; pass the URL of one or several"
            raise ValueError(msg)
        self._urls = [base_url(url) for url in given]
        self._query = query
        self._form: Format = form
        self._bearer = bearer
        self._http = http
        self._age = age
        self._clock = clock
        self._draw = draw
        self._backoff = Backoff(len(self._urls), draw())
        self._asked = 0.0  # when the stream began, or the source of the token was last asked
        self._expires = False  # whether the gateway has said that the token of this stream is about to end
        self._refused: float | None = None  # since when tokens are refused; None if the last one was accepted

    @property
    def several(self) -> bool:
        """Whether another gateway can be asked when one fails."""
        return len(self._urls) > 1

    def succeed(self) -> None:
        """The stream is in order."""
        self._backoff.succeed()

    def leave(self, end: StreamEnd) -> tuple[str, float]:
        """The stream has ended: move to the next gateway. Return why, and the seconds to wait."""
        where = f"{self._urls[self._backoff.index]}: {end.reason}" if self.several else end.reason
        return where, 0.0 if end.at_once else self._backoff.delay(end.wait, self._draw())

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._http.aclose()

    async def stream(
        self, cursor: str, min_revision: int, silence_timeout: Callable[[], float]
    ) -> AsyncGenerator[list[Message], None]:
        """Yield the events of each chunk of one stream until it ends, which raises StreamEnd or RefusedError.

        An empty list comes when the gateway is asked, and for each sign of life.
        """
        url = f"{self._urls[self._backoff.index]}/v1/watch?format={self._form}&{self._query}"
        url += f"&min_revision={min_revision}" if min_revision else ""
        url += f"&last_event_id={quote(cursor, safe='', errors='replace')}" if cursor else ""
        client, self._expires, self._asked = await self._http.client(), False, self._clock()
        is_second = False
        while True:
            headers = await self._headers()
            yield []  # the silence begins here: if the machine sleeps before the first chunk, that chunk is old
            stream = messages(client, url, headers, self._form, silence_timeout)
            try:
                async with contextlib.aclosing(stream):
                    async for received in stream:
                        self._refused = None
                        yield received
                        await self._end(received)
            except RefusedError as error:
                if error.status == httpx.codes.UNAUTHORIZED and not is_second and self._bearer.renewable:
                    # The token may have been replaced a moment ago: its source is asked once more.
                    is_second = True
                    continue
                if self._may_pass(error):
                    raise StreamEnd(str(error)) from error
                raise

    async def _end(self, received: list[Message]) -> None:
        """Raise StreamEnd if the gateway has ended the stream, or if a newer token should open another one."""
        for message in received:
            match message.event:
                case Close(reason, retry):
                    raise StreamEnd(reason, retry, at_once=reason == "expired" and await self._is_replaced())
                case Status(expires=True):
                    self._expires = True
        if self._expires and await self._is_replaced():
            raise StreamEnd("the token is renewed", at_once=True)

    async def _is_replaced(self) -> bool:
        now = self._clock()
        if now - self._asked < _ASK:
            return False
        self._asked = now
        return await self._bearer.is_replaced()

    async def _headers(self) -> dict[str, str]:
        try:
            return await self._bearer.headers()
        except Exception as error:
            if self._age() is None:
                raise  # at the start it is a mistake; later the issuer of tokens may be away for a while
            msg = f"the token cannot be had: {error!r}"
            raise StreamEnd(msg) from error

    def _may_pass(self, error: RefusedError) -> bool:
        """Whether a refusal of what was granted before is tried again."""
        if self._age() is None:
            return False
        if error.status == httpx.codes.UNAUTHORIZED:
            # Not since the mirror was current: etcd, or every gateway, may have been away for longer.
            if self._refused is None:
                self._refused = self._clock()
            return self._bearer.renewable and self._clock() - self._refused < _RENEWAL
        # Another member of etcd, or another gateway, can do it again.
        return error.status == httpx.codes.NOT_IMPLEMENTED
