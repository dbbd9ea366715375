"""The examples of the OpenAPI document. The summary of each is the request, or the moment, that has this answer.

``tests/api/test_examples.py`` sends the requests and compares, so no example is from another version.
"""

from __future__ import annotations

from typing import Any

from ..core.encoding import compact

Examples = dict[str, dict[str, Any]]

_API_0 = {"key": "/svc/api-0", "value": "10.0.0.9:80", "create_revision": 2, "mod_revision": 4, "version": 2}
_API_1 = {"key": "/svc/api-1", "value": "10.0.0.8:80", "create_revision": 3, "mod_revision": 3, "version": 1}
_MASK = {
    "key": "/flags/mask",
    "value": "/wA=",
    "encoding": "base64",
    "create_revision": 5,
    "mod_revision": 5,
    "version": 1,
}


def _example(summary: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "value": value}


KV: Examples = {
    "list": _example(
        "GET /v1/kv?prefix=/svc/", {"revision": 5, "cursor": "7421360a-5", "kvs": [_API_0, _API_1], "count": 2}
    ),
    "key": _example("GET /v1/kv?key=/svc/api-0", {"revision": 5, "cursor": "93370398-5", "kv": _API_0}),
    "page": _example(
        "GET /v1/kv?prefix=/svc/&limit=1&keys_only=1",
        {
            "revision": 5,
            "cursor": "0a33caac-5",
            "kvs": [{name: value for name, value in _API_0.items() if name != "value"}],
            "count": 2,
            "next_page": "MGEzM2NhYWMtNS0vc3ZjL2FwaS0wAA",
        },
    ),
    "ranges": _example(
        "GET /v1/kv?prefix=/svc/&key=/flags/mask",
        {"revision": 5, "cursor": "e6813b8f-5", "kvs": [_MASK, _API_0, _API_1], "count": 3},
    ),
    "count": _example(
        "GET /v1/kv?prefix=/svc/&count_only=1", {"revision": 5, "cursor": "4bcad514-5", "kvs": [], "count": 2}
    ),
}

# As in NDJSON.
EVENTS: Examples = {
    "reset": _example(
        "the first event",
        {
            "type": "reset",
            "reason": "initial",
            "ranges": ["prefix=/svc/"],
            "cluster_id": "c1d0",
            "cursor": "7421360a-0",
        },
    ),
    "item": _example("an item of the state", {"type": "put", **_API_0}),
    "synced": _example(
        "the state is complete", {"type": "synced", "revision": 5, "heartbeat": 15, "cursor": "7421360a-5"}
    ),
    "put": _example(
        "the first change of a transaction",
        {
            "type": "put",
            "key": "/svc/api-2",
            "value": "10.0.0.3:80",
            "create_revision": 6,
            "mod_revision": 6,
            "version": 1,
            "more": True,
        },
    ),
    "delete": _example(
        "the last change of a transaction",
        {"type": "delete", "key": "/svc/api-1", "mod_revision": 6, "cursor": "7421360a-6"},
    ),
    "bookmark": _example(
        "every heartbeat", {"type": "bookmark", "revision": 6, "state": "live", "cursor": "7421360a-6"}
    ),
    "status": _example(
        "etcd has proven nothing since then",
        {"type": "status", "state": "stale", "since": "2026-01-01T00:00:00Z", "age": 10, "ranges": ["prefix=/svc/"]},
    ),
    "close": _example("this instance stops", {"type": "close", "reason": "drain", "retry_ms": 3000}),
}


def _server_sent(event: dict[str, Any]) -> dict[str, Any]:
    data = {name: value for name, value in event.items() if name != "cursor"}
    return {"event": event["type"], "data": compact(data)} | ({"id": event["cursor"]} if "cursor" in event else {})


SSE_EVENTS: Examples = {name: one | {"value": _server_sent(one["value"])} for name, one in EVENTS.items()}

ACCESS: Examples = {
    "token": _example(
        "GET /v1/access",
        {
            "identity": "token:dash",
            "roles": ["reader"],
            "read": ["prefix=/svc/"],
            "keys_only": ["prefix=/audit/"],
            "expires": "2999-01-01T00:00:00Z",
        },
    )
}
LIVEZ: Examples = {"ok": _example("GET /livez", {"status": "ok"})}


def _problem(request: str, code: str, title: str, status: int, detail: str, **more: str) -> Examples:
    value = {"type": f"urn:etcd-watch-gateway:problem:{code}", "title": title, "status": status, "code": code}
    return {code: _example(request, value | {"detail": detail, **more})}


PROBLEMS: dict[int, Examples] = {
    400: _problem(
        "GET /v1/kv?key=",
        "invalid-parameter",
        "Bad request",
        400,
        "'key' is empty, and etcd has no empty key; for all keys use an empty 'prefix='",
        parameter="key",
    ),
    401: _problem(
        "GET /v1/access",
        "unauthorized",
        "Unauthorized",
        401,
        "the request has no credentials; send the header 'Authorization: Bearer <token>'",
    ),
    403: _problem(
        "GET /v1/kv?prefix=/secret/",
        "forbidden",
        "Forbidden",
        403,
        "prefix=/secret/ is outside the prefixes that this gateway serves; GET /v1/access lists what may be read",
        parameter="prefix",
    ),
    404: _problem("GET /v1/kv?key=/svc/none", "key-not-found", "Not found", 404, "no key=/svc/none at revision 5"),
    410: _problem(
        "GET /v1/kv?prefix=/svc/&page=MDAwMDAwMDAtNS0vc3ZjL2FwaS0wAA",
        "page-expired",
        "Page expired",
        410,
        "the token in 'page' is from another cluster or another request; start over without 'page'",
        parameter="page",
    ),
    501: _problem(
        "GET /v1/watch?prefix=/svc/&key=/flags/mask",
        "ranges-need-pin",
        "Not supported by this etcd",
        501,
        "several ranges on one stream need etcd 3.4.25, 3.5.8 or later, and this etcd is 3.5.1: follow each range on "
        "its own stream, or ask the operator to pin a prefix that has all of them (GATEWAY_PIN), or to state the "
        "version if etcd keeps it secret (GATEWAY_ETCD_VERSION)",
    ),
    504: _problem(
        "GET /v1/kv?key=/svc/api-0&min_revision=99",
        "revision-not-reached",
        "Revision not reached",
        504,
        "'min_revision' is 99, and the answer has reached 5: retry later; if it never comes, the revision is not of "
        "this etcd",
        parameter="min_revision",
    ),
}
