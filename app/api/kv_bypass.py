"""The second bypass: ``GET /v1/kv?consistency=feed`` around the layers of FastAPI, if a channel can answer at once.

Routing, dependencies, exception handlers and the metrics' middleware cost more than the answer itself. Everything else
goes to the route, as if there were no bypass: a HEAD, a read at etcd, a request that waits or must be refused.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..core.errors import GatewayError
from .client_gone import ClientGone
from .kv import KvEndpoint

PATH = "/v1/kv"
_FROM_FEED = b"consistency=feed"

# Records a request in the metrics, as the layers do for all others: the response, and the seconds that it took.
Measure = Callable[[Request, Response, float], None]


class KvBypass:
    """Middleware, around the metrics' middleware and the routes, inside CORS.

    Args:
        kv: the route's endpoint.
    """

    def __init__(self, app: ASGIApp, kv: KvEndpoint, measure: Measure) -> None:
        self.app = app
        self._kv = kv
        self._measure = measure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from memory, or pass the request on."""
        if (
            scope["type"] == "http"
            and scope["path"] == PATH
            and scope["method"] == "GET"
            and _FROM_FEED in scope["query_string"]
        ):
            began = perf_counter()
            request = Request(scope)
            response = await self._answer(request)
            if response is not None:
                await ClientGone(response)(scope, receive, send)
                self._measure(request, response, perf_counter() - began)
                return
        await self.app(scope, receive, send)

    async def _answer(self, request: Request) -> Response | None:
        try:
            return await self._kv.at_once(request)
        except GatewayError:
            return None
