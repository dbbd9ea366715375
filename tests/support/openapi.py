"""The gateway's OpenAPI document as tests use it: whether an answer is one that the document describes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

Document = dict[str, Any]


def strict(document: Document) -> Document:
    """The document with schemas that forbid further members: a member that no schema names is then a fault."""
    found = copy.deepcopy(document)
    for schema in found["components"]["schemas"].values():
        _close(schema)
    return found


def _close(schema: Any) -> None:
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for inner in schema.values():
            _close(inner)
    elif isinstance(schema, list):
        for inner in schema:
            _close(inner)


class Answers:
    """Compares answers with a document."""

    def __init__(self, document: Document) -> None:
        self._document = strict(document)
        self._validators: dict[str, Draft202012Validator] = {}

    def faults(self, schema: dict[str, Any], value: object) -> list[str]:
        """What is wrong with a value."""
        name = json.dumps(schema)
        validator = self._validators.get(name)
        if validator is None:
            whole = schema | {"components": self._document["components"]}
            validator = self._validators[name] = Draft202012Validator(whole)
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]

    def event_faults(self, event: dict[str, Any]) -> list[str]:
        """What is wrong with an event of a stream."""
        name = f"{event.get('type', '').capitalize()}Event"
        if name not in self._document["components"]["schemas"]:
            return [f"no event: {event}"]
        return self.faults({"$ref": f"#/components/schemas/{name}"}, event)

    def described(self, path: str, status: int) -> dict[str, Any] | None:
        """The description of a path's answer of this status."""
        found: dict[str, Any] | None = self._document["paths"][path]["get"]["responses"].get(str(status))
        return found

    def answer_faults(self, path: str, status: int, content_type: str | None, body: bytes) -> list[str]:
        """What is wrong with an answer that is not a stream."""
        described = self.described(path, status)
        if described is None:
            return [f"{path}: {status} is not described"]
        content = described.get("content", {})
        if not content:
            return [f"{path}: {status} has a body"] if body else []
        if content_type not in content:
            return [f"{path}: {status} has the type {content_type}, not {list(content)}"]
        if content_type is None or "json" not in content_type:
            return []
        return self.faults(content[content_type]["schema"], json.loads(body))


def operations(document: Document) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every path with its GET."""
    for path, methods in document["paths"].items():
        assert list(methods) == ["get"], path
        yield path, methods["get"]
