"""Browsers' sessions: an EventSource cannot send a header, so a cookie stands for the bearer token that began it.

The cookie holds the identity, sealed with a key that all replicas share (JWE, ``dir`` with A256GCM: nobody can read or
change it). No replica stores it. So a session that has ended is remembered only by the replica that has ended it, and
``LIFETIME`` bounds for how long another one would still accept the cookie.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from joserfc import jwt
from joserfc.jwe import JWERegistry
from joserfc.jwk import OctKey

from ..core.errors import BadRequestError, UnauthorizedError
from ..file_watch import FileError, WatchedFile
from ..ports import Clock
from .cookie import COOKIE, MAX_COOKIE
from .identity import Identity, Session
from .lru_cache import LruCache

# Seconds for which a cookie is good.
LIFETIME = 900.0
# Bytes of a key in the file, the most keys, and bytes of the whole file.
LEAST_KEY, MOST_KEYS, MAX_KEY_FILE = 32, 16, 16 << 10
# Ended sessions that are remembered until they would have expired. One takes 250 bytes.
MOST_ENDED = 65_536

_ALGORITHM, _ENCRYPTION = "dir", "A256GCM"
_REGISTRY = JWERegistry(algorithms=[_ALGORITHM, _ENCRYPTION])


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The keys by their thumbprints (RFC 7638). The first key seals new sessions; every key opens."""

    keys: Mapping[str, OctKey]

    @property
    def newest(self) -> tuple[str, OctKey]:
        """The key that seals, and its thumbprint."""
        return next(iter(self.keys.items()))


def keys_parser(purpose: Sequence[str]) -> Callable[[bytes], SessionKeys]:
    """Return the parser of the file: one key in a line, the first seals.

    *purpose*: what sessions of this gateway rely on. A gateway with another issuer or audience, which has the same
    file, derives other keys: otherwise it would take the identities of tokens that it refuses.
    """

    def parse(data: bytes) -> SessionKeys:
        lines = [line.strip(b" \t\r\v\f") for line in data.split(b"\n")]
        found: dict[str, OctKey] = {}
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            if line.startswith(b"-----BEGIN"):
                raise FileError("holds a key of another kind; write one random text in each line")
            if len(line) < LEAST_KEY:
                raise FileError(f"line {number} has {len(line)} bytes; a key must have {LEAST_KEY} at least")
            key = OctKey.import_key(_derived(line, purpose))
            if key.thumbprint() in found:
                raise FileError(f"line {number} repeats a key; write each key once, the newest first")
            found[key.thumbprint()] = key
        if not found:
            raise FileError(f"has no key; write a random text of at least {LEAST_KEY} bytes in a line")
        if len(found) > MOST_KEYS:
            raise FileError(f"has {len(found)} keys; {MOST_KEYS} are the most: remove old ones")
        return SessionKeys(found)

    return parse


def _derived(secret: bytes, purpose: Sequence[str]) -> bytes:
    info = b"\0".join([b"etcd-watch-gateway session", *(text.encode() for text in purpose)])
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


class Sessions:
    """Makes, opens and ends sessions. It holds nothing of a session that has not ended."""

    def __init__(self, keys: WatchedFile[SessionKeys], *, wall: Clock) -> None:
        self._keys = keys
        self._wall = wall
        self._ended: dict[str, float] = {}  # the ids of ended sessions, and when all their cookies will have expired
        self._opened: LruCache[Identity] = LruCache()
        self.started = self.ended = 0
        keys.on_change(self._opened.clear)

    def begin(self, identity: Identity, present: Session | None = None) -> tuple[str, Identity]:
        """Return the value of a new cookie, and the identity that the cookie stands for.

        *present*: a session of this identity, which the cookie continues. Otherwise a session begins.

        Raises:
            BadRequestError: the identity does not fit in a cookie.
        """
        now = self._wall()
        ends = identity.ends_at(now)
        expires = now + LIFETIME if ends is None else min(now + LIFETIME, ends)
        sealed_by, key = self._keys.value.newest
        session = Session(present.id if present is not None else secrets.token_urlsafe(16), sealed_by, expires)
        identity = replace(identity, expires=expires, leeway=0.0, session=session)
        header = {"alg": _ALGORITHM, "enc": _ENCRYPTION, "kid": sealed_by}
        value = jwt.encode(header, _claims(identity, session), key, registry=_REGISTRY)
        if len(COOKIE) + 1 + len(value) > MAX_COOKIE:
            raise BadRequestError(
                f"the roles and claims of {identity.name} do not fit in a cookie of {MAX_COOKIE} bytes; send the token "
                "in the Authorization header instead, by fetch() in place of EventSource",
                code="session-too-large",
            )
        self.started += present is None
        return value, identity

    def identity_of(self, cookie: bytes) -> Identity:
        """Return the identity that a cookie stands for.

        ``AccessControl.current`` must then say whether the session and the credentials that began it still hold.

        Raises:
            UnauthorizedError: the cookie was not made by this gateway or a replica with the same keys.
        """
        digest = sha256(cookie).digest()
        identity = self._opened.get(digest)
        if identity is None:
            try:
                identity = self._open(cookie)
            except Exception:  # whatever strange bytes raise in a parser is a refusal, and never a 500
                raise UnauthorizedError(
                    "the session's cookie is not accepted; begin a new session with POST /v1/session"
                ) from None
            self._opened.put(digest, identity)
        return identity

    def _open(self, cookie: bytes) -> Identity:
        if len(cookie) > MAX_COOKIE:
            raise ValueError
        keys = self._keys.value.keys
        opened = jwt.decode(cookie, lambda parsed: keys[parsed.headers()["kid"]], registry=_REGISTRY)
        claims, sealed_by = opened.claims, opened.header["kid"]
        return Identity(
            claims["name"],
            roles=frozenset(claims["roles"]),
            claims=tuple((name, value) for name, value in claims["claims"]),
            expires=claims["exp"],
            every_role=claims["every_role"],
            credential=bytes.fromhex(claims["credential"]),
            signed_by=claims["signed_by"],
            session=Session(claims["sid"], sealed_by, claims["exp"]),
        )

    def holds(self, session: Session) -> bool:
        """Whether a session has not ended here, and its key is still in the file."""
        return session.id not in self._ended and session.sealed_by in self._keys.value.keys

    def end(self, session: Session, *, counts: bool = True) -> None:
        """End a session. The replica remembers that until every cookie of the session would have expired.

        *counts*: False if another worker has ended the session: that worker counts it.
        """
        if session.id in self._ended:
            return
        now = self._wall()
        while self._ended and (len(self._ended) >= MOST_ENDED or next(iter(self._ended.values())) <= now):
            del self._ended[next(iter(self._ended))]
        self._ended[session.id] = now + LIFETIME  # a cookie that was made later may expire earlier
        self.ended += counts


def _claims(identity: Identity, session: Session) -> dict[str, Any]:
    return {
        "sid": session.id,
        "exp": session.expires,
        "name": identity.name,
        "roles": sorted(identity.roles),
        "claims": [pair for pair in identity.claims if _is_text("".join(pair))],  # no policy can match the others
        "every_role": identity.every_role,
        "credential": identity.credential.hex(),
        "signed_by": identity.signed_by,
    }


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        return False
    return True
