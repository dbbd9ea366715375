"""The bypass: ``GET /v1/watch`` around the layers of FastAPI, if the answer is a stream.

The layers (routing, dependencies, exception handlers, CORS, metrics) cost more than all the rest of a join, and a
stream leaves them anyway (docs/decisions/0016-bypass.md). So the bypass parses and authorizes the request, subscribes
and delivers, as the route does. Requests that come together take turns. Everything else goes to the route: a HEAD,
another path, a request that must be refused. The route answers as if there were no bypass, because the bypass holds
nothing by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ..core.errors import GatewayError
from ..stream.streams import Streams
from .client_gone import ClientGone
from .cors import Cors
from .heads import Heads
from .requests import header_of
from .stream_response import deliver, subscribe
from .watch import WatchEndpoint

PATH = "/v1/watch"


class Bypass:
    """Middleware, outside all other middleware of the app that has the route.

    Args:
        watch: the route's endpoint.
        origins: ``GATEWAY_CORS_ORIGINS``.
        credentials: as for ``Cors``.
    """

    def __init__(
        self, app: ASGIApp, streams: Streams, watch: WatchEndpoint, origins: Sequence[str], *, credentials: bool = False
    ) -> None:
        self.app = app
        self._streams = streams
        self._watch = watch
        cors = Cors(app, origins, credentials=credentials) if origins else None
        self._heads = Heads(streams.instance, streams.tier, cors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a stream, or pass the request on."""
        answer = None
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "GET":
            await self._streams.joins.wait()
            answer = await self._stream(Request(scope))
        await (answer if answer is not None else self.app)(scope, receive, send)

    async def _stream(self, request: Request) -> ASGIApp | None:
        try:
            asked = await self._watch.parse_and_authorize(request)
            if asked.from_gateway:  # its head has more to say
                return None
            head = await self._heads.of(asked.format, asked.coding, header_of(request, b"origin"))
            subscriber = await subscribe(self._streams, asked)
        except GatewayError:
            return None
        own = asked.id_header
        lines = b"%b%b: %b\r\n" % (head.lines, *own)
        return ClientGone(partial(deliver, self._streams, asked, subscriber, [*head.headers, own], lines=lines))
