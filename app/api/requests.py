"""Parts of a request that more than one endpoint reads."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar, get_args

from starlette.requests import Request
from starlette.types import Scope

from ..access.cookie import COOKIE
from ..access.identity import Identity
from ..core.encoding import Encoding
from ..core.errors import ForbiddenError, GatewayError, UnauthorizedError
from ..core.negotiation import Coding, coding_of
from ..core.query import parse_choice
from ..core.quotas import Caller, client_address
from ..core.selection import Ranges
from ..gateway import Gateway
from ..stream.transport import EXTENSION
from ..urls import before_port

T = TypeVar("T")

ENCODINGS: tuple[str, ...] = get_args(Encoding)
# ``scope=permitted`` asks only for those parts of the ranges that the identity may read.
SCOPES = ("permitted",)
# Characters of an address with its port: an IPv6 address with the name of an interface has 70.
MAX_ADDRESS = 80
# The key of the scope under which the audit log finds who sends a request.
IDENTITY = "etcd_watch_gateway.identity"
# The key under which it finds the ranges that are left of a request with ``scope=permitted``.
PERMITTED = "etcd_watch_gateway.permitted"
# The key under which it finds the TransientError with which a stream was refused, but in the stream, with status 200.
REFUSED = "etcd_watch_gateway.refused"
# The key of the scope under which the outcome of ``once_per_request`` is kept.
_OUTCOME = "etcd_watch_gateway.outcome"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def header_of(request: Request, name: bytes) -> str | None:
    """Return the value of a header, of the first one if there are several; None if there is none.

    ``request.headers`` makes an object for each request, and encodes each name that it is asked for. For the six
    headers of a join that took 10 us, and this function takes 2.
    """
    for key, value in request.scope["headers"]:
        if key == name:
            decoded: str = value.decode("latin-1")
            return decoded
    return None


def headers_of(request: Request, name: bytes) -> list[str]:
    """Return the values of a header that may be sent in several lines."""
    return [value.decode("latin-1") for key, value in request.scope["headers"] if key == name]


def is_from_gateway(request: Request) -> bool:
    """Whether another gateway sends the request, as it says. Any client can say so."""
    return header_of(request, b"x-gateway-tier") is not None


def address_of(request: Request) -> str:
    """Return ``host:port`` of the client, or of the client that a proxy names (``GATEWAY_TRUSTED_PROXIES``).

    What a proxy names is any text, and each stream keeps it: it is cut.
    """
    client = request.scope.get("client")
    if client is None:
        return "unknown"
    host, port = client
    return f"{before_port(host)}:{port}"[:MAX_ADDRESS]


def request_id_of(request: Request) -> str:
    """Return the ``X-Request-Id`` that a proxy has set, if it is harmless; otherwise a new id."""
    given = header_of(request, b"x-request-id")
    return given if given is not None and _REQUEST_ID.fullmatch(given) else os.urandom(8).hex()


def peer_of(scope: Scope) -> str | None:
    """Return the IP address of the connection itself, which no header can change.

    Only the gateway's own server tells it: another server may have put an address from ``X-Forwarded-For`` into the
    scope. There, None: no proxy is trusted to name users.
    """
    peer = scope.get("extensions", {}).get(EXTENSION, {}).get("peer")
    return peer[0] if peer else None


async def identity_of(gateway: Gateway, scope: Scope, *, joins: bool = False) -> Identity:
    """Return who sends a request. *joins*: the request opens a stream.

    The quotas of the client's address come before the credentials: to refuse a wrong signature costs up to 0.5 ms.

    Raises:
        OverCapacityError: the address has sent wrong credentials, or has opened streams, too fast.
        UnauthorizedError, BadRequestError, IssuerUnavailableError: see ``AccessControl.authenticate``.
    """
    quotas = gateway.quotas
    if quotas is None:
        return await _authenticate(gateway, scope)
    address = _limited_address(scope)
    quotas.check_credentials(address, gateway.clock())
    if joins:
        quotas.addresses.check_joins(address, gateway.clock())
    try:
        return await _authenticate(gateway, scope)
    except UnauthorizedError:
        if _has_credentials(scope):  # no credentials are not wrong ones
            gateway.credentials_failed(address)
        raise


async def _authenticate(gateway: Gateway, scope: Scope) -> Identity:
    identity = await gateway.access.authenticate(scope["headers"], peer_of(scope))
    if gateway.access.guarded:
        scope[IDENTITY] = identity
    if identity.session is not None:
        check_origin(gateway, scope)
    return identity


def _has_credentials(scope: Scope) -> bool:
    name = COOKIE.encode()
    return any(key == b"authorization" or (key == b"cookie" and name in value) for key, value in scope["headers"])


def session_of(gateway: Gateway, scope: Scope) -> Identity | None:
    """Return the identity of the session's cookie, whatever else the request has; None if there is no cookie.

    Raises:
        OverCapacityError: the address has sent wrong credentials too fast.
        UnauthorizedError, BadRequestError: see ``AccessControl.session_of``.
    """
    quotas, address = gateway.quotas, _limited_address(scope)
    if quotas is not None:
        quotas.check_credentials(address, gateway.clock())
    try:
        return gateway.access.opened_session(scope["headers"])
    except UnauthorizedError:
        gateway.credentials_failed(address)
        raise


def check_origin(gateway: Gateway, scope: Scope) -> None:
    """Check that a page which may use the session's cookie has caused the request.

    A browser sends the cookie with all requests of the same *site*, so also with those of a page on another host of the
    domain, or on another port. That page could not read the answer, but it could open streams, and end the session.

    Raises:
        ForbiddenError: the page's origin is neither the gateway's own nor a named one.
    """
    # Of a header in several lines, every one must permit it: CORS looks at the first one, and a proxy may add another.
    names = (b"origin", b"sec-fetch-site", b"host")
    origins, sites, hosts = (set(headers_of(Request(scope), name)) for name in names)
    own = {f"{scope['scheme']}://{host}" for host in hosts}
    # A browser that does not send Sec-Fetch-Site sends Origin, at least with all but a GET of its own page.
    same = sites <= {"same-origin", "none"} if sites else origins <= own
    named = origins and origins <= set(gateway.settings.credential_origins)
    if not same and not named:
        raise ForbiddenError(
            "a page of another origin may not use the session; list its origin in GATEWAY_CORS_ORIGINS",
            code="cross-origin",
        )


def caller_of(gateway: Gateway, scope: Scope, identity: Identity) -> Caller | None:
    """Return whose quotas a request counts for; None if there are no quotas."""
    return None if gateway.quotas is None else Caller(identity.name, _limited_address(scope))


def _limited_address(scope: Scope) -> str:
    client = scope.get("client")
    return client_address(client[0]) if client is not None else "unknown"


async def check_operator(gateway: Gateway, scope: Scope) -> None:
    """Check that the request may see metrics and feeds, which name what others read.

    On a port of its own (``GATEWAY_ADMIN_PORT``), which is closed to clients, this is required only if the gateway has
    a static token. Raises ForbiddenError, or what ``identity_of`` raises.
    """
    if gateway.settings.admin_port is not None and not gateway.access.has_static_token:
        return
    gateway.access.check_operator(await identity_of(gateway, scope))


def query_of(request: Request) -> bytes:
    """Return the raw query string."""
    raw: bytes = request.scope["query_string"]
    return raw


def encoding_of(query: Mapping[str, bytes]) -> str:
    """Return the encoding of keys and values in the response. Raises BadRequestError for an unknown encoding."""
    return parse_choice(query, "encoding", ENCODINGS) or "auto"


def coding_for(gateway: Gateway, request: Request, ranges: Ranges) -> Coding:
    """Return how the answer to a request is coded. *ranges*: those that the answer has keys of."""
    prefixes = gateway.gzip_prefixes
    return coding_of(ranges, prefixes, ",".join(headers_of(request, b"accept-encoding"))) if prefixes else Coding.FIXED


def scope_of(query: Mapping[str, bytes]) -> bool:
    """Whether the request is for the permitted parts of its ranges. Raises BadRequestError for an unknown scope."""
    return parse_choice(query, "scope", SCOPES) is not None


async def once_per_request(request: Request, work: Callable[[], Awaitable[T]]) -> T:
    """Return the outcome of *work* on a request, which is done once.

    A bypass and the route both call this. The second call has the outcome of the first, also if that is an error:
    credentials are checked once for each request.

    Raises:
        GatewayError: the request is wrong, or not allowed.
    """
    outcome: T | GatewayError | None = request.scope.get(_OUTCOME)
    if outcome is None:
        try:
            outcome = await work()
        except GatewayError as error:
            outcome = error
        request.scope[_OUTCOME] = outcome
    if isinstance(outcome, GatewayError):
        raise outcome
    return outcome
