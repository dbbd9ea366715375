"""The gateway beside the sidecar of a mesh: a real Envoy that verifies JWTs and puts a claim into a header.

The configuration is what Istio makes of the RequestAuthentication in docs/how-to/tokens.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.dev.etcd import free_ports
from tests.access.issuer import ISSUER, SigningKey, claims, ec_key, jwks
from tests.matrix.proxies import PROXIES, ensure
from tests.support.embedded import EmbeddedEtcd
from tests.support.gateway import GatewayProcess, gateway
from tests.support.streams import watch
from tests.support.waiting import eventually

pytestmark = [pytest.mark.etcd, pytest.mark.one_etcd]

KEY, UNKNOWN = ec_key("mesh"), ec_key("unknown")
# The address from which Istio's sidecar opens its connections to the application.
SIDECAR = "127.0.0.6"
POLICY = """
roles:
  reader: {read: [/svc/]}
bindings:
  - {identity: "proxy:alice", roles: [reader]}
"""


def _typed(name: str, kind: str, **members: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": f"type.googleapis.com/{kind}", **members}}


def configuration(port: int, upstream: int) -> dict[str, Any]:
    """What Istio makes of the page's RequestAuthentication, for a sidecar that listens on *port*."""
    filters = "envoy.extensions.filters"
    provider = {
        "issuer": ISSUER,
        "audiences": ["etcd-gateway"],
        "local_jwks": {"inline_string": jwks(KEY).decode()},
        "forward": False,  # forwardOriginalToken
        "claim_to_headers": [{"header_name": "x-mesh-user", "claim_name": "sub"}],
    }
    missing = {"requires_any": {"requirements": [{"provider_name": "mesh"}, {"allow_missing": {}}]}}
    verifier = _typed(
        "envoy.filters.http.jwt_authn",
        f"{filters}.http.jwt_authn.v3.JwtAuthentication",
        providers={"mesh": provider},
        rules=[{"match": {"prefix": "/"}, "requires": missing}],
    )
    router = _typed("envoy.filters.http.router", f"{filters}.http.router.v3.Router")
    manager = _typed(
        "envoy.filters.network.http_connection_manager",
        f"{filters}.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="inbound",
        http_filters=[verifier, router],
        route_config={
            "virtual_hosts": [
                {
                    "name": "inbound",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "inbound", "timeout": "0s"}}],
                }
            ]
        },
    )

    def address(host: str, number: int) -> dict[str, Any]:
        return {"socket_address": {"address": host, "port_value": number}}

    endpoint = {"endpoint": {"address": address("127.0.0.1", upstream)}}
    cluster = {
        "name": "inbound",
        "upstream_bind_config": {"source_address": {"address": SIDECAR, "port_value": 0}},
        "load_assignment": {"cluster_name": "inbound", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    listener = {"address": address("127.0.0.1", port), "filter_chains": [{"filters": [manager]}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


@contextlib.asynccontextmanager
async def sidecar(server: GatewayProcess, folder: Path) -> AsyncIterator[str]:
    """A running Envoy in front of the gateway: its URL."""
    program = await asyncio.to_thread(ensure, "envoy")
    (port,) = free_ports(1)
    (folder / "envoy.yaml").write_text(json.dumps(configuration(port, server.port)))
    process = await asyncio.create_subprocess_exec(
        program, *PROXIES["envoy"].command, cwd=folder, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip

    async def answers() -> bool:
        assert process.returncode is None
        with contextlib.suppress(httpx.TransportError):
            async with httpx.AsyncClient(trust_env=False) as client:
                return (await client.get(f"http://127.0.0.1:{port}/livez")).status_code == 200
        return False

    try:
        await eventually(answers)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def bearer(key: SigningKey = KEY, **changed: Any) -> dict[str, str]:
    """The header with a token of the mesh's issuer, good for decades."""
    return {"Authorization": f"Bearer {key.sign(claims(**{'iat': 1, 'exp': 1 << 32, **changed})).decode()}"}


async def test_the_user_of_a_mesh(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """The sidecar names the user whose token it has verified. Whatever a client sends names nobody."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    settings = {
        "GATEWAY_AUTH_PROXY_HEADER": "X-Mesh-User",
        "GATEWAY_AUTH_PROXIES": SIDECAR,
        "GATEWAY_POLICY_FILE": str(tmp_path / "policy.yaml"),
    }
    async with (
        gateway(etcd.endpoint, settings=settings) as server,
        sidecar(server, tmp_path) as front,
        httpx.AsyncClient(base_url=front, trust_env=False) as client,
    ):

        async def whoami(*headers: tuple[str, str]) -> tuple[int, str]:
            answer = await client.get("/v1/access", headers=list(headers))
            body = answer.json() if answer.headers["content-type"].endswith("json") else {}
            return answer.status_code, str(body.get("identity", body.get("code", "")))

        token = ("Authorization", bearer()["Authorization"])
        assert await whoami(token) == (200, "proxy:alice")
        assert await whoami(("X-Mesh-User", "alice")) == (401, "unauthorized"), "no token, no user"
        assert await whoami(token, ("X-Mesh-User", "eve"), ("x-mesh-user", "eve")) == (200, "proxy:alice")
        for wrong in (bearer(UNKNOWN), bearer(aud="another"), bearer(exp=1)):
            assert (await whoami(("Authorization", wrong["Authorization"]), ("X-Mesh-User", "alice")))[0] in (401, 403)
        async with await watch(front, "prefix=/svc/", bearer()) as stream:
            await stream.until("synced")
        assert (await client.get("/v1/kv?prefix=/other/", headers=bearer())).status_code == 403
        async with httpx.AsyncClient(base_url=server.base, trust_env=False) as beside:
            answer = await beside.get("/v1/access", headers={"X-Mesh-User": "alice"})
        assert answer.status_code == 401, "past the sidecar, the header names nobody"
