"""The OpenAPI document tells the truth about the endpoints."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from openapi_python_client.config import Config, ConfigFile, MetaType
from openapi_python_client.parser import GeneratorData
from prometheus_client import CONTENT_TYPE_LATEST

from app.api import kv_request, openapi, watch_query
from app.core.errors import BadRequestError
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.access.issuer import AUDIENCE, ISSUER, ec_key, jwks
from tests.support.openapi import operations

GENERATOR = Config.from_sources(
    ConfigFile(), MetaType.NONE, Path("openapi.json"), "utf-8", overwrite=False, output_path=None
)
NOWHERE = "http://127.0.0.1:1"
PROBLEM = ["application/problem+json"]


def parameters(described: dict[str, Any], where: str = "query") -> dict[str, dict[str, Any]]:
    """The parameters of one endpoint, by name."""
    found: list[dict[str, Any]] = described["openapi_extra"]["parameters"]
    return {parameter["name"]: parameter["schema"] for parameter in found if parameter["in"] == where}


def document(**settings: object) -> dict[str, Any]:
    """The document of a gateway that has no etcd."""
    return create_app(gateway=Gateway(load({"etcd": NOWHERE, **settings}))).openapi()


def test_every_parameter_is_described() -> None:
    """Exactly the endpoint's parameters are described, ``lastEventId`` in words."""
    assert set(parameters(openapi.KV)) == kv_request._KNOWN
    assert set(parameters(openapi.WATCH)) == watch_query._KNOWN - {"lastEventId"}
    assert "lastEventId" in str(openapi.WATCH)
    assert set(parameters(openapi.WATCH, "header")) == {"Last-Event-ID"}
    assert set(parameters(openapi.KV, "header")) == {"If-None-Match", "Prefer"}


def test_the_limits_are_those_of_the_endpoint() -> None:
    """The documented maximum is accepted, one more is refused, and the default is the limit of a plain request."""
    limit = parameters(openapi.KV)["limit"]
    assert f"{kv_request.parse(b'prefix=').read.limit} if it is absent" in str(openapi.KV)
    for value in (limit["minimum"], limit["maximum"]):
        assert kv_request.parse(f"prefix=&limit={value}".encode()).read.limit == value
    for value in (limit["minimum"] - 1, limit["maximum"] + 1):
        with pytest.raises(BadRequestError):
            kv_request.parse(f"prefix=&limit={value}".encode())
    ranges = parameters(openapi.KV)["key"]
    most, longest = ranges["maxItems"], ranges["items"]["maxLength"]
    kv_request.parse(b"&".join(b"key=%d" % number for number in range(most)))
    kv_request.parse(b"key=" + b"k" * longest)
    for query in (b"&".join(b"key=%d" % number for number in range(most + 1)), b"key=" + b"k" * (longest + 1)):
        with pytest.raises(BadRequestError):
            kv_request.parse(query)


@pytest.mark.parametrize("name", ["encoding", "consistency", "scope"])
def test_every_choice_is_taken(name: str) -> None:
    """Each documented choice of a parameter is accepted, and no other value."""
    for value in parameters(openapi.KV)[name]["enum"]:
        kv_request.parse(f"prefix=&{name}={value}".encode())
    with pytest.raises(BadRequestError):
        kv_request.parse(f"prefix=&{name}=other".encode())


@pytest.mark.parametrize("name", ["keys_only", "count_only"])
def test_flags(name: str) -> None:
    """A boolean is written as JSON and as Python write it in a query, or as a digit."""
    assert parameters(openapi.KV)[name] == {"type": "boolean"}
    for value in ("true", "false", "True", "False", "1", "0"):
        asked = kv_request.parse(f"prefix=&{name}={value}".encode())
        assert getattr(asked.read.selection, name) == (value in ("true", "True", "1"))


def test_a_client_that_sends_every_default_can_read_a_key() -> None:
    """A parameter that a single key does not have must not have a default: generated clients send it."""
    defaults = {name: schema["default"] for name, schema in parameters(openapi.KV).items() if "default" in schema}
    query = "&".join(f"{name}={value}" for name, value in defaults.items())

    assert defaults
    assert kv_request.parse(f"key=a&{query}".encode()) == kv_request.parse(b"key=a")


def test_a_generator_of_clients_finds_nothing_wrong() -> None:
    """openapi-python-client leaves out what it cannot read. ``make matrix`` makes the clients and runs them."""
    read = GeneratorData.from_dict(document(), config=GENERATOR)

    assert isinstance(read, GeneratorData), read
    assert read.errors == []
    collections = read.endpoint_collections_by_tag.values()
    assert [error for collection in collections for error in collection.parse_errors] == []
    assert sum(len(collection.endpoints) for collection in collections) == len(document()["paths"])


async def test_the_document(gateway: Gateway) -> None:
    """Every answer other than 200 is a problem, has no body, or says how a probe failed."""
    described = create_app(gateway=gateway).openapi()
    for path, operation in operations(described):
        assert operation["description"] != "Answer one request."
        for status, response in operation["responses"].items():
            types = list(response.get("content", ()))
            if status == "304":
                assert types == []
            elif status == "200" or (path in ("/livez", "/readyz") and status == "503"):
                expected = {
                    "/v1/watch": ["text/event-stream", "application/x-ndjson"],
                    "/metrics": [CONTENT_TYPE_LATEST],
                }
                assert types == expected.get(path, ["application/json"]), path
            else:
                assert types == PROBLEM, (path, status)
            assert all("schema" in content for content in response.get("content", {}).values()), (path, status)


def test_without_credentials() -> None:
    """A gateway that asks for none describes none, and no refusal for the lack of them."""
    described = document()

    assert "securitySchemes" not in described["components"]
    for _path, operation in operations(described):
        assert "security" not in operation
        assert "401" not in operation["responses"]


def secured(described: dict[str, Any]) -> dict[str, list[dict[str, list[str]]]]:
    """What each path needs."""
    return {path: operation["security"] for path, operation in operations(described) if "security" in operation}


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "token").write_text("right")
    (tmp_path / "tokens").write_text(f"tokens: [{{name: a, sha256: {sha256(b'a').hexdigest()}, roles: []}}]")
    (tmp_path / "closed").write_text("roles: {}")
    (tmp_path / "open").write_text("roles: {all: {read: ['']}}\nanonymous: [all]")
    (tmp_path / "jwks").write_bytes(jwks(ec_key("first")))
    return {name: str(tmp_path / name) for name in ("token", "tokens", "closed", "open", "jwks")}


CLIENT, ADMIN = ["/v1/kv", "/v1/watch", "/v1/progress", "/v1/access"], ["/v1/feeds", "/metrics"]
BEARER: list[dict[str, list[str]]] = [{"bearer": []}]
ANYBODY: list[dict[str, list[str]]] = [*BEARER, {}]


def test_with_credentials(files: dict[str, str]) -> None:
    """Each mode is described as it is, and the refusals with it."""
    static = document(token_file=files["token"])
    assert secured(static) == dict.fromkeys([*CLIENT, "/v1/feeds"], BEARER)
    tokens = document(tokens_file=files["tokens"], policy_file=files["closed"])
    assert secured(tokens) == dict.fromkeys([*CLIENT, *ADMIN], BEARER)
    anonymous = document(tokens_file=files["tokens"], policy_file=files["open"])
    assert secured(anonymous) == dict.fromkeys([*CLIENT, *ADMIN], ANYBODY)
    port = document(tokens_file=files["tokens"], policy_file=files["closed"], admin_port=1)
    assert secured(port) == dict.fromkeys(CLIENT, BEARER)
    for described in (static, tokens, anonymous, port):
        assert described["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
        for path in secured(described):
            assert {"401", "429"} <= set(described["paths"][path]["get"]["responses"])


def test_the_issuer_is_described_only_if_there_is_one(files: dict[str, str]) -> None:
    """Its path is a 404 otherwise."""
    path = "/.well-known/oauth-protected-resource"
    with_jwt = document(jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_jwks=files["jwks"])

    assert path in with_jwt["paths"]
    assert path not in document()["paths"]
    assert "ProtectedResource" not in document()["components"]["schemas"]


def test_each_port_describes_itself() -> None:
    """With an admin port, each document has its own paths, and the schemas for these alone."""
    app = create_app(gateway=Gateway(load({"etcd": NOWHERE, "admin_port": 1})))
    admin = app.state.admin.openapi()

    assert list(app.openapi()["paths"]) == CLIENT
    assert set(admin["paths"]) == {*ADMIN, "/livez", "/readyz"}
    assert "FeedsAnswer" in admin["components"]["schemas"]
    assert "FeedsAnswer" not in app.openapi()["components"]["schemas"]
    assert "Event" not in admin["components"]["schemas"]
    assert [tag["name"] for tag in admin["tags"]] == ["operations"]
    assert [tag["name"] for tag in app.openapi()["tags"]] == ["keys", "access", "operations"]
