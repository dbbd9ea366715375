"""The JSON Schemas of every body that the gateway sends, for the OpenAPI document.

Members may be added within v1, so no schema forbids further members. ``tests/api/test_openapi.py`` does, to prove that
the schemas name all members that there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..core.errors import (
    BadRequestError,
    EtcdRefusedError,
    ForbiddenError,
    HeadTooLargeError,
    MethodNotAllowedError,
    NotFoundError,
    OverCapacityError,
    PageExpiredError,
    RangesNeedPinError,
    RevisionNotReachedError,
    TransientError,
    UnauthorizedError,
)
from ..core.feed import State
from ..core.reasons import CLOSE_REASONS, RESET_REASONS

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
TIME: Schema = {"type": "string", "format": "date-time"}
RANGES: Schema = {
    "type": "array",
    "items": {"type": "string"},
    "description": "Ranges as they are written in a query: `prefix=/svc/`, `key=/svc/a`.",
}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "integer", "format": "int64", "minimum": 0}
CURSOR: Schema = {"type": "string", "description": "Opaque. A watch with this cursor continues here."}
STREAM_STATE: Schema = {"type": "string", "enum": ["live", "stale"]}


def described(schema: Schema, description: str) -> Schema:
    """Return a schema with a description."""
    return schema | {"description": description}


def record(
    properties: dict[str, Schema], *, optional: Iterable[str] = (), description: str = "", **more: object
) -> Schema:
    """Return the schema of an object. All members are required but the *optional* ones."""
    left = set(optional)
    found: Schema = {"type": "object"}
    if description:
        found["description"] = description
    return found | {"required": [name for name in properties if name not in left], "properties": properties} | more


def ref(name: str) -> Schema:
    """Return a reference to the schema of this name."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(of: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": of}


# --- keys and values --------------------------------------------------------------------------------------------------

BASE64: Schema = {"const": "base64"}
_KEY: dict[str, Schema] = {
    "key": described(TEXT, "Text, or base64. `key` and `key_encoding` together identify the key."),
    "key_encoding": described(BASE64, "Present if `key` is base64."),
}
_ITEM: dict[str, Schema] = _KEY | {
    "value": described(TEXT, "Text, or base64. Absent with `keys_only`."),
    "encoding": described(BASE64, "Present if `value` is base64."),
    "create_revision": NUMBER,
    "mod_revision": NUMBER,
    "version": NUMBER,
    "lease": {
        "type": "string",
        "pattern": "^[0-9a-f]{1,16}$",
        "description": "The lease's id in hex. Absent if the key has no lease.",
    },
}
_SELDOM = ("key_encoding", "value", "encoding", "lease")

KEYS = {
    "Item": record(_ITEM, optional=_SELDOM, description="A key, its value, and its place in etcd's history."),
    "KeyAnswer": record({"revision": NUMBER, "cursor": CURSOR, "kv": ref("Item")}, description="A single key."),
    "ListAnswer": record(
        {
            "revision": NUMBER,
            "cursor": CURSOR,
            "kvs": described(array(ref("Item")), "The order is not promised. Empty with `count_only`."),
            "count": described(COUNT, "The number of keys in all ranges, at this revision."),
            "next_page": described(TEXT, "The token of the next page. Absent if there is none."),
        },
        optional=["next_page"],
        description="The keys of the ranges, all at one revision.",
    ),
}


def one_of(schemas: dict[str, Schema], tag: str, description: str) -> Schema:
    """Return the schema of a union of records, which the constant in the member *tag* tells apart."""
    kinds = {schema["properties"][tag]["const"]: ref(name) for name, schema in schemas.items()}
    return {
        "description": description,
        "oneOf": [*kinds.values()],
        "discriminator": {"propertyName": tag, "mapping": {kind: one["$ref"] for kind, one in kinds.items()}},
    }


# --- the events of a stream -------------------------------------------------------------------------------------------

# No ``const``: openapi-python-client 0.29 writes Python for a true constant that does not parse.
_MORE = {"more": {"type": "boolean", "enum": [True], "description": "Further events of the same revision follow."}}
_CURSOR = {"cursor": described(TEXT, "In NDJSON: the position of the stream. In SSE, this is the `id` of the event.")}


def _event(kind: str, members: dict[str, Schema], description: str, *optional: str) -> Schema:
    properties = {"type": {"const": kind}, **members}
    return record(properties, optional=optional, description=description)


EVENTS = {
    "ResetEvent": _event(
        "reset",
        {"reason": {"type": "string", "enum": [*RESET_REASONS]}, "ranges": RANGES}
        | {"cluster_id": described(TEXT, "Of etcd, in hex: for gateways that follow this one.")}
        | _CURSOR,
        "Begin a new mirror. The state follows, up to `synced`.",
        "cursor",
    ),
    "PutEvent": _event(
        "put",
        _ITEM | _MORE | _CURSOR,
        "Before `synced`: an item of the state. After: a change. The last event of a revision has the cursor.",
        *_SELDOM,
        "more",
        "cursor",
    ),
    "DeleteEvent": _event(
        "delete",
        _KEY | {"mod_revision": NUMBER} | _MORE | _CURSOR,
        "The key does not exist since this revision.",
        "key_encoding",
        "more",
        "cursor",
    ),
    "SyncedEvent": _event(
        "synced",
        {
            "revision": NUMBER,
            "heartbeat": {"type": "number", "description": "The longest time in which the stream is silent, in s."},
            "state": described({"const": "stale"}, "The mirror is not live. A `status` follows. Absent if it is live."),
            "ended_revision": described(
                NUMBER, "For gateways below: cursors up to it may be of a history that has ended."
            ),
        }
        | _CURSOR,
        "The mirror is exact at this revision and, without `state`, live.",
        "state",
        "ended_revision",
        "cursor",
    ),
    "BookmarkEvent": _event(
        "bookmark",
        {"revision": NUMBER, "state": STREAM_STATE} | _CURSOR,
        "Every heartbeat: the mirror is exact at this revision.",
        "cursor",
    ),
    "StatusEvent": _event(
        "status",
        {
            "state": STREAM_STATE,
            "since": described(TIME, "Since when the stream is stale. Absent if it is live."),
            "age": described(COUNT, "The seconds since then, by the gateway's clock. Absent if the stream is live."),
            "expires": described(TIME, "When the stream will end, because its credentials expire then."),
            "ranges": RANGES,
        },
        "The state of the stream has changed, or its credentials expire soon.",
        "since",
        "age",
        "expires",
    ),
    "CloseEvent": _event(
        "close",
        {
            "reason": {"type": "string", "enum": [*CLOSE_REASONS]},
            "retry_ms": described(COUNT, "After how long to come back, in ms."),
            "detail": described(TEXT, "For people: what is wrong with etcd."),
        },
        "The last event of a stream that the gateway ends.",
        "detail",
    ),
}


def _framed(name: str, schema: Schema) -> Schema:
    """Return an event as SSE carries it: OpenAPI describes the fields of an SSE event as the members of an object."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": ref(name)}
    fields = {"event": schema["properties"]["type"], "data": data, "id": described(TEXT, "The cursor."), "retry": COUNT}
    return record(fields, optional=["id", "retry"], description=schema["description"])


SERVER_SENT = {f"ServerSent{name}": _framed(name, schema) for name, schema in EVENTS.items()}
UNIONS = {
    "Event": one_of(EVENTS, "type", "One event of a stream: a line of NDJSON, or the `data` of an SSE event."),
    "ServerSentEvent": one_of(SERVER_SENT, "event", "One event of an SSE stream. Its `data` is an `Event` as JSON."),
}

# --- who, and what is watched -----------------------------------------------------------------------------------------

_ETCD: dict[str, Schema] = {
    "endpoint": TEXT,
    "state": {"type": "string", "enum": ["connecting", "ready", "down"]},
    "since": TIME,
    "reason": described(TEXT, "Absent if the state is `ready`, but at an edge whose upstream has lost etcd."),
}
_TROUBLE = {"trouble": described(TEXT, "Why it is not so, if that is known.")}
_FOLLOWED: dict[str, Schema] = {
    "subscribers": COUNT,
    "revision": NUMBER,
    "state": TEXT,
    "lag": described(COUNT, "Revisions that the slowest subscriber has not been sent yet."),
    "lingering": {"type": "boolean"},
    "keys": COUNT,
    "bytes": COUNT,
    **_TROUBLE,
    "subscriber_list": described(array(ref("Subscriber")), "Only if the request names the ranges."),
}

OTHERS = {
    "Access": record(
        {
            "identity": TEXT,
            "roles": array(TEXT),
            "read": RANGES,
            "keys_only": RANGES,
            "expires": described(TIME, "When the credentials expire. Absent if they do not."),
        },
        optional=["expires"],
    ),
    "Progress": record(
        {
            "cluster_id": described(TEXT, "In hex."),
            "epoch": described(TEXT, "Of cursors without ranges: two gateways with equal ones derive equal cursors."),
            "revision": NUMBER,
            "state": _ETCD["state"],
            "progress_trusted": {"type": "boolean"},
            "member_known": described({"type": "boolean"}, "Whether progress_trusted is about a member of etcd."),
            "etcd_version": described(TEXT, "Of that member. Empty if it is not known."),
        }
    ),
    "ProtectedResource": record(
        {
            "resource": described(
                TEXT,
                "The URL of the gateway. If it is not what you asked, do not use this metadata (RFC 9728, 3.3).",
            ),
            "authorization_servers": array(TEXT),
            "bearer_methods_supported": array(TEXT),
            "resource_name": TEXT,
        }
    ),
    "FeedsAnswer": record(
        {
            "instance": TEXT,
            "version": TEXT,
            "epoch": TEXT,
            "linger": {"type": "number"},
            "sinks": {"type": "object", "additionalProperties": COUNT},
            "tier": described(COUNT, "0: it follows etcd. Absent while an edge does not know its tier yet."),
            "etcd": record({"version": TEXT, **_ETCD}, optional=["reason"]),
            "feeds": array(ref("Feed")),
            "channels": array(ref("Channel")),
            "pins": array(ref("Pin")),
        },
        optional=["tier"],
    ),
    "Feed": record(
        {"range": TEXT, **_FOLLOWED, "state": {"type": "string", "enum": [*(state.value for state in State), "stale"]}}
        | {
            "pinned": {"type": "boolean"},
            "channels": COUNT,
            "held_by": array(RANGES),
            "started": TIME,
            "reserved": described(COUNT, "Of a pin: the bytes that are kept free for its next state."),
        },
        optional=["trouble", "reserved", "subscriber_list"],
        description="One watch at etcd, and what is known through it.",
    ),
    "Channel": record(
        {"ranges": RANGES, "feeds": RANGES, **_FOLLOWED}
        | {"state": {"type": "string", "enum": ["waiting", "live", "stale"]}},
        optional=["trouble", "subscriber_list"],
        description="What all streams of equal ranges follow.",
    ),
    "Pin": record(
        {"range": TEXT, "state": {"type": "string", "enum": ["waiting", "held", "unavailable"]}, **_TROUBLE},
        optional=["trouble"],
    ),
    "Subscriber": record(
        {
            "address": TEXT,
            "age": {"type": "number", "minimum": 0},
            "behind": COUNT,
            "bytes": COUNT,
            "user_agent": TEXT,
            "request_id": TEXT,
        }
    ),
    "Liveness": record({"status": TEXT}),
    "Readiness": record(
        {
            "status": {
                "type": "string",
                "enum": ["ok", "waiting for etcd", "waiting for the issuer's keys", "waiting for pins", "draining"],
            },
            "etcd": record(_ETCD, optional=["reason"]),
            "pins": described(array(ref("Pin")), "The pins that are not held. Absent if there are none."),
            "access": {
                "type": "object",
                "additionalProperties": TEXT,
                "description": "What is wrong with each file of the access control. Absent if nothing is.",
            },
            "tls": described(TEXT, "What is wrong with the certificate's files. Absent if nothing is."),
        },
        optional=["pins", "access", "tls"],
    ),
}

# --- problems ---------------------------------------------------------------------------------------------------------

# The name of each problem's schema, its title, and the codes that it may have. docs/problems.md says what each code
# means.
_CODES: dict[int, tuple[str, str, tuple[str, ...]]] = {
    400: ("BadRequest", BadRequestError.title, (
        "invalid-parameter", "missing-parameter", "conflicting-parameters", "repeated-parameter", "selection-too-wide",
        "unknown-parameter", "too-long", "prefix-too-short", "malformed-request", "https-required",
        "conflicting-credentials", "session-too-large", "preflight-refused",
    )),
    401: ("Unauthorized", UnauthorizedError.title, ("unauthorized",)),
    403: ("Forbidden", ForbiddenError.title, ("forbidden", "cross-origin")),
    404: ("NotFound", NotFoundError.title, ("key-not-found", "no-such-path")),
    405: ("MethodNotAllowed", MethodNotAllowedError.title, ("method-not-allowed",)),
    410: ("PageExpired", PageExpiredError.title, ("page-expired",)),
    429: ("OverCapacity", OverCapacityError.title, (
        "too-many-subscribers", "too-many-feeds", "too-many-channels", "identity-streams", "identity-selections",
        "identity-feeds", "identity-joins", "identity-reads", "address-streams", "address-joins", "address-reads",
        "too-many-connections", "too-many-reads", "too-many-ranges",
    )),
    431: ("HeadTooLarge", HeadTooLargeError.title, ("head-too-large",)),
    500: ("InternalError", "Internal error", ("internal",)),
    501: ("NotSupported", RangesNeedPinError.title, ("ranges-need-pin",)),
    502: ("EtcdRefused", EtcdRefusedError.title, ("etcd-refused",)),
    503: ("Unavailable", TransientError.title, (
        "draining", "etcd-unavailable", "pin-unavailable", "too-large", "scope-changed", "issuer-unavailable",
        "no-worker",
    )),
    504: ("RevisionNotReached", RevisionNotReachedError.title, ("revision-not-reached",)),
}  # fmt: skip


def _problem(status: int, codes: tuple[str, ...]) -> Schema:
    return record(
        {
            "type": described(TEXT, "`urn:etcd-watch-gateway:problem:` and the code."),
            "title": TEXT,
            "status": {"const": status},
            "code": {"type": "string", "enum": [*codes], "description": "Names the problem for programs."},
            "detail": described(TEXT, "For people: what was wrong, and what to do."),
            "parameter": described(TEXT, "The parameter at fault. Absent if none is."),
        },
        optional=["parameter"],
        description="A problem (RFC 9457).",
    )


PROBLEMS = {f"{name}Problem": _problem(status, codes) for status, (name, _title, codes) in _CODES.items()}
SCHEMAS: dict[str, Schema] = KEYS | EVENTS | SERVER_SENT | UNIONS | OTHERS | PROBLEMS


def problem_title(status: int) -> str:
    """Return the title of the problems of a status."""
    return _CODES[status][1]


def problem_schema(status: int) -> Schema:
    """Return a reference to the schema of the problems of a status."""
    return ref(f"{_CODES[status][0]}Problem")


def problem_codes() -> dict[int, tuple[str, ...]]:
    """Return all codes by their status."""
    return {status: codes for status, (_name, _title, codes) in _CODES.items()}


def needed(document: object) -> Iterator[str]:
    """Yield the names of all schemas that a part of a document refers to, also through other schemas."""
    waiting, seen = [document], set[str]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            name = str(one.get("$ref", "")).rpartition("/")[2]
            if name and name not in seen:
                seen.add(name)
                yield name
                waiting.append(SCHEMAS[name])
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
