"""Which pages of other origins may read the answers (CORS), by ``GATEWAY_CORS_ORIGINS``."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Send

from ..core.errors import BadRequestError
from .problems import problem


class Cors(CORSMiddleware):
    """Starlette's CORS middleware with the gateway's methods and headers, without duplicates in ``Vary``.

    *credentials*: the pages may use a session's cookie, and begin and end the session. Only origins that are named may.

    Starlette adds ``Origin`` to every ``Vary``, although a stream's ``Vary`` already has it.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str], *, credentials: bool = False) -> None:
        assert not (credentials and "*" in origins), "Starlette would then name whatever origin asks"
        super().__init__(
            app,
            allow_origins=list(origins),
            allow_credentials=credentials,
            allow_methods=["GET", "HEAD", *(["POST", "DELETE"] if credentials else [])],
            allow_headers=["Authorization", "Cache-Control", "If-None-Match", "Last-Event-ID", "Prefer"],
            expose_headers=[
                "ETag",
                "Preference-Applied",
                "Retry-After",
                "X-Etcd-Revision",
                "X-Gateway-Instance",
                "X-Gateway-State",
                "X-Gateway-Tier",
                "X-Request-Id",
            ],
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the answer to a preflight. A refusal is a problem, and says nothing of other pages' rights."""
        answer = super().preflight_response(request_headers)
        if answer.status_code == HTTPStatus.OK:
            return answer
        refused = bytes(answer.body).decode().removeprefix("Disallowed CORS ")
        error = BadRequestError(
            f"a page of another origin may not send this request, because of its {refused}; GATEWAY_CORS_ORIGINS lists "
            "the origins",
            code="preflight-refused",
        )
        refusal = problem(error)
        refusal.headers["Vary"] = answer.headers["Vary"]
        return refusal

    async def send(self, message: Message, send: Send, request_headers: Headers) -> None:
        """Send one message of a response, with each name in ``Vary`` once."""

        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                words = [word.strip() for value in headers.getlist("Vary") for word in value.split(",")]
                if words:
                    headers["Vary"] = ", ".join(dict.fromkeys(words))
            await send(message)

        await super().send(message, send_once, request_headers)
