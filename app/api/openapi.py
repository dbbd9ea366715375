"""What /docs says of the endpoints. They read raw query bytes, so FastAPI cannot derive it from signatures."""

from __future__ import annotations

from typing import Any

from .kv import DEFAULT_LIMIT, MAX_LIMIT
from .requests import ENCODINGS
from .watch import FORMATS


def _parameter(name: str, text: str, schema: dict[str, Any], where: str = "query") -> dict[str, Any]:
    return {"name": name, "in": where, "required": False, "description": text, "schema": schema}


_TEXT = {"type": "string"}
_LIMIT = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}
_FLAG = {"type": "integer", "enum": [0, 1]}
_PREFIX = _parameter(
    "prefix", "All keys that start with these percent-decoded bytes; present and empty: all keys.", _TEXT
)
_KEY = _parameter("key", "One key, as percent-decoded bytes. Either this or prefix.", _TEXT)
_ENCODING = _parameter(
    "encoding",
    "auto: text where it is valid UTF-8, else base64. base64: always.",
    {"type": "string", "enum": [*ENCODINGS], "default": "auto"},
)
_PROBLEM = {
    "description": "A problem (RFC 9457) with a machine word in `code`.",
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
            _parameter("limit", "Items a page.", _LIMIT),
            _parameter("page", "`next_page` of the page before.", _TEXT),
            _parameter("keys_only", "Leave the values out.", _FLAG),
            _parameter("count_only", "Only count.", _FLAG),
            _ENCODING,
        ]
    },
    "responses": _responses(
        "`{revision, cursor, kvs, count, next_page?}`, or `{revision, cursor, kv}` for a key.",
        ["application/json"],
        400, 401, 403, 404, 410, 429, 502, 503,
    ),
}  # fmt: skip

WATCH: dict[str, Any] = {
    "summary": "Get and watch, as Server-Sent Events or NDJSON",
    "openapi_extra": {
        "parameters": [
            _KEY,
            _PREFIX,
            _parameter("snapshot", "0: only changes, no state at the start.", _FLAG),
            _ENCODING,
            _parameter("format", "Beats the Accept header.", {"type": "string", "enum": [*FORMATS]}),
            _parameter("last_event_id", "A cursor to resume at.", _TEXT),
            _parameter("lastEventId", "The same, as EventSource polyfills name it; beats last_event_id.", _TEXT),
            _parameter("Last-Event-ID", "The same; beats both.", _TEXT, "header"),
        ]
    },
    "responses": _responses(
        "Events reset, put, delete, synced, bookmark, status, close.",
        ["text/event-stream", "application/x-ndjson"],
        400, 401, 403, 429, 503,
    ),
}  # fmt: skip

FEEDS: dict[str, Any] = {
    "summary": "The live shared watches of this instance",
    "openapi_extra": {"parameters": [_PREFIX, _KEY]},
    "responses": _responses("Feeds; with a range also its subscribers.", ["application/json"], 400, 401, 403),
}
