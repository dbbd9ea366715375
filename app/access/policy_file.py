"""The policy file: its form, and how it becomes a ``Policy``.

``docs/schemas/policy.json`` is this form as JSON Schema.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, Field

from ..file_watch import FileError
from .policy import OPERATOR, ROLE_NAME, Binding, Item, Policy, Role, check_pattern, parse_item
from .yaml_file import Entry, load_yaml

# Bytes of the file.
MAX_POLICY_FILE = 1 << 20


def _checked(text: str) -> str:
    parse_item(text)
    return text


def _unmixed(items: list[str]) -> list[str]:
    if len(items) > 1 and any(item in ("", "prefix=") for item in items):
        raise ValueError("an empty prefix among others would permit every key; remove it, or use '' alone")
    return items


RoleName = Annotated[str, Field(pattern=ROLE_NAME)]
ItemText = Annotated[
    str,
    Field(description="a percent-encoded prefix, or key=K; {claim} stands for a whole segment between slashes"),
    AfterValidator(_checked),
]
Items = Annotated[list[ItemText], AfterValidator(_unmixed)]


class RoleEntry(Entry):
    """What a role may read."""

    read: Annotated[Items | None, Field(description="keys and values")] = None
    keys_only: Annotated[Items | None, Field(description="keys and their number, without values")] = None


class BindingEntry(Entry):
    """Which identities have which roles."""

    identity: Annotated[
        str,
        Field(description="token:NAME, jwt:ISSUER#SUBJECT or proxy:NAME; '*' at the end stands for any rest"),
        AfterValidator(check_pattern),
    ]
    roles: list[RoleName]


class PolicyDocument(Entry):
    """The policy file."""

    roles: dict[RoleName, RoleEntry | None]
    bindings: list[BindingEntry] | None = None
    anonymous: Annotated[list[RoleName] | None, Field(description="roles of requests without credentials")] = None


def parse_policy(data: bytes) -> Policy:
    """Parse the policy file. Raises FileError."""
    document = load_yaml(data, PolicyDocument)
    known = {*document.roles, OPERATOR}
    faults = []
    for index, entry in enumerate(document.bindings or []):
        faults += [
            f"bindings[{index}].roles: {name} is not a role of this policy" for name in entry.roles if name not in known
        ]
    faults += [
        f"anonymous: {name} is not a role of this policy" for name in document.anonymous or [] if name not in known
    ]
    if faults:
        raise FileError("\n".join(faults))
    return Policy(
        {name: _role(entry) for name, entry in document.roles.items()},
        tuple(Binding(entry.identity, frozenset(entry.roles)) for entry in document.bindings or []),
        frozenset(document.anonymous or ()),
    )


def _role(entry: RoleEntry | None) -> Role:
    if entry is None:
        return Role()
    return Role(_items(entry.read), _items(entry.keys_only))


def _items(texts: Iterable[str] | None) -> tuple[Item, ...]:
    return tuple(map(parse_item, texts or ()))
