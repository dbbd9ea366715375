"""The endpoints' documentation in /docs agrees with the endpoints."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CONTENT_TYPE_LATEST

from app.api import kv_request, openapi, watch
from app.core.errors import BadRequestError
from app.gateway import Gateway
from app.main import create_app


def parameters(described: dict[str, Any], where: str = "query") -> dict[str, dict[str, Any]]:
    """The parameters of one endpoint, by name."""
    found: list[dict[str, Any]] = described["openapi_extra"]["parameters"]
    return {parameter["name"]: parameter["schema"] for parameter in found if parameter["in"] == where}


def test_every_parameter_is_described() -> None:
    """Exactly the endpoint's parameters are described."""
    assert set(parameters(openapi.KV)) == kv_request._KNOWN
    assert set(parameters(openapi.WATCH)) == watch._KNOWN
    assert set(parameters(openapi.WATCH, "header")) == {"Last-Event-ID"}
    assert set(parameters(openapi.KV, "header")) == {"If-None-Match", "Prefer"}


def test_the_limits_are_those_of_the_endpoint() -> None:
    """The documented maximum is accepted, one more is refused, and the default is the limit of a plain request."""
    limit = parameters(openapi.KV)["limit"]
    assert kv_request.parse(b"prefix=").read.limit == limit["default"]
    for value in (limit["minimum"], limit["maximum"]):
        assert kv_request.parse(f"prefix=&limit={value}".encode()).read.limit == value
    for value in (limit["minimum"] - 1, limit["maximum"] + 1):
        with pytest.raises(BadRequestError):
            kv_request.parse(f"prefix=&limit={value}".encode())


@pytest.mark.parametrize("name", ["encoding", "keys_only", "count_only", "consistency"])
def test_every_choice_is_taken(name: str) -> None:
    """Each documented choice of a parameter is accepted, and no other value."""
    for value in parameters(openapi.KV)[name]["enum"]:
        kv_request.parse(f"prefix=&{name}={value}".encode())
    with pytest.raises(BadRequestError):
        kv_request.parse(f"prefix=&{name}=other".encode())


async def test_the_document(gateway: Gateway) -> None:
    """FastAPI can build the document; every answer other than 200 is a problem."""
    document = create_app(gateway=gateway).openapi()
    for path in ("/v1/kv", "/v1/watch", "/v1/feeds"):
        responses = document["paths"][path]["get"]["responses"]
        assert "200" in responses
        for status, response in responses.items():
            if status not in ("200", "304"):
                assert list(response["content"]) == ["application/problem+json"], (path, status)
    served = document["paths"]["/v1/watch"]["get"]["responses"]["200"]["content"]
    assert set(served) == {"text/event-stream", "application/x-ndjson"}
    for path in ("/livez", "/readyz"):
        answers = document["paths"][path]["get"]["responses"]
        assert {status: list(answer["content"]) for status, answer in answers.items()} == {
            "200": ["application/json"],
            "503": ["application/json"],
        }
    metrics = document["paths"]["/metrics"]["get"]["responses"]
    assert {status: list(answer["content"]) for status, answer in metrics.items()} == {"200": [CONTENT_TYPE_LATEST]}
