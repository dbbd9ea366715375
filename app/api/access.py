"""``GET /v1/access``: who the request is from, until when, and what that identity may read.

Also ``/.well-known/oauth-protected-resource`` (RFC 9728), which tells a client which issuer's tokens are accepted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..access.control import AccessControl
from ..access.identity import Identity
from ..core.query import parse_query
from ..core.timestamps import rfc3339
from ..gateway import Gateway
from .json_answer import json_answer
from .requests import identity_of, query_of

_HTTPS_HOST = re.compile(r"https://[^/?#@\s]+")


class AccessEndpoint:
    """The endpoints."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def get(self, request: Request) -> Response:
        """Answer one request."""
        identity = await identity_of(self._gateway, request.scope)
        parse_query(query_of(request), frozenset())
        return json_answer(describe(self._gateway.access, identity))

    async def protected_resource(self, request: Request) -> Response:
        """Answer with the metadata. Each client compares ``resource`` with the URL that it used.

        No cache may keep the answer: one that ignores the host would give one host's answer to another.
        """
        settings = self._gateway.settings
        body = {
            "resource": resource_of(settings.jwt_audience, request.url.netloc),
            "authorization_servers": [settings.jwt_issuer],
            "bearer_methods_supported": ["header"],
            "resource_name": "etcd-watch-gateway",
        }
        return json_answer(body)


def resource_of(audiences: Sequence[str], netloc: str) -> str:
    """Return the resource's identifier. RFC 9728, 3.3: a client must not use one that is not the URL that it asked.

    An audience that is the URL of a host is how the operator names the gateway, whatever a proxy makes of the host.
    """
    asked = f"https://{netloc}"
    urls = [each for each in audiences if _HTTPS_HOST.fullmatch(each)]
    return asked if asked in urls or not urls else urls[0]


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
