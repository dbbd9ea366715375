"""What a client asks for: prefixes and keys, as bytes. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

Name = str | bytes


def to_bytes(name: Name) -> bytes:
    """Return a key as etcd has it. Text that came from bytes that are not UTF-8 becomes these bytes again."""
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")


def to_text(name: bytes) -> str:
    """Return bytes as text. Bytes that are not UTF-8 become surrogates, as in Python's file names."""
    return name.decode("utf-8", "surrogateescape")


def base_url(url: str) -> str:
    """Return a gateway's URL without a slash at its end, or raise ValueError with what is wrong."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isprintable()
        if whole and " " not in url and not parts.query and not parts.fragment:
            return url.rstrip("/")
    except (ValueError, TypeError, AttributeError):  # brackets that are not around an address, a wrong port, not text
        pass
    msg = f"{url!r} is not the URL of a gateway; write http://HOST:PORT or https://HOST, with a path if it has one"
    raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Selection:
    """The prefixes and keys of one request. The empty prefix means all keys."""

    prefixes: tuple[bytes, ...]
    keys: tuple[bytes, ...] = ()
    keys_only: bool = False
    permitted: bool = False  # only the parts that the client may read

    @classmethod
    def of(
        cls, prefixes: Iterable[Name], keys: Iterable[Name] = (), *, keys_only: bool = False, permitted: bool = False
    ) -> Selection:
        """Return the selection, or raise ValueError if nothing is selected, or what is not a name."""
        given = tuple(prefixes)
        named = tuple(keys) if isinstance(keys, Iterable) and not isinstance(keys, (str, bytes)) else (keys,)
        for name in given + named:
            if not isinstance(name, (str, bytes)):
                msg = f"{name!r} is not a prefix or a key; pass text or bytes, each prefix as an argument of its own"
                raise ValueError(msg)
        selection = cls(tuple(map(to_bytes, given)), tuple(map(to_bytes, named)), keys_only, permitted)
        if not selection.prefixes and not selection.keys:
            msg = 'nothing is selected: name a prefix or a key; the prefix "" means all keys'
            raise ValueError(msg)
        if b"" in selection.keys:
            msg = "a key must not be empty"
            raise ValueError(msg)
        return selection

    @property
    def query(self) -> str:
        """The parameters of a request."""
        parts = [f"prefix={quote(name, safe='')}" for name in self.prefixes]
        parts += [f"key={quote(name, safe='')}" for name in self.keys]
        parts += ["keys_only=1"] if self.keys_only else []
        return "&".join([*parts, *(["scope=permitted"] if self.permitted else [])])
