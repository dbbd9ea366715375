"""The prefixes in settings: percent-encoded, as in a query."""

from __future__ import annotations

import re

# What JSON, YAML, Python, Go, JavaScript and Helm write for an empty value.
NOTHINGS = frozenset({"null", "~", "none", "nil", "undefined", "<nil>", "<none>", "<no value>", "[]", "{}"})


def wrong_with_prefix(item: str) -> str:
    """Return why a prefix is probably a mistake, or an empty text."""
    if re.search("%(?![0-9a-fA-F]{2})|[\ud800-\udfff]", item):
        return "is not percent-encoded; use the form of a query, like /svc/%ff"
    if re.search(r"[\x00-\x20\x7f]|\s", item):
        return "contains white space or a control character; separate items by commas, and write a space as %20"
    if item.endswith("*"):
        return "ends with '*', which a prefix does not need; remove it, or write %2A if the keys contain a '*'"
    if item.startswith(("[", "{", '"', "'")) or item.lower() in NOTHINGS:
        encoded = f"%{ord(item[0]):X}{item[1:]}"
        return (
            "is not a prefix; separate prefixes by commas, and use '' alone to allow every key; if keys begin with "
            f"this text, write {encoded!r}"
        )
    return ""
