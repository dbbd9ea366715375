"""The Gateway API's HTTPRoute v1, as far as the chart writes it: no package has its schema.

Fields and patterns are those of the API's specification (gateway.networking.k8s.io/v1, HTTPRoute; durations: GEP-2257).
A field that is missing here is refused, so look up a new field of the chart before you add it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, max_length=253)]
Port = Annotated[int, Field(ge=1, le=65535)]
Duration = Annotated[str, Field(pattern=r"^([0-9]{1,5}(h|m|s|ms)){1,4}$")]
Hostname = Annotated[
    str, Field(pattern=r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", max_length=253)
]


class Part(BaseModel):
    """A part of the route: unknown names are refused, and values are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Part):
    name: Name
    labels: dict[str, str]
    annotations: dict[str, str] = {}


class ParentRef(Part):
    name: Name
    namespace: Name | None = None
    sectionName: Name | None = None  # noqa: N815  # names of the API, here and below
    port: Port | None = None
    group: str | None = None
    kind: Name | None = None


class Path(Part):
    type: Literal["Exact", "PathPrefix", "RegularExpression"]
    value: Annotated[str, Field(pattern="^/", max_length=1024)]


class Match(Part):
    path: Path


class Timeouts(Part):
    request: Duration


class BackendRef(Part):
    name: Name
    port: Port


class Rule(Part):
    matches: Annotated[list[Match], Field(max_length=64)]
    timeouts: Timeouts | None = None
    backendRefs: Annotated[list[BackendRef], Field(max_length=16)]  # noqa: N815


class Spec(Part):
    parentRefs: Annotated[list[ParentRef], Field(max_length=32)]  # noqa: N815
    hostnames: Annotated[list[Hostname], Field(max_length=16)] = []
    rules: Annotated[list[Rule], Field(min_length=1, max_length=16)]


class HTTPRoute(Part):
    apiVersion: Literal["gateway.networking.k8s.io/v1"]  # noqa: N815
    kind: Literal["HTTPRoute"]
    metadata: Metadata
    spec: Spec
