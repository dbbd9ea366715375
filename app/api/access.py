"""``GET /v1/access``: who the request is from, until when, and what that identity may read.

Also ``/.well-known/oauth-protected-resource`` (RFC 9728), which tells a client which issuer's tokens are accepted.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..access.control import AccessControl
from ..access.identity import Identity
from ..core.encoding import compact
from ..core.query import parse_query
from ..core.timestamps import rfc3339
from ..gateway import Gateway
from .requests import identity_of, query_of


class AccessEndpoint:
    """The endpoints."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def get(self, request: Request) -> Response:
        """Answer one request."""
        identity = await identity_of(self._gateway, request.scope)
        parse_query(query_of(request), frozenset())
        return _json(describe(self._gateway.access, identity), "no-store")

    async def protected_resource(self, _request: Request) -> Response:
        """Answer with the metadata. The resource's identifier is the audience that its tokens must have."""
        settings = self._gateway.settings
        body = {
            "resource": settings.jwt_audience[0],
            "authorization_servers": [settings.jwt_issuer],
            "bearer_methods_supported": ["header"],
            "resource_name": "etcd-watch-gateway",
        }
        return _json(body, "public, max-age=300")


def describe(access: AccessControl, identity: Identity) -> dict[str, Any]:
    """Return what an identity is told about itself."""
    grants = access.grants(identity)
    body: dict[str, Any] = {
        "identity": identity.name,
        "roles": sorted(access.roles_of(identity)),
        "read": [str(one) for one in grants.read],
        "keys_only": [str(one) for one in grants.keys_only],
    }
    if identity.expires is not None:
        body["expires"] = rfc3339(identity.expires)
    return body


def _json(body: dict[str, Any], cache_control: str) -> Response:
    return Response(compact(body) + "\n", headers={"Cache-Control": cache_control}, media_type="application/json")
