"""The weak ``ETag`` of a list or a key, and the precondition ``If-None-Match`` (RFC 9110, section 13.1.2).

An ``ETag`` names the state of a selection by three values: the epoch, the greatest ``mod_revision``, and the number of
keys. A put raises the greatest ``mod_revision``. A delete does not, but lowers the number of keys. So within one
history, two states of a selection have the same ``ETag`` exactly if they are equal. All replicas make equal ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice

# An entity tag in a list of them. A weak comparison ignores the ``W/``.
_ENTITY_TAG = re.compile(r'(?:W/)?"([^"\x00-\x20\x7f]*)"')
# Tags of an ``If-None-Match`` that count. The gateway keeps them as long as it holds the request.
MOST_TAGS = 32
_OWN = re.compile(r"([0-9a-f]{8})-(0|[1-9][0-9]{0,18})-(0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class ETag:
    """See the module. *newest*: the greatest ``mod_revision``, 0 if there is no key."""

    epoch: str
    newest: int
    count: int

    @property
    def opaque(self) -> str:
        """The text that a comparison looks at."""
        return f"{self.epoch}-{self.newest}-{self.count}"

    def __str__(self) -> str:
        """The value of the header."""
        return f'W/"{self.opaque}"'


def parse_etag(header: str) -> ETag | None:
    """Return the entity tag that a gateway sent, or None if *header* has none of ours."""
    found = _ENTITY_TAG.fullmatch(header)
    own = _OWN.fullmatch(found[1]) if found else None
    return ETag(own[1], int(own[2]), int(own[3])) if own else None


class IfNoneMatch:
    """A parsed ``If-None-Match``. A part that is not an entity tag of a gateway matches nothing.

    Of those that could match, the first MOST_TAGS are kept: a client may send 64 KiB of them, and have thousands of
    requests held.
    """

    __slots__ = ("_any", "_tags")

    def __init__(self, header: str) -> None:
        self._any = header.strip() == "*"
        own = filter(_OWN.fullmatch, _ENTITY_TAG.findall(header))
        self._tags = frozenset(islice(own, MOST_TAGS))

    def matches(self, tag: ETag, *, exists: bool = True) -> bool:
        """Whether the client has the state that *tag* names. *exists*: False for the state "this key is absent"."""
        return (self._any and exists) or tag.opaque in self._tags

    def newest(self, epoch: str) -> int:
        """Return the greatest ``mod_revision`` that the client has seen in states of *epoch*; 0 if there is none."""
        found = [_OWN.fullmatch(tag) for tag in self._tags]
        return max((int(match[2]) for match in found if match and match[1] == epoch), default=0)
