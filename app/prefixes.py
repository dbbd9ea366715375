"""The texts and the prefixes in settings: what is probably a mistake. Prefixes are percent-encoded, as in a query."""

from __future__ import annotations

import re
from typing import Any

# What JSON, YAML, Python, Go, JavaScript and Helm write for an empty value.
NOTHINGS = frozenset({"null", "~", "none", "nil", "undefined", "<nil>", "<none>", "<no value>", "[]", "{}"})

# Control characters, and surrogates: Python decodes bytes of the environment that are not UTF-8 to surrogates.
_NOT_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def plain_text(value: Any) -> Any:
    """Check text that goes into headers, cursors, logs and requests to etcd. Invisible characters are a mistake."""
    if not isinstance(value, str):
        return value
    if _NOT_TEXT.search(value):
        msg = "must not contain control characters or bytes that are not UTF-8"
        raise ValueError(msg)
    if value != value.strip():
        msg = "must not begin or end with white space"
        raise ValueError(msg)
    if not value.isprintable():
        msg = "must not contain invisible characters, like a byte order mark"
        raise ValueError(msg)
    if value.startswith(("'", '"')):
        msg = "must not begin with a quotation mark; leave the quotation marks out, as no shell removes them here"
        raise ValueError(msg)
    if value.lower() in NOTHINGS:
        msg = "is what a template writes for a missing value; leave the setting out"
        raise ValueError(msg)
    return value


def wrong_with_prefix(item: str) -> str:
    """Return why a prefix is probably a mistake, or an empty text."""
    if re.search("%(?![0-9a-fA-F]{2})|[\ud800-\udfff]", item):
        return "is not percent-encoded; use the form of a query, like /svc/%ff"
    if re.search(r"[\x00-\x20\x7f]|\s", item):
        return "contains white space or a control character; separate items by commas, and write a space as %20"
    if not item.isprintable():
        return "contains an invisible character, like a byte order mark; if keys contain it, percent-encode its bytes"
    if item.endswith("*"):
        return "ends with '*', which a prefix does not need; remove it, or write %2A if the keys contain a '*'"
    if item.startswith(("[", "{", '"', "'")) or item.lower() in NOTHINGS:
        encoded = f"%{ord(item[0]):X}{item[1:]}"
        return (
            "is not a prefix; separate prefixes by commas, and use '' alone to allow every key; if keys begin with "
            f"this text, write {encoded!r}"
        )
    return ""
