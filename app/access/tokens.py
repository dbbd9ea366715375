"""The tokens file: bearer tokens by their SHA-256, each with a name, roles and perhaps an expiry.

The file holds hashes, so whoever reads it cannot send a token. Two entries may have the same name: so a token is
rotated while its old and its new value are both accepted.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Annotated

from pydantic import AfterValidator, Field

from ..core.timestamps import LAST_MOMENT
from ..file_watch import FileError
from .identity import Identity, make_identity
from .policy import ROLE_NAME
from .yaml_file import Entry, load_yaml

# Bytes of the file: about 35,000 tokens.
MAX_TOKENS_FILE = 4 << 20
# Random bytes of a new token.
TOKEN_BYTES = 32
_SHA256 = re.compile("[0-9a-fA-F]{64}")
# The hash of nothing: an operator has hashed an empty variable.
_NOTHING = sha256(b"").hexdigest()


def _hash(text: str) -> str:
    # Pydantic's text for a pattern shows the pattern. Somebody has written the token itself, or half of a hash.
    if _SHA256.fullmatch(text) is None:
        raise ValueError("must be 64 hex digits, the SHA-256 of the token; `etcd-watch-gateway token` prints both")
    if text.lower() == _NOTHING:
        raise ValueError("is the hash of an empty text; hash the token itself")
    return text.lower()


def _moment(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("is not a time; use the form 2027-01-01T00:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError("has no time zone; use the form 2027-01-01T00:00:00Z")
    return text


def _seconds(moment: str) -> float:
    """Return a moment in seconds since 1970. What cannot be written in UTC, like the end of 9999 in New York, is the
    end of 9999.
    """
    return min(datetime.fromisoformat(moment).timestamp(), LAST_MOMENT)


class TokenEntry(Entry):
    """One token."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@:/+-]{1,128}$", description="the identity is token:NAME")]
    sha256: Annotated[
        str,
        Field(description="SHA-256 of the token's bytes, in hex", json_schema_extra={"pattern": "^[0-9a-fA-F]{64}$"}),
        AfterValidator(_hash),
    ]
    roles: Annotated[list[Annotated[str, Field(pattern=ROLE_NAME)]] | None, Field(description="roles of the token")] = (
        None
    )
    expires: Annotated[
        Annotated[str, AfterValidator(_moment)] | None,
        Field(description="time at which the token expires, like 2027-01-01T00:00:00Z; without it, never"),
    ] = None


class TokensDocument(Entry):
    """The tokens file."""

    tokens: list[TokenEntry] | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """The identities of the tokens, by the tokens' SHA-256."""

    identities: Mapping[bytes, Identity]

    def find(self, token: bytes) -> Identity | None:
        """Return the identity of a token, also if the token has expired; None if the file does not have the token."""
        return self.identities.get(sha256(token).digest())


def parse_tokens(data: bytes) -> Tokens:
    """Parse the tokens file. Raises FileError."""
    found: dict[bytes, Identity] = {}
    for index, entry in enumerate(load_yaml(data, TokensDocument).tokens or []):
        digest = bytes.fromhex(entry.sha256)
        if digest in found:
            raise FileError(f"tokens[{index}].sha256: appears twice; each token belongs to one entry")
        found[digest] = make_identity(
            "token",
            entry.name,
            roles=frozenset(entry.roles or ()),
            expires=_seconds(entry.expires) if entry.expires else None,
            credential=digest,
        )
    return Tokens(found)


def make_token() -> tuple[str, str]:
    """Return a new token and its SHA-256 in hex."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    return token, sha256(token.encode()).hexdigest()
