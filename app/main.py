"""The ASGI apps: one for clients and, if ``GATEWAY_ADMIN_PORT`` is set, a second one for operators."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import __version__
from .api import docs, openapi, problems
from .api.access import AccessEndpoint
from .api.audit_log import AuditLog
from .api.bypass import Bypass
from .api.client_gone import ClientGone
from .api.cors import Cors
from .api.feeds import FeedsEndpoint
from .api.health import HealthEndpoints
from .api.kv import KvEndpoint
from .api.kv_bypass import KvBypass
from .api.no_worker import refuse
from .api.page import PageEndpoint
from .api.progress import ProgressEndpoint
from .api.session import SessionEndpoint
from .api.watch import WatchEndpoint
from .core.witnessed_history import HEADER
from .core.worker_report import Report
from .gateway import Gateway
from .metrics import families_of, make_instrumentator, make_measure, make_registry
from .ports import Workers
from .settings import Settings, load

logger = logging.getLogger("gateway")

REVISION_HEADER = b"x-etcd-revision"
TIER_HEADER = b"x-gateway-tier"
HISTORY_HEADER = HEADER.lower().encode()


def create_app(
    settings: Settings | None = None, *, gateway: Gateway | None = None, workers: Workers | None = None
) -> FastAPI:
    """Return the app for clients.

    Without *gateway*, the app creates its own gateway from *settings* (by default: the environment's). This gateway
    runs as long as the app's lifespan. *workers*: the gateway is their hub, and they are the only clients of the app.
    """
    holder = gateway or Gateway(settings or load({}))
    if gateway is None and holder.tls is not None:
        logger.warning("GATEWAY_TLS_CERT has no effect on this server: give the certificate to the server itself")

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if gateway is not None:
            yield
            return
        async with holder.running():
            yield

    app = _new_app(lifespan)
    registry = make_registry(holder)
    instrumentator = make_instrumentator(registry)
    instrumentator.instrument(app)
    watch, kv, progress = WatchEndpoint(holder), KvEndpoint(holder), ProgressEndpoint(holder)
    _add_client_routes(app, holder, watch, kv, progress)
    feeds = FeedsEndpoint(holder, workers)
    health = HealthEndpoints(holder, registry, feeds, workers)
    if holder.settings.admin_port is None:
        _add_admin_routes(app, holder, feeds, health)
    else:
        app.state.admin = create_admin_app(holder, feeds, health)
    app.state.gateway = holder
    app.state.tell_edge = progress.tell_edge
    app.state.report = lambda only: Report(feeds.describe(only), families_of(registry))
    app.add_middleware(KvBypass, kv=kv, measure=make_measure(instrumentator, "/v1/kv"))
    origins, credentials = holder.settings.cors_origins, bool(holder.settings.credential_origins)
    if origins:
        app.add_middleware(Cors, origins=origins, credentials=credentials)
    app.add_middleware(GatewayHeaders, gateway=holder)
    if holder.access.guarded:
        app.add_middleware(AuditLog, access=holder.access)
    # Outermost.
    app.add_middleware(Bypass, streams=holder.streams, watch=watch, origins=origins, credentials=credentials)
    return app


def create_admin_app(gateway: Gateway, feeds: FeedsEndpoint, health: HealthEndpoints) -> FastAPI:
    """Return the app for operators, served on ``GATEWAY_ADMIN_PORT``."""
    app = _new_app(None)
    _add_admin_routes(app, gateway, feeds, health)
    app.add_middleware(GatewayHeaders, gateway=gateway)
    if gateway.access.guarded:
        app.add_middleware(AuditLog, access=gateway.access, is_open=not gateway.access.has_static_token)
    return app


def create_refusing_app(settings: Settings) -> ASGIApp:
    """Return the app of a hub while no worker can start. *settings*: of the operator."""
    if not settings.cors_origins:
        return refuse
    return Cors(refuse, settings.cors_origins, credentials=bool(settings.credential_origins))


def _new_app(lifespan: Any) -> FastAPI:
    app = openapi.DescribedApp(
        title="etcd-watch-gateway",
        version=__version__,
        description=openapi.DESCRIPTION,
        lifespan=lifespan,
        servers=[{"url": "."}],  # relative to /openapi.json: a proxy may serve the gateway under a path
        docs_url=None,
        redoc_url=None,
        # Off: FastAPI would look for OpenTelemetry in the environment at each request, and nothing here provides it.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        redirect_slashes=False,  # a redirect would name the host that a proxy sent, which clients may not reach
    )
    problems.install(app)
    docs.install(app)
    app.add_middleware(ClientGone)  # innermost: the metrics then count the status that ClientGone sets
    return app


def _serve(app: FastAPI, path: str, endpoint: Callable[[Request], Awaitable[Response]], **described: Any) -> None:
    """Serve *path* by GET and by HEAD. For HEAD the server omits the body; haproxy's default check is a HEAD.

    GET and HEAD need separate routes: one route for both would appear twice in the OpenAPI document under the same
    operation id.
    """
    app.add_api_route(path, endpoint, response_model=None, **described)
    app.add_route(path, endpoint, methods=["HEAD"], include_in_schema=False)  # nothing that FastAPI must inspect


def _add_client_routes(
    app: FastAPI, gateway: Gateway, watch: WatchEndpoint, kv: KvEndpoint, progress: ProgressEndpoint
) -> None:
    # Not to a router that the app includes: FastAPI would inspect each endpoint again at the first request.
    access, rules = AccessEndpoint(gateway), gateway.access
    _serve(app, "/v1/kv", kv.get, **openapi.for_clients(openapi.KV, rules))
    _serve(app, "/v1/watch", watch.get, **openapi.for_clients(openapi.WATCH, rules))
    _serve(app, "/v1/progress", progress.get, **openapi.for_clients(openapi.PROGRESS, rules))
    _serve(app, "/v1/access", access.get, **openapi.for_clients(openapi.ACCESS, rules))
    if gateway.settings.jwt_issuer:
        _serve(app, "/.well-known/oauth-protected-resource", access.protected_resource, **openapi.RESOURCE)
    if gateway.settings.session_key_file is not None:
        session = SessionEndpoint(gateway)
        described = (("POST", session.begin, openapi.BEGIN_SESSION), ("DELETE", session.end, openapi.END_SESSION))
        for method, endpoint, of_method in described:
            app.add_api_route("/v1/session", endpoint, response_model=None, methods=[method], **of_method)
    page = PageEndpoint(admin=gateway.settings.admin_port is None)
    _serve(app, "/", page.get, include_in_schema=False)
    _serve(app, "/page/{version}/{name:path}", page.file, include_in_schema=False)


def _add_admin_routes(app: FastAPI, gateway: Gateway, feeds: FeedsEndpoint, health: HealthEndpoints) -> None:
    of_feeds, of_metrics, access = openapi.FEEDS, openapi.METRICS, gateway.access
    open_port = gateway.settings.admin_port is not None
    if access.has_static_token or (access.guarded and not open_port):
        of_feeds = openapi.for_operators(of_feeds, access)
    if access.guarded and not open_port:
        of_metrics = openapi.for_operators(of_metrics, access)
    _serve(app, "/v1/feeds", feeds.get, **of_feeds)
    _serve(app, "/livez", health.livez, **openapi.LIVEZ)
    _serve(app, "/readyz", health.readyz, **openapi.READYZ)
    _serve(app, "/metrics", health.metrics, **of_metrics)


class GatewayHeaders:
    """Adds ``X-Etcd-Revision`` and ``X-Gateway-Tier`` to every response except streams, which have their own.

    A response that already has a revision keeps it. Others get the highest revision that the gateway knows. Every
    response to another gateway, streams too, tells how far etcd's history has come (``WitnessedHistory``).
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway
        self._upstream = gateway.upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add the headers to the response's head."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        to_gateway = any(name == TIER_HEADER for name, _value in scope["headers"])

        async def send_with_revision(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                names = {name for name, _value in headers}
                if b"x-gateway-instance" not in names:
                    if REVISION_HEADER not in names and self._upstream.highest_revision:
                        headers.append((REVISION_HEADER, str(self._upstream.highest_revision).encode()))
                    if self._gateway.tier is not None:
                        headers.append((TIER_HEADER, str(self._gateway.tier).encode()))
                if to_gateway and (witnessed := self._upstream.witnessed) is not None:
                    headers.append((HISTORY_HEADER, witnessed.header(self._gateway.clock()).encode()))
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_revision)
