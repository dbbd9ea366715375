"""Lets schemathesis read NDJSON: a hook of its runner (``SCHEMATHESIS_HOOKS``)."""

from __future__ import annotations

import json

import schemathesis


@schemathesis.deserializer("application/x-ndjson")
def events(_context: object, response: schemathesis.Response) -> object:
    """Return the first event. The document describes one event, and each line is one."""
    first, *_others = [json.loads(line) for line in response.content.decode().split("\n") if line]
    return first
