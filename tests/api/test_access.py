"""``/v1/access`` and the metadata of the protected resource, requested without a server."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from app.api.access import resource_of
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.access.issuer import AUDIENCE, ISSUER, ec_key, jwks

NOWHERE = "http://127.0.0.1:1"
WELL_KNOWN = "/.well-known/oauth-protected-resource"

pytestmark = pytest.mark.usefixtures("clean_environment")


def client(**settings: str) -> httpx.AsyncClient:
    """A client of a gateway that has no etcd."""
    app = create_app(gateway=Gateway(load({"etcd": NOWHERE, **settings})))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tokens").write_text(
        f"tokens: [{{name: dash, sha256: {sha256(b'dash-token').hexdigest()}, roles: [reader], "
        "expires: 2999-12-31T23:59:59+02:00}]"
    )
    (tmp_path / "policy").write_text("roles: {reader: {read: [/svc/, 'key=/b%ff'], keys_only: [/audit/]}, more: }")
    return {"tokens_file": str(tmp_path / "tokens"), "policy_file": str(tmp_path / "policy")}


async def test_who_i_am(files: dict[str, str]) -> None:
    """The answer has the name, the roles, the expiry in UTC, and the ranges as problems and queries write them."""
    async with client(**files) as http:
        answer = await http.get("/v1/access", headers={"Authorization": "Bearer dash-token"})

    assert answer.json() == {
        "identity": "token:dash",
        "roles": ["reader"],
        "read": ["prefix=/svc/", "key=/b%FF"],
        "keys_only": ["prefix=/audit/"],
        "expires": "2999-12-31T21:59:59Z",
    }
    assert answer.headers["cache-control"] == "no-store"


async def test_the_fence_cuts_the_ranges(files: dict[str, str]) -> None:
    """What the fence excludes is not listed."""
    async with client(**files, allow_prefixes="/svc/a/") as http:
        answer = await http.get("/v1/access", headers={"Authorization": "Bearer dash-token"})

    assert (answer.json()["read"], answer.json()["keys_only"]) == (["prefix=/svc/a/"], [])


async def test_without_access_control() -> None:
    """Without a mode everybody is anonymous, and may read what the fence allows."""
    async with client(allow_prefixes="/a/,/b%ff") as http:
        answer = await http.get("/v1/access")

    assert answer.json() == {
        "identity": "anonymous",
        "roles": [],
        "read": ["prefix=/a/", "prefix=/b%FF"],
        "keys_only": [],
    }


async def test_refusals(files: dict[str, str]) -> None:
    """Without credentials, or with wrong ones, nothing is told; a parameter is unknown."""
    async with client(**files) as http:
        without = await http.get("/v1/access")
        wrong = await http.get("/v1/access", headers={"Authorization": "Bearer x"})
        unknown = await http.get("/v1/access?prefix=/", headers={"Authorization": "Bearer dash-token"})
        head = await http.head("/v1/access")

    assert (without.status_code, without.headers["www-authenticate"]) == (401, "Bearer")
    assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')
    assert (unknown.status_code, unknown.json()["code"]) == (400, "unknown-parameter")
    assert head.status_code == 401


async def test_the_document_describes_what_operators_need(files: dict[str, str]) -> None:
    """The OpenAPI document lists the refusals of metrics and feeds where the role ``operator`` is required."""
    described = {}
    for name, settings in (("open", {}), ("guarded", files), ("admin", {**files, "admin_port": "0"})):
        async with client(**settings) as http:
            paths = (await http.get("/openapi.json")).json()["paths"]
        described[name] = sorted(paths["/metrics"]["get"]["responses"]) if "/metrics" in paths else None

    assert described == {"open": ["200"], "guarded": ["200", "400", "401", "403", "429", "503"], "admin": None}


async def test_the_protected_resource(tmp_path: Path) -> None:
    """RFC 9728: where clients get tokens; only when JWTs are accepted. The resource is the URL that the client used."""
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks(ec_key()))
    async with client(jwt_issuer=ISSUER, jwt_audience=f"{AUDIENCE},b", jwt_jwks=str(path)) as http:
        answer = await http.get(WELL_KNOWN, headers={"Host": "gw.example:8443"})
    async with client() as http:
        absent = await http.get(WELL_KNOWN)

    assert answer.json() == {
        "resource": "https://gw.example:8443",
        "authorization_servers": [ISSUER],
        "bearer_methods_supported": ["header"],
        "resource_name": "etcd-watch-gateway",
    }
    assert answer.headers["cache-control"] == "no-store"
    assert absent.status_code == 404


@pytest.mark.parametrize(
    ("audiences", "resource"),
    [
        (["api"], "https://inner:8080"),
        (["api", "https://a.example"], "https://a.example"),
        (["https://a.example", "https://inner:8080"], "https://inner:8080"),
        (["https://a.example/path", "https://", "http://a.example", "https://a.example?x"], "https://inner:8080"),
        (["https://u@a.example", "https://b.example:8443"], "https://b.example:8443"),
    ],
)
def test_an_audience_that_is_a_url_names_the_resource(audiences: list[str], resource: str) -> None:
    """A proxy may change the host. An audience with a path belongs to metadata at another address."""
    assert resource_of(audiences, "inner:8080") == resource
