"""The options of a mirror, and what is wrong with them."""

from __future__ import annotations

import difflib
import os
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import httpx

from .changes import Change
from .credentials import Token
from .framing import Format
from .selection import Name
from .tls import File, Trust

if TYPE_CHECKING:
    from .mirror import Mirror


class Options(TypedDict, total=False):
    """The options of a `Mirror`, all optional.

    ``keys``: keys to follow beside the prefixes.
    ``permitted``: follow only the parts of the prefixes that the token may read; ``ranges`` says which.
    ``min_revision``: the mirror is not live before it has reached this revision, such as that of your own write.
    ``latest``: seconds between two changes: of all that happens to a key in between, only the newest comes.
    ``token``: a bearer token; or a ``Path`` or a function that has the present one, and is asked for each connection.
    ``ca``: a file with the certificates to trust, for a gateway with a private authority; or an ``ssl.SSLContext``.
    ``cert``, ``key``: files with the client's own certificate and its key, for a gateway that asks for one.
    ``resume``: a file in which the mirror is kept; the next process starts with it, stale, and resumes.
    ``on_change``: is called with each change. If it is a coroutine function, the next event waits for it: no change is
    lost, and none is merged.
    ``on_state``: is called when ``state``, ``reason`` or ``revision`` has moved.
    ``format``: of the stream: ``ndjson`` or ``sse``, for proxies that buffer everything else.
    ``transport``: of httpx, for tests and for proxies.
    """

    keys: Iterable[Name]
    permitted: bool
    min_revision: int
    latest: float | None
    token: Token | None
    ca: Trust
    cert: File | None
    key: File | None
    resume: str | Path | None
    on_change: Callable[[Change[Any, Any]], Awaitable[None] | None] | None
    on_state: Callable[[Mirror[Any, Any]], None] | None
    format: Format
    transport: httpx.AsyncBaseTransport | None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_FILE = (str, os.PathLike)
# What each option takes. Python accepts every value, and a wrong one would fail later, far from its cause.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "permitted": ("True or False", lambda value: isinstance(value, bool)),
    "min_revision": ("a revision: a whole number, 0 or more", lambda value: isinstance(value, int) and value >= 0),
    "latest": ("the seconds between two changes, 0.05 to 60", lambda value: _is_number(value) and 0.05 <= value <= 60),
    "token": ("text, a Path or a function", lambda value: isinstance(value, (str, Path)) or callable(value)),
    "ca": ("a file or an SSLContext", lambda value: isinstance(value, (*_FILE, ssl.SSLContext))),
    "cert": ("a file", lambda value: isinstance(value, _FILE)),
    "key": ("a file; name keys to follow in keys", lambda value: isinstance(value, _FILE)),
    "resume": ("a file", lambda value: isinstance(value, _FILE)),
    "decode": ("a function", callable),
    "on_change": ("a function", callable),
    "on_state": ("a function", callable),
    "format": ("ndjson or sse", lambda value: value in ("ndjson", "sse")),
    "transport": ("one of httpx", lambda value: isinstance(value, httpx.AsyncBaseTransport)),
    "timeout": ("a number of seconds", _is_number),
}


def check(options: Mapping[str, object], own: Iterable[str] = ()) -> None:
    """Raise TypeError for a name that is not an option, and ValueError for a value. *own*: the caller's own options."""
    known = {"binary", "keys_only", "decode", *Options.__annotations__, *own}
    for name, value in options.items():
        if name not in known:  # Python accepts every name here, and a token that is misspelt would not be sent
            near = difflib.get_close_matches(name, sorted(known), 1)
            msg = f"there is no option {name!r}{f'; did you mean {near[0]!r}?' if near else ''}"
            raise TypeError(msg)
        what, is_fit = _KINDS.get(name, ("", lambda _: True))
        if value is not None and not is_fit(value):
            shown = type(value).__name__ if name == "token" else repr(value)
            msg = f"{name} is {shown}; pass {what}"
            raise ValueError(msg)


def merging(interval: float | None) -> str:
    """Return the parameters of a stream that merges the changes of an interval."""
    return "" if interval is None else f"&mode=latest&interval={round(interval * 1000)}ms"
