"""The policy: identities have roles, and roles may read ranges. Everything that no role permits is denied.

Must live here: the decision, as pure functions of values. Must not: files, clocks, requests.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote_to_bytes

from ..core.keys import KeyRange, Kind
from ..core.query import MAX_KEY_BYTES
from ..core.selection import Ranges, canonical
from .identity import ANONYMOUS, Identity

# The role that may read /metrics and /v1/feeds. It is known without being listed in the policy.
OPERATOR = "operator"
# The most bytes of a claim that fills a placeholder.
MAX_CLAIM = 256
ROLE_NAME = r"^[A-Za-z0-9._:/@+-]{1,128}$"

_PLACEHOLDER = re.compile(r"\{([^{}%\s]+)\}")
_BROKEN_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
# A token's name is ASCII. A proxy's user is any printable text, without spaces around it, as in a header.
_PATTERN = re.compile(r"token:[!-)+-~]*\*?|proxy:(?! )[^*]*(\*|(?<! ))|jwt:\*|jwt:[!\"$-)+-~]+#[^*]*\*?")


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A place in an item that a claim of the identity fills."""

    claim: str


@dataclass(frozen=True, slots=True)
class Item:
    """One range that a role permits: a prefix or a key, with placeholders."""

    kind: Kind
    parts: tuple[bytes | Placeholder, ...]

    def range_for(self, identity: Identity) -> KeyRange | None:
        """Return the range for *identity*. None if a placeholder's claim is missing, or may not fill the placeholder.

        Then the item permits nothing.
        """
        name = b""
        for part in self.parts:
            if isinstance(part, Placeholder):
                segment = segment_of(identity.claim(part.claim) or "")
                if segment is None:
                    return None
                name += segment
            else:
                name += part
        return KeyRange(self.kind, name)


@dataclass(frozen=True, slots=True)
class Role:
    """What a role may read: whole items, or their keys alone."""

    read: tuple[Item, ...] = ()
    keys_only: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True)
class Binding:
    """Gives roles to an identity, or to all identities whose names begin with the text before ``*``."""

    identity: str
    roles: frozenset[str]

    def binds(self, name: str) -> bool:
        """Whether the binding is for the identity of this name."""
        if self.identity.endswith("*"):
            return name.startswith(self.identity[:-1])
        return name == self.identity


@dataclass(frozen=True, slots=True)
class Grants:
    """The ranges that an identity may read, and those of which it may read the keys alone."""

    read: tuple[KeyRange, ...] = ()
    keys_only: tuple[KeyRange, ...] = ()

    def permit(self, asked: KeyRange, *, keys_only: bool) -> bool:
        """Whether one of the granted ranges contains all of *asked*."""
        granted = (*self.read, *self.keys_only) if keys_only else self.read
        return any(one.covers(asked) for one in granted)

    def permitted(self, asked: Iterable[KeyRange], *, keys_only: bool) -> Ranges:
        """Return the parts of *asked* that the grants permit, as canonical ranges: ``scope=permitted``."""
        granted = (*self.read, *self.keys_only) if keys_only else self.read
        return canonical(_intersection(asked, granted))

    def within(self, fence: Sequence[bytes]) -> Grants:
        """Return what is left of the grants inside the prefixes of *fence*."""
        served = [KeyRange("prefix", prefix) for prefix in fence]
        return Grants(_intersection(self.read, served), _intersection(self.keys_only, served))


@dataclass(frozen=True)
class Policy:
    """A policy. ``anonymous`` has the roles of requests without credentials."""

    roles: Mapping[str, Role]
    bindings: tuple[Binding, ...] = ()
    anonymous: frozenset[str] = frozenset()

    def roles_of(self, identity: Identity) -> frozenset[str]:
        """Return the roles that *identity* has by its credentials and by the bindings."""
        if identity.every_role:
            return frozenset({*self.roles, OPERATOR})
        patterns, names = self._bound
        bound = [binding.roles for binding in patterns if binding.binds(identity.name)]
        return identity.roles.union(
            *bound, names.get(identity.name, ()), self.anonymous if identity == ANONYMOUS else ()
        )

    @cached_property
    def _bound(self) -> tuple[list[Binding], dict[str, frozenset[str]]]:
        """The bindings with ``*``, and the roles of those without, by name: a policy may bind thousands of names."""
        names: dict[str, frozenset[str]] = {}
        for binding in self.bindings:
            if not binding.identity.endswith("*"):
                names[binding.identity] = names.get(binding.identity, frozenset()) | binding.roles
        return [binding for binding in self.bindings if binding.identity.endswith("*")], names

    def grants(self, identity: Identity) -> Grants:
        """Return what *identity* may read."""
        return _granted([self.roles[name] for name in sorted(self.roles_of(identity)) if name in self.roles], identity)

    def deciding(self, identity: Identity, ranges: Sequence[KeyRange], *, keys_only: bool = False) -> list[str]:
        """Return the roles by which *identity* may read *ranges*: for each range, the first one that permits it."""
        roles = [name for name in sorted(self.roles_of(identity)) if name in self.roles]
        granted = {name: _granted([self.roles[name]], identity) for name in roles}
        found = (
            next((name for name in roles if granted[name].permit(asked, keys_only=keys_only)), None) for asked in ranges
        )
        return list(dict.fromkeys(name for name in found if name is not None))

    def permits(self, identity: Identity, ranges: Sequence[KeyRange], *, keys_only: bool = False) -> bool:
        """Whether *identity* may read every one of *ranges*; with *keys_only*, their keys. No range is not a read."""
        grants = self.grants(identity)
        return bool(ranges) and all(grants.permit(asked, keys_only=keys_only) for asked in ranges)


def segment_of(value: str) -> bytes | None:
    """Return the bytes of a claim that may fill a placeholder, unchanged; None if it may not.

    The claim must be one segment of a key: a slash, ``..`` or an empty claim would lead into another identity's keys.
    """
    try:
        segment = value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        return None
    if not segment or segment in (b".", b"..") or len(segment) > MAX_CLAIM or b"/" in segment:
        return None
    return None if any(unicodedata.category(character) == "Cc" for character in value) else segment


def parse_item(text: str) -> Item:
    """Parse an item of a role: a percent-encoded prefix, ``prefix=P``, or ``key=K``.

    Raises:
        ValueError: the text is not an item; the message says why, without the name of the role.
    """
    kind: Kind = "key" if text.startswith("key=") else "prefix"
    encoded = text.removeprefix(f"{kind}=")
    if _BROKEN_ESCAPE.search(encoded):
        raise ValueError(f"{text!r} has a '%' without two hex digits after it; write a percent sign as '%25'")
    if re.search(r"[\x00-\x20\x7f]|\s", encoded):
        raise ValueError(f"{text!r} contains white space or a control character; write a space as %20")
    if encoded.endswith("*"):
        raise ValueError(f"{text!r} ends with '*', which a prefix does not need; remove it, or write %2A")
    if kind == "key" and not encoded:
        raise ValueError("'key=' names no key; etcd has no empty key")
    parts: list[bytes | Placeholder] = []
    for index, part in enumerate(_PLACEHOLDER.split(encoded)):
        if index % 2:
            parts.append(Placeholder(part))
        elif "{" in part or "}" in part:
            raise ValueError(f"{text!r} has a brace that is not a placeholder like {{sub}}; write %7B for '{{'")
        else:
            parts.append(unquote_to_bytes(part))
    if not _whole_segments(kind, parts):
        raise ValueError(
            f"{text!r}: a placeholder must be a whole segment between '/', and a prefix needs a '/' after it, like "
            "/tenants/{sub}/"
        )
    item = Item(kind, tuple(part for part in parts if part != b""))
    if sum(len(part) for part in item.parts if isinstance(part, bytes)) > MAX_KEY_BYTES:
        raise ValueError(f"has more than {MAX_KEY_BYTES} bytes")
    return item


def _whole_segments(kind: Kind, parts: Sequence[bytes | Placeholder]) -> bool:
    """Whether each placeholder is alone between slashes. ``{sub}`` at the end would give ``ab`` to ``a``."""
    last = len(parts) - 1
    for index in range(1, last, 2):
        before, after = parts[index - 1], parts[index + 1]
        assert isinstance(before, bytes), "texts and placeholders alternate"
        assert isinstance(after, bytes), "texts and placeholders alternate"
        begins = before.endswith(b"/") or (index == 1 and not before)
        ends = after.startswith(b"/") or (kind == "key" and index + 1 == last and not after)
        if not begins or not ends:
            return False
    return True


def check_pattern(text: str) -> str:
    """Return *text* if it can name identities in a binding. Raises ValueError if it cannot.

    ``*`` may be only at the end, and not in a JWT's issuer: ``jwt:https://id.example*`` would also match the issuer
    ``https://id.example.evil``.
    """
    if _PATTERN.fullmatch(text) is None or not text.isprintable():
        raise ValueError(
            f"{text!r} does not name identities; use token:NAME, proxy:NAME or jwt:ISSUER#SUBJECT, with '*' only at "
            "the end and not within the issuer"
        )
    return text


def _granted(roles: Sequence[Role], identity: Identity) -> Grants:
    return Grants(
        _ranges((item for role in roles for item in role.read), identity),
        _ranges((item for role in roles for item in role.keys_only), identity),
    )


def _ranges(items: Iterable[Item], identity: Identity) -> tuple[KeyRange, ...]:
    found = (item.range_for(identity) for item in items)
    return tuple(dict.fromkeys(one for one in found if one is not None))


def _intersection(ranges: Iterable[KeyRange], others: Sequence[KeyRange]) -> tuple[KeyRange, ...]:
    """Return the ranges of all keys that lie in *ranges* and in *others*. Of two ranges, one covers the other, or they
    have no key in common.
    """
    left: dict[KeyRange, None] = {}
    for one in ranges:
        for other in others:
            if other.covers(one):
                left[one] = None
            elif one.covers(other):
                left[other] = None
    return tuple(left)
