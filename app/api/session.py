"""``/v1/session``: a page exchanges its bearer token for a cookie, because an EventSource cannot send a header.

POST begins a session, or continues the one that the browser has; DELETE ends it. Browsers keep such a cookie only if it
comes by HTTPS or from loopback, and drop it elsewhere without a word. So elsewhere a POST is refused.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from ..access.cookie import set_cookie
from ..access.identity import Identity
from ..core.errors import BadRequestError, UnauthorizedError
from ..core.query import parse_query
from ..gateway import Gateway
from ..urls import is_loopback
from .access import describe
from .json_answer import NO_STORE, json_answer
from .requests import IDENTITY, check_origin, header_of, identity_of, query_of, session_of


class SessionEndpoint:
    """The endpoints."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def begin(self, request: Request) -> Response:
        """Answer a POST: the cookie, and in the body what ``GET /v1/access`` says of it."""
        access = self._gateway.access
        identity = await identity_of(self._gateway, request.scope)
        parse_query(query_of(request), frozenset())
        check_origin(self._gateway, request.scope)
        if not _keeps_secure_cookies(request):
            raise BadRequestError(
                "a session needs HTTPS: browsers drop its cookie on plain HTTP. Set GATEWAY_TLS_CERT, or let a proxy "
                "that GATEWAY_TRUSTED_PROXIES names speak HTTPS and send 'X-Forwarded-Proto: https'",
                code="https-required",
            )
        present = self._present(request)
        value, identity = access.begin_session(identity, present)
        assert identity.expires is not None, "a session expires"
        assert identity.session is not None, "a cookie stands for a session"
        if present is not None and present.session is not None and present.session.id != identity.session.id:
            self._gateway.end_session(present.session)  # of another user: the browser loses its cookie now
        cookie = set_cookie(value, max(1, int(identity.expires - access.wall())))
        return json_answer(describe(access, identity), 201, {"Set-Cookie": cookie})

    def _present(self, request: Request) -> Identity | None:
        """Return the identity of the session that the browser has; None if it has none, or one that is over."""
        try:
            return self._gateway.access.opened_session(request.scope["headers"])
        except (UnauthorizedError, BadRequestError):  # the bearer token counts, whatever the cookie is
            return None

    async def end(self, request: Request) -> Response:
        """Answer a DELETE: the session and its streams end, if the cookie is one. The browser forgets the cookie."""
        parse_query(query_of(request), frozenset())
        check_origin(self._gateway, request.scope)
        try:
            identity = session_of(self._gateway, request.scope)
        except UnauthorizedError:
            identity = None  # the cookie must go all the same
        if identity is not None and identity.session is not None:
            request.scope[IDENTITY] = identity
            self._gateway.end_session(identity.session)
        return Response(None, 204, {**NO_STORE, "Set-Cookie": set_cookie("", 0)})


def _keeps_secure_cookies(request: Request) -> bool:
    """Whether the browser keeps a cookie with ``Secure``: by HTTPS, and from loopback.

    A proxy in front may have replaced the host by the gateway's own. So the client must be there, too, and the page.
    """
    if request.scope["scheme"] == "https":
        return True
    hosts = [_host_in(f"//{header_of(request, b'host')}"), request.client.host if request.client is not None else ""]
    origin = header_of(request, b"origin")
    if origin is not None:
        hosts.append(_host_in(origin))
    return all(map(is_loopback, hosts))


def _host_in(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # brackets that are not around an IPv6 address
        return ""
