"""JWTs as bearer tokens: signed by the issuer's keys, for this gateway's audience, not expired (RFC 9068, RFC 8725).

joserfc verifies signatures and claims (docs/decisions/0017). This file decides which key and which algorithm a token
may use: never what the token itself brings (``jwk``, ``jku``, ``x5u``, ``x5c`` are ignored).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, InvalidClaimError, MissingClaimError
from joserfc.jwk import Key, OctKey
from joserfc.jws import JWSRegistry
from joserfc.jwt import JWTClaimsRegistry

from ..core.errors import IssuerUnavailableError
from ..core.timestamps import LAST_MOMENT
from ..file_watch import FileError, WatchedFile
from ..ports import Clock
from .bearer import InvalidTokenError
from .identity import Identity, is_name, make_identity
from .jwks import Jwks
from .lru_cache import LruCache
from .policy import ROLE_NAME

# Seconds by which the issuer's clock and ours may differ.
LEEWAY = 30
# Bytes of a token. The whole head of a request may have 64 KiB.
MAX_JWT = 32 << 10
# Bytes of the secret for HS256. HS384 and HS512 need 48 and 64 (RFC 7518, section 3.2).
LEAST_SECRET = 32
MAX_SECRET = 4096
# Explicit types of JWTs that are access tokens (RFC 9068), or do not say what they are. A logout token, for example,
# is signed by the same keys.
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_ROLE = re.compile(ROLE_NAME)


@dataclass(frozen=True, slots=True)
class JwtSettings:
    """The settings ``GATEWAY_JWT_*`` that a token is compared with."""

    issuer: str
    audience: tuple[str, ...]
    algorithms: tuple[str, ...]
    roles_claim: str


class UnknownKeyError(Exception):
    """The token names a key that the gateway does not have."""


class _Registry(JWSRegistry):
    """The accepted algorithms. The size of the whole token is already bounded."""

    max_header_length = max_payload_length = MAX_JWT

    def __init__(self, algorithms: tuple[str, ...]) -> None:
        # A header that is not registered, like Entra's `nonce`, is ignored (RFC 7515, section 4).
        super().__init__(algorithms=algorithms, strict_check_header=False)

    def get_alg(self, name: str) -> Any:
        """Return an accepted algorithm. joserfc would warn about ``EdDSA``, a name that RFC 9864 replaces."""
        if not isinstance(name, str) or name not in (self.allowed or ()):
            raise InvalidTokenError("its algorithm is not accepted")
        return self.algorithms[name]


def parse_secret(data: bytes) -> bytes:
    """Return the secret in a file. Raises FileError if the content is a public key, or too short to be a secret."""
    secret = data.strip(b" \t\r\n\v\f")
    if secret.startswith((b"-----BEGIN", b"ssh-", b"ecdsa-", b"{")):
        # The classic attack signs with HS256 and the public key, which everybody knows.
        raise FileError("holds a key of another kind, not a secret")
    if secret.startswith(codecs.BOM_UTF8):
        raise FileError("begins with a byte order mark, which the issuer's secret does not have; save it without one")
    if len(secret) < LEAST_SECRET:
        raise FileError(f"has {len(secret)} bytes; a secret must have {LEAST_SECRET} at least")
    return secret


class JwtVerifier:
    """Verifies JWTs. *jwks* has the keys for RS, PS, ES and EdDSA, *secret* is for HS. Either may be None."""

    def __init__(
        self, settings: JwtSettings, jwks: Jwks | None, secret: WatchedFile[bytes] | None, *, wall: Clock
    ) -> None:
        self._settings = settings
        self._jwks = jwks
        self._secret = secret
        self._wall = wall
        self._registry = _Registry(settings.algorithms)
        self._claims = JWTClaimsRegistry(
            now=lambda: int(wall()),
            leeway=LEEWAY,
            iss={"essential": True, "value": settings.issuer},
            aud={"essential": True, "values": list(settings.audience)},
            exp={"essential": True},
            sub={"essential": True},
        )
        self._remembered: LruCache[Identity] = LruCache()

    async def identity_of(self, token: bytes) -> Identity:
        """Return the identity that a token proves.

        Raises:
            InvalidTokenError: the token is not acceptable.
            IssuerUnavailableError: the issuer's keys could not be fetched yet.
        """
        if len(token) > MAX_JWT:
            raise InvalidTokenError(f"it has more than {MAX_JWT} bytes")
        digest = sha256(token).digest()
        known = self._remembered.get(digest)
        if known is not None and not known.expired(self._wall()):
            return known
        try:
            return self._remember(digest, self._verify(token))
        except UnknownKeyError:
            if self._jwks is None:
                raise InvalidTokenError("its key is not known") from None
            await self._jwks.refresh()
        try:
            return self._remember(digest, self._verify(token))
        except UnknownKeyError:
            if self._jwks.value is None:
                raise IssuerUnavailableError(
                    "the keys that verify this token could not be fetched yet; try again later",
                    cause=self._jwks.trouble,
                ) from None
            raise InvalidTokenError("its key is not known") from None

    def forget(self) -> None:
        """Forget the verified tokens: the keys have changed."""
        self._remembered.clear()

    def trusts(self, thumbprint: str) -> bool:
        """See ``Verifier``."""
        ring = self._jwks.value if self._jwks is not None else None
        if ring is not None and thumbprint in ring.thumbprints:
            return True
        return self._secret is not None and OctKey.import_key(self._secret.value).thumbprint() == thumbprint

    def _remember(self, digest: bytes, identity: Identity) -> Identity:
        self._remembered.put(digest, identity)
        return identity

    def _verify(self, token: bytes) -> Identity:
        keys: list[Key] = []  # joserfc does not tell which key it has used

        def key_for(parsed: Any) -> Key:
            keys.append(self._key_for(parsed))
            return keys[-1]

        try:
            verified = jwt.decode(token, key_for, registry=self._registry)
            self._claims.validate(verified.claims)
            identity = self._identity(verified.claims, keys[-1].thumbprint())
        except (InvalidTokenError, UnknownKeyError):
            raise
        except ExpiredTokenError:
            raise InvalidTokenError("it has expired") from None
        except (InvalidClaimError, MissingClaimError) as error:
            raise InvalidTokenError(f"its claims are not accepted ({error.description})") from None
        except Exception:  # whatever strange bytes raise in a parser is a refusal, and never a 500
            raise InvalidTokenError("its form or its signature is wrong") from None
        if identity.expired(self._wall()):  # the claims are compared with whole seconds
            raise InvalidTokenError("it has expired")
        return identity

    def _key_for(self, token: Any) -> Key:
        """Return the key for a token. joserfc calls this before it verifies the signature."""
        header: Mapping[str, Any] = token.headers()
        if "crit" in header:
            raise InvalidTokenError("its header has 'crit', and no extension is supported")
        typ = header.get("typ", "JWT")
        if not isinstance(typ, str) or typ.lower() not in _TYPES:
            raise InvalidTokenError("it is not an access token: its 'typ' is neither JWT nor at+jwt")
        algorithm = header["alg"]
        self._registry.get_alg(algorithm)  # before the key is looked for
        if algorithm.startswith("HS"):
            if self._secret is None:
                raise InvalidTokenError("its algorithm is not accepted")
            return OctKey.import_key(self._secret.value)
        kid = header.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise InvalidTokenError("its key id is not a text")
        ring = self._jwks.value if self._jwks is not None else None
        if ring is None or (kid is not None and not ring.knows(kid)):
            raise UnknownKeyError
        key = ring.find(algorithm, kid)
        if key is None:
            raise InvalidTokenError("no key of the issuer matches its header")
        return key

    def _identity(self, claims: Mapping[str, Any], signed_by: str) -> Identity:
        subject, expires = claims["sub"], float(claims["exp"])
        if not is_name(subject):
            raise InvalidTokenError("its subject is empty, too long, or not printable")
        if expires > LAST_MOMENT:
            raise InvalidTokenError("its expiry is after the year 9999")
        return make_identity(
            "jwt",
            subject,
            issuer=self._settings.issuer,
            roles=roles_in(claims, self._settings.roles_claim),
            claims={name: value for name, value in claims.items() if isinstance(value, str)},
            expires=expires,
            leeway=LEEWAY,
            signed_by=signed_by,
        )


def roles_in(claims: Mapping[str, Any], path: str) -> frozenset[str]:
    """Return the roles in a claim: a list of texts, or one text with spaces between the roles.

    ``a.b`` is the claim of this name or, if there is none, the member ``b`` of the claim ``a``.
    """
    found: Any = claims.get(path)
    if found is None and "." in path:
        found = claims
        for name in path.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
    names = found.split() if isinstance(found, str) else found if isinstance(found, list) else []
    return frozenset(name for name in names if isinstance(name, str) and _ROLE.fullmatch(name))
