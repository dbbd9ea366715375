"""The description of the endpoints, which ``/docs`` shows.

The endpoints read raw query bytes, so FastAPI cannot derive the description from their signatures.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from .kv_request import CONSISTENCIES, DEFAULT_LIMIT, MAX_LIMIT
from .requests import ENCODINGS, SCOPES
from .watch import FORMATS, MODES


def _parameter(name: str, text: str, schema: dict[str, Any], where: str = "query") -> dict[str, Any]:
    return {"name": name, "in": where, "required": False, "description": text, "schema": schema}


_TEXT = {"type": "string"}
_LIMIT = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}
_FLAG = {"type": "integer", "enum": [0, 1]}
_REVISION = {"type": "integer", "format": "int64", "minimum": 0, "default": 0}
_PREFIX = _parameter(
    "prefix",
    "All keys that start with these bytes, percent-encoded. An empty prefix means all keys. May be repeated.",
    _TEXT,
)
_KEY = _parameter("key", "One key: its bytes, percent-encoded. May be repeated, also beside `prefix`.", _TEXT)
_ENCODING = _parameter(
    "encoding",
    "`auto`: text if the bytes are valid UTF-8, otherwise base64. `base64`: always base64.",
    {"type": "string", "enum": [*ENCODINGS], "default": "auto"},
)
_SCOPE = _parameter(
    "scope",
    "`permitted`: only the parts of the ranges that the identity may read, instead of 403.",
    {"type": "string", "enum": [*SCOPES]},
)
_PROBLEM = {
    "description": "A problem (RFC 9457). `code` names the error for programs.",
    "content": {
        "application/problem+json": {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "code", "detail"],
                "properties": {
                    "type": _TEXT,
                    "title": _TEXT,
                    "status": {"type": "integer"},
                    "code": _TEXT,
                    "detail": _TEXT,
                    "parameter": _TEXT,
                },
            }
        }
    },
}


def _responses(good: str, media_types: list[str], *statuses: int) -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {
        200: {"description": good, "content": {media_type: {} for media_type in media_types}}
    }
    return found | dict.fromkeys(statuses, _PROBLEM)


KV: dict[str, Any] = {
    "summary": "Current values, by key or prefix",
    "openapi_extra": {
        "parameters": [
            _KEY,
            _PREFIX,
            _SCOPE,
            _parameter("limit", "The maximum number of items in a page.", _LIMIT),
            _parameter("page", "The `next_page` of the previous page.", _TEXT),
            _parameter("keys_only", "`1`: leave out the values.", _FLAG),
            _parameter("count_only", "`1`: return only the number of keys.", _FLAG),
            _parameter(
                "consistency",
                "`linearizable`: a read at etcd. `feed`: from the gateway's memory, without a request to etcd.",
                {"type": "string", "enum": [*CONSISTENCIES], "default": "linearizable"},
            ),
            _parameter("min_revision", "The answer must have reached this revision.", _REVISION),
            _ENCODING,
            _parameter("If-None-Match", "An `ETag`: 304 if the state is still the same.", _TEXT, "header"),
            _parameter(
                "Prefer",
                "`wait=30`: with `If-None-Match`, wait up to 30 s for another state; at most 60 s.",
                _TEXT,
                "header",
            ),
        ]
    },
    "responses": _responses(
        "`{revision, cursor, kv}` for a single key, `{revision, cursor, kvs, count, next_page?}` for all others.",
        ["application/json"],
        400, 401, 403, 404, 410, 429, 501, 502, 503, 504,
    ) | {304: {"description": "The state is still the one that `If-None-Match` names."}},
}  # fmt: skip

WATCH: dict[str, Any] = {
    "summary": "Get and watch, as Server-Sent Events or NDJSON",
    # FastAPI would add `application/json`, the media type of its default response class. ``Response`` has none.
    "response_class": Response,
    "openapi_extra": {
        "parameters": [
            _KEY,
            _PREFIX,
            _SCOPE,
            _parameter("keys_only", "`1`: leave out the values.", _FLAG),
            _parameter("snapshot", "`0`: send only changes, without the current state at the start.", _FLAG),
            _ENCODING,
            _parameter(
                "mode",
                "`latest`: of all changes within `interval`, only the newest of each key.",
                {"type": "string", "enum": [*MODES]},
            ),
            _parameter(
                "interval",
                "With `mode=latest`: the least time between two flushes, from 50ms to 60s.",
                {"type": "string", "default": "500ms"},
            ),
            _parameter(
                "min_revision",
                "Read your own write: `synced` is not sent at a lower revision.",
                {"type": "integer", "format": "int64", "minimum": 0, "default": 0},
            ),
            _parameter("format", "Overrides the `Accept` header.", {"type": "string", "enum": [*FORMATS]}),
            _parameter("last_event_id", "The cursor at which the stream resumes.", _TEXT),
            _parameter("lastEventId", "The same, as EventSource polyfills name it. Overrides `last_event_id`.", _TEXT),
            _parameter("Last-Event-ID", "The same. Overrides both.", _TEXT, "header"),
        ]
    },
    "responses": _responses(
        "The events `reset`, `put`, `delete`, `synced`, `bookmark`, `status` and `close`.",
        ["text/event-stream", "application/x-ndjson"],
        400, 401, 403, 429, 501, 503,
    ),
}  # fmt: skip

ACCESS: dict[str, Any] = {
    "summary": "Who I am, until when, and what I may read",
    "responses": _responses(
        "`{identity, roles, read, keys_only, expires?}`. `read` and `keys_only` list ranges.",
        ["application/json"],
        400, 401, 503,
    ),
}  # fmt: skip

PROGRESS: dict[str, Any] = {
    "summary": "How far this gateway is, for gateways that follow it",
    "openapi_extra": {"parameters": [_PREFIX, _KEY]},
    "responses": _responses(
        "`{cluster_id, epoch, revision, state, progress_trusted}`. With ranges, `revision` is linearizable. "
        "The gateway proves, if it can, that it has reached this revision in these ranges, and sends a bookmark on the "
        "streams of exactly these ranges that come from the caller's address.",
        ["application/json"],
        400, 401, 403, 502, 503, 504,
    ),
}  # fmt: skip

_NO_CONTENT = {204: {"description": "The cookie is removed, and the session has ended if the cookie was good."}}

BEGIN_SESSION: dict[str, Any] = {
    "summary": "Exchange a bearer token for a cookie, for EventSource",
    "status_code": 201,
    "responses": {
        201: {
            "description": "As `/v1/access`. `expires` is the end of the session.",
            "headers": {"Set-Cookie": {"description": "The session's cookie.", "schema": _TEXT}},
            "content": {"application/json": {}},
        }
    }
    | dict.fromkeys((400, 401, 403, 429, 503), _PROBLEM),
}

END_SESSION: dict[str, Any] = {
    "summary": "End the session, and the streams that it has opened here",
    "status_code": 204,
    "response_class": Response,
    "responses": _NO_CONTENT | dict.fromkeys((400, 403, 429), _PROBLEM),
}

RESOURCE: dict[str, Any] = {
    "summary": "The issuer whose tokens are accepted (RFC 9728)",
    "responses": _responses("The metadata of this protected resource.", ["application/json"]),
}

FEEDS: dict[str, Any] = {
    "summary": "The live shared watches of this instance",
    "openapi_extra": {"parameters": [_PREFIX, _KEY]},
    "responses": _responses(
        "The feeds, channels and pins. With `key` and `prefix`: only the channel of exactly these ranges, with its "
        "subscribers, and the feeds that it is made from.",
        ["application/json"],
        400, 401, 403,
    ),
}  # fmt: skip

_STATUS: dict[str, Any] = {"content": {"application/json": {}}}

LIVEZ: dict[str, Any] = {
    "summary": "Liveness",
    "responses": {
        200: {"description": "The process can go on."} | _STATUS,
        503: {"description": "A defect has ended a task that all others depend on. Restart the process."} | _STATUS,
    },
}

READYZ: dict[str, Any] = {
    "summary": "Readiness",
    "responses": {
        200: {"description": "The gateway serves clients. `pins` lists pins that cannot be held."} | _STATUS,
        503: {
            "description": "etcd has not answered yet, or cannot be watched, or a pin has not been live yet, or the "
            "gateway drains."
        }
        | _STATUS,
    },
}

METRICS: dict[str, Any] = {
    "summary": "Prometheus metrics",
    "response_class": Response,
    "responses": {
        200: {"description": "The metrics.", "content": {CONTENT_TYPE_LATEST: {}}},
    },
}


def for_operators(described: dict[str, Any]) -> dict[str, Any]:
    """Return a description with the refusals of an endpoint that needs the role ``operator``."""
    return described | {"responses": described["responses"] | dict.fromkeys((400, 401, 403, 503), _PROBLEM)}
