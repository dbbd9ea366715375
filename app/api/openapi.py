"""The OpenAPI document: the endpoints, their parameters and their answers. ``/docs`` shows it.

The endpoints read raw query bytes, so FastAPI cannot derive the description from their signatures. The summary of each
example is the request that has this answer; ``tests/api/test_examples.py`` sends the requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from ..access.control import AccessControl
from ..core.query import MAX_KEY_BYTES
from ..core.selection import MOST_RANGES
from . import examples
from .kv_request import CONSISTENCIES, DEFAULT_LIMIT, MAX_LIMIT
from .requests import ENCODINGS, SCOPES
from .schemas import COUNT, NUMBER, SCHEMAS, TEXT, Schema, needed, problem_schema, problem_title, ref
from .watch_query import FORMATS, MODES

DESCRIPTION = """Follow etcd keys over HTTP, on shared and released watches.

Every path that has `GET` has `HEAD`, too: the same status and headers without a body. Keys and prefixes are bytes,
percent-encoded. The parameter `_`, which clients append against caches, is ignored. Members may be added to every
answer: ignore those that you do not know."""
# In the order in which /docs shows them.
TAGS = {"keys": "Read and follow keys.", "access": "Who may read what.", "operations": "For operators."}
JSON = "application/json"
PROBLEM = "application/problem+json"
BEARER = {"bearer": {"type": "http", "scheme": "bearer", "description": "A token of the operator, or a JWT."}}
# Refusals of the server itself, and defects. Probes and scrapers need not know of them.
_ANYWHERE = (431, 500)


class DescribedApp(FastAPI):
    """FastAPI, with the schemas that the routes' descriptions refer to."""

    def openapi(self) -> dict[str, Any]:
        """Return the document."""
        if self.openapi_schema is None:
            document = super().openapi()
            components: dict[str, Any] = {"schemas": {name: SCHEMAS[name] for name in sorted(needed(document))}}
            operations = [operation for path in document["paths"].values() for operation in path.values()]
            if any("security" in operation for operation in operations):
                components["securitySchemes"] = BEARER
            used = {tag for operation in operations for tag in operation["tags"]}
            document["components"] = components
            document["tags"] = [{"name": tag, "description": text} for tag, text in TAGS.items() if tag in used]
        return self.openapi_schema or {}


# --- parameters and answers -------------------------------------------------------------------------------------------


def _parameter(name: str, text: str, schema: Schema, where: str = "query", **more: object) -> dict[str, Any]:
    return {"name": name, "in": where, "required": False, "description": text, "schema": schema} | more


# No default: some generated clients send all defaults, and a single key has no such parameters.
_FLAG = {"type": "boolean"}
_REVISION = NUMBER | {"maximum": 2**63 - 1, "default": 0}


def _ranges(least: int) -> Schema:
    items = {"type": "string", "minLength": least, "maxLength": MAX_KEY_BYTES}
    return {"type": "array", "items": items, "maxItems": MOST_RANGES}


_PREFIX = _parameter(
    "prefix",
    "All keys that start with these bytes. An empty prefix means all keys. May be repeated, also beside `key`.",
    _ranges(0),
    example=["/svc/"],
)
_KEY = _parameter("key", "One key. May be repeated. At least one `key` or `prefix` is required.", _ranges(1))
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
_KEYS_ONLY = _parameter("keys_only", "Leave out the values. `1` and `0` are accepted, too.", _FLAG)


def _header(text: str, schema: Schema = TEXT) -> dict[str, Any]:
    return {"description": text, "schema": schema}


_REVISION_OF = {"X-Etcd-Revision": _header("The revision of the answer, or the highest that is known.", NUMBER)}
_CODING = {
    "Content-Encoding": _header("`gzip`, if `GATEWAY_GZIP_PREFIXES` has the ranges and `Accept-Encoding` asks for it."),
    "Vary": _header("Has `Accept-Encoding` if `GATEWAY_GZIP_PREFIXES` has the ranges."),
}
_RETRY = {"Retry-After": _header("After how many seconds to come back.", COUNT)}
_CHALLENGE = {"WWW-Authenticate": _header("`Bearer`, and perhaps what is wrong with the token (RFC 6750).")}
_PROBLEM_HEADERS = {401: _CHALLENGE, 403: _CHALLENGE, 429: _RETRY, 503: _RETRY}


def _good(text: str, content: dict[str, Any], headers: dict[str, Any] = _REVISION_OF) -> dict[str, Any]:
    return {"description": text, "headers": headers, "content": content}


def _json(name: str | Schema, shown: dict[str, Any] | None = None) -> dict[str, Any]:
    schema = ref(name) if isinstance(name, str) else name
    return {JSON: {"schema": schema} | ({"examples": shown} if shown else {})}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        content: dict[str, Any] = {"schema": problem_schema(status)}
        if status in examples.PROBLEMS:
            content["examples"] = examples.PROBLEMS[status]
        found[status] = {"description": problem_title(status), "content": {PROBLEM: content}}
        if status in _PROBLEM_HEADERS:
            found[status]["headers"] = _PROBLEM_HEADERS[status]
    return found


def _operation(
    name: str, tag: str, summary: str, description: str, *parameters: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """Return the arguments of a route.

    Without a description, FastAPI would show the docstring. With another class than ``Response``, it would add JSON.
    """
    texts = {"operation_id": name, "tags": [tag], "summary": summary, "description": description}
    described = texts | {"response_class": Response} | more
    return described | {"openapi_extra": {"parameters": [*parameters]}} if parameters else described


# --- operations -------------------------------------------------------------------------------------------------------

KV = _operation(
    "readKeys",
    "keys",
    "Current values, by key or prefix",
    "A single `key` is answered with its value, or with 404. Everything else is a list, in pages of one revision.",
    _KEY,
    _PREFIX,
    _SCOPE,
    _parameter(
        "limit",
        f"The maximum number of items in a page, {DEFAULT_LIMIT} if it is absent. A single key has no `limit`, "
        "`page`, `keys_only` and `count_only`.",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
    ),
    _parameter("page", "The `next_page` of the previous page.", TEXT),
    _KEYS_ONLY,
    _parameter("count_only", "Return only the number of keys.", _FLAG),
    _parameter(
        "consistency",
        "`linearizable`: a read at etcd. `feed`: from the gateway's memory, without a request to etcd.",
        {"type": "string", "enum": [*CONSISTENCIES], "default": "linearizable"},
    ),
    _parameter("min_revision", "The answer must have reached this revision.", _REVISION),
    _ENCODING,
    _parameter("If-None-Match", "An `ETag`: 304 if the state is still the same.", TEXT, "header"),
    _parameter(
        "Prefer", "`wait=30`: with `If-None-Match`, wait up to 30 s for another state; at most 60 s.", TEXT, "header"
    ),
    responses={
        200: _good(
            "A single `key`: `KeyAnswer`. Everything else: `ListAnswer`.",
            _json({"oneOf": [ref("KeyAnswer"), ref("ListAnswer")]}, examples.KV),
            _REVISION_OF
            | _CODING
            | {
                "ETag": _header("The state of a single key, or of a whole list."),
                "X-Gateway-State": _header("With `consistency=feed`: `live` or `stale`."),
                "Preference-Applied": _header("How long the gateway was ready to wait."),
            },
        ),
        304: {"description": "The state is still the one that `If-None-Match` names.", "headers": _REVISION_OF},
    }
    | _problems(400, 403, 404, 410, 429, *_ANYWHERE, 501, 502, 503, 504),
)

WATCH = _operation(
    "watch",
    "keys",
    "Get and watch, as Server-Sent Events or NDJSON",
    "The answer has no end. The schema is that of one event. In SSE, `data` is an `Event` as JSON, and `id` is its "
    "cursor. In NDJSON, each line that is not empty is an `Event`, and `cursor` is a member.",
    _KEY,
    _PREFIX,
    _SCOPE,
    _KEYS_ONLY,
    _parameter("snapshot", "`0`: send only changes, without the current state at the start.", _FLAG),
    _ENCODING,
    _parameter(
        "mode",
        "`latest`: of all changes within `interval`, only the newest of each key.",
        {"type": "string", "enum": [*MODES]},
    ),
    _parameter(
        "interval",
        "With `mode=latest`: the least time between two flushes, from 50ms to 60s; `500ms` if it is absent.",
        {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m)?$"},
    ),
    _parameter("min_revision", "Read your own write: `synced` is not sent at a lower revision.", _REVISION),
    _parameter("format", "Overrides the `Accept` header.", {"type": "string", "enum": [*FORMATS]}),
    # ``lastEventId`` is not a parameter of its own: generators would make one name of all three, and give up.
    _parameter(
        "last_event_id",
        "The cursor at which the stream resumes. EventSource polyfills name it `lastEventId`, which overrides this.",
        TEXT,
    ),
    _parameter("Last-Event-ID", "The same. Overrides both.", TEXT, "header"),
    responses={
        200: _good(
            "Events: `reset`, the state, `synced`, then every change.",
            {
                "text/event-stream": {"schema": ref("ServerSentEvent"), "examples": examples.SSE_EVENTS},
                "application/x-ndjson": {"schema": ref("Event"), "examples": examples.EVENTS},
            },
            _CODING
            | {
                "X-Gateway-Instance": _header("Which instance answers."),
                "X-Request-Id": _header("The request's own, or a new one. It is in the gateway's log."),
            },
        )
    }
    | _problems(400, 403, 429, *_ANYWHERE, 501, 503),
)

ACCESS = _operation(
    "getAccess",
    "access",
    "Who I am, until when, and what I may read",
    "Without access control the identity is `anonymous`.",
    responses={200: _good("The identity of the request.", _json("Access", examples.ACCESS))}
    | _problems(400, *_ANYWHERE),
)

BEGIN_SESSION = _operation(
    "beginSession",
    "access",
    "Exchange a bearer token for a cookie, for EventSource",
    "The cookie stands for the token, for at most 15 minutes.",
    status_code=201,
    responses={
        201: _good(
            "The identity of the session. `expires` is its end.",
            _json("Access", examples.ACCESS),
            {"Set-Cookie": _header("The session's cookie.")},
        )
    }
    | _problems(400, 401, 403, 429, 503),
)

END_SESSION = _operation(
    "endSession",
    "access",
    "End the session, and the streams that it has opened here",
    "Without a session, nothing happens.",
    status_code=204,
    responses={
        204: {
            "description": "The cookie is removed, and the session has ended if the cookie was good.",
            "headers": {"Set-Cookie": _header("Removes the cookie.")},
        }
    }
    | _problems(400, 403, 429),
)

PROGRESS = _operation(
    "getProgress",
    "operations",
    "How far this gateway is, for gateways that follow it",
    "With ranges, `revision` is linearizable, or `min_revision`. The gateway proves, if it can, that it has reached it "
    "in these ranges, and sends a bookmark on the caller's streams of exactly these ranges, and of each of them. With "
    "several ranges, the caller also says that it merges them: for 30 s, further bookmarks come by themselves.",
    _PREFIX | {"example": []},
    _KEY,
    _parameter("min_revision", "The revision to reach, instead of a linearizable one.", _REVISION),
    responses={200: _good("What this gateway follows, and how far it is.", _json("Progress"))}
    | _problems(400, 403, 429, *_ANYWHERE, 502, 503, 504),
)

RESOURCE = _operation(
    "getProtectedResource",
    "access",
    "The issuer whose tokens are accepted (RFC 9728)",
    "The path exists only if JWTs are accepted.",
    responses={200: _good("The metadata of this protected resource.", _json("ProtectedResource"))},
)

FEEDS = _operation(
    "listFeeds",
    "operations",
    "The live shared watches of this instance",
    "For people: members may change.",
    _PREFIX | {"example": []},
    _KEY,
    responses={
        200: _good(
            "The feeds, channels and pins. With `key` and `prefix`: only the channel of exactly these ranges, with its "
            "subscribers, and the feeds that it is made from.",
            _json("FeedsAnswer"),
        )
    }
    | _problems(400, 403, *_ANYWHERE),
)

LIVEZ = _operation(
    "livez",
    "operations",
    "Liveness",
    "Asks neither etcd nor the feeds.",
    responses={
        200: _good("The process can go on.", _json("Liveness", examples.LIVEZ)),
        503: _good("A defect has ended a task that all others depend on. Restart the process.", _json("Liveness")),
    },
)

READYZ = _operation(
    "readyz",
    "operations",
    "Readiness",
    "From the first answer of etcd, and of each pin, until the drain.",
    responses={
        200: _good("The gateway serves clients. `pins` lists pins that cannot be held.", _json("Readiness")),
        503: _good(
            "etcd has not answered yet, or cannot be watched, or a pin has not been live yet, or the gateway drains.",
            _json("Readiness"),
        ),
    },
)

METRICS = _operation(
    "metrics",
    "operations",
    "Prometheus metrics",
    "In the text format.",
    responses={200: _good("The metrics.", {CONTENT_TYPE_LATEST: {"schema": TEXT}})},
)


# --- who may ask ------------------------------------------------------------------------------------------------------


def for_clients(described: dict[str, Any], access: AccessControl) -> dict[str, Any]:
    """Return a description with the credentials that an endpoint for clients needs, and its refusals."""
    if not access.guarded and not access.has_static_token:
        return described
    return _secured(described, (401, 429, 503) if access.guarded else (401, 429), anonymous=access.admits_anonymous)


def for_operators(described: dict[str, Any], access: AccessControl) -> dict[str, Any]:
    """Return a description with the credentials that an endpoint for operators needs, and its refusals."""
    refusals = (400, 401, 403, 429, 503) if access.guarded else (401, 429)
    return _secured(described, refusals, anonymous=access.admits_anonymous)


def _secured(described: dict[str, Any], refusals: Sequence[int], *, anonymous: bool) -> dict[str, Any]:
    security: list[dict[str, list[str]]] = [{"bearer": []}, *([{}] if anonymous else [])]
    responses = described["responses"]
    return described | {
        "openapi_extra": described.get("openapi_extra", {}) | {"security": security},
        "responses": responses
        | {status: one for status, one in _problems(*refusals).items() if status not in responses},
    }
