"""How settings are written: their variables, flags and sections, their values with units, and likely misspellings."""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal, get_args, get_origin

from .settings import PREFIX, Settings
from .units import number, processes, seconds, show_seconds, show_size, size

# The sections of the settings, here, in the help and in docs/configuration.md, by the first setting of each.
SECTIONS = {
    "etcd": "addresses",
    "allow_prefixes": "access",
    "max_subscribers": "limits",
    "linger": "feeds",
    "heartbeat": "time",
    "epoch": "identity and log",
}
# How the help writes a value, by what parses it.
_FORMS: dict[Any, str] = {seconds: "DURATION", size: "SIZE", number: "N", processes: "{N,auto}"}
# Variables that Kubernetes sets for a Service named 'gateway': GATEWAY_SERVICE_HOST, GATEWAY_PORT_80_TCP_ADDR.
_SERVICE_LINK = re.compile("_SERVICE_(HOST|PORT)|_PORT_[0-9]+_(TCP|UDP|SCTP)")


def text_of(name: str, value: Any) -> str:
    """Return a setting's value as its flag takes it, with a unit: ``256MiB``, and not 268435456. Empty for no value."""
    parsers = _parsers(name)
    if value is None:
        return ""
    if seconds in parsers:
        return show_seconds(value)
    if size in parsers:
        return show_size(value)
    return ",".join(value) if isinstance(value, tuple) else str(value)


def form_of(name: str) -> str:
    """Return how the help writes the value of a setting's flag: its words, or a noun for it."""
    annotation = Settings.model_fields[name].annotation
    if get_origin(annotation) is Literal:
        return f"{{{','.join(get_args(annotation))}}}"
    for parser, form in _FORMS.items():
        if parser in _parsers(name):
            return form
    written = str(annotation)
    return "FILE" if "Path" in written else "LIST" if "tuple" in written else "VALUE"


def _parsers(name: str) -> list[Any]:
    return [getattr(item, "func", None) for item in Settings.model_fields[name].metadata]


def variable_of(name: str) -> str:
    """Return the variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def flag_of(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def likely_meant(variable: str) -> str:
    """Return the variable that an unknown one is probably a misspelling of, or an empty text."""
    if _SERVICE_LINK.search(variable.upper()):
        return ""  # Kubernetes has set GATEWAY_SERVICE_HOST, and nobody has misspelt GATEWAY_HOST
    names = [name.upper() for name in Settings.model_fields]
    near = difflib.get_close_matches(variable.upper().removeprefix(PREFIX), names, 1, 0.75)
    return f"{PREFIX}{near[0]}" if near else ""
