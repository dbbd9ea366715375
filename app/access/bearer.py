"""Bearer tokens: the static token, the tokens file and JWTs, in this order."""

from __future__ import annotations

from typing import Protocol

from ..core.errors import UnauthorizedError
from ..file_watch import WatchedFile
from ..ports import Clock
from .identity import STATIC_TOKEN, Identity
from .token import Token
from .tokens import Tokens

# RFC 6750, section 3.1. A request without credentials gets the scheme alone.
INVALID_TOKEN = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
INSUFFICIENT_SCOPE = {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}


class InvalidTokenError(Exception):
    """A token is not acceptable. The message says why, and does not contain the token."""


class Verifier(Protocol):
    """Verifies tokens that the gateway does not know beforehand: JWTs."""

    async def identity_of(self, token: bytes) -> Identity:
        """Return the identity that a token proves. Raises InvalidTokenError, or IssuerUnavailableError."""

    def trusts(self, thumbprint: str) -> bool:
        """Whether the key with this thumbprint is one of the keys that tokens may be signed with now."""


def token_in(authorization: bytes) -> bytes | None:
    """Return the token in an ``Authorization`` header; None if the header has no bearer token.

    HTTP allows only spaces and tabs around the token: 0xA0 is a part of the token.
    """
    scheme, _, given = authorization.partition(b" ")
    return given.strip(b" \t") if scheme.lower() == b"bearer" else None


class Bearer:
    """The ways in which a bearer token can be known. Each may be None."""

    def __init__(
        self,
        token: Token | None = None,
        tokens: WatchedFile[Tokens] | None = None,
        jwt: Verifier | None = None,
        *,
        wall: Clock,
    ) -> None:
        self.token = token
        self.tokens = tokens
        self._jwt = jwt
        self.wall = wall

    async def identity_of(self, authorization: bytes) -> Identity:
        """Return the identity of the token in an ``Authorization`` header.

        Raises:
            UnauthorizedError: no mode accepts the token.
            IssuerUnavailableError: the issuer's keys could not be fetched yet.
        """
        given = token_in(authorization)
        if not given:
            raise UnauthorizedError(
                "the Authorization header has no bearer token; send 'Authorization: Bearer <token>'"
            )
        if self.token is not None and self.token.matches(given):
            return STATIC_TOKEN
        listed = self.tokens.value.find(given) if self.tokens is not None else None
        if listed is not None:
            if listed.expired(self.wall()):
                raise UnauthorizedError("the bearer token has expired; get a new token")
            return listed
        # A JWT has two dots. The tokens that the gateway makes have none.
        if self._jwt is None or given.count(b".") != 2:
            raise UnauthorizedError(
                "the bearer token is wrong; send 'Authorization: Bearer <token>' with a valid token"
            )
        try:
            return await self._jwt.identity_of(given)
        except InvalidTokenError as error:
            raise UnauthorizedError(f"the bearer token is not accepted: {error}; get a new token") from None

    def current(self, identity: Identity) -> Identity | None:
        """Return the identity as it is after the files have changed; None if its token would be refused now.

        A token must still be listed in the tokens file, the key of a JWT must still be one of the issuer's keys, and
        the static token of a session must still be the same. All other identities are returned as they are.
        """
        if identity.every_role:
            known = not identity.credential or (self.token is not None and self.token.digest == identity.credential)
            return identity if known else None
        if identity.credential:
            return self.tokens.value.identities.get(identity.credential) if self.tokens is not None else None
        if identity.signed_by and not (self._jwt is not None and self._jwt.trusts(identity.signed_by)):
            return None
        return identity
