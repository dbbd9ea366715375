"""An identity: who sends a request, as one of the authentication modes has found out.

Must live here: the value, and the namespaces of names. Must not: how a mode finds out, and what the identity may read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Namespace = Literal["token", "jwt", "proxy"]

# The most characters of a user's name. A name goes into logs and into /v1/access.
MAX_NAME = 512


@dataclass(frozen=True, slots=True)
class Session:
    """A browser's session: what a cookie stands for (``sessions``)."""

    id: str  # of all the cookies that a browser gets one after the other
    sealed_by: str  # the thumbprint (RFC 7638) of the key that has sealed the cookie
    expires: float  # wall-clock seconds


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sends a request.

    ``name`` has a namespace, so that no mode can name an identity of another mode: ``token:N``, ``jwt:ISSUER#SUBJECT``,
    ``proxy:N``. The two names without a colon are ``anonymous`` and ``static-token``.
    """

    name: str
    # The roles that the credentials give. The policy's bindings give further roles (``Policy.roles_of``).
    roles: frozenset[str] = frozenset()
    # Names and values for the policy's placeholders. ``sub`` is the identity's name without the namespace.
    claims: tuple[tuple[str, str], ...] = ()
    # Wall-clock seconds at which the credentials expire; None if they do not.
    expires: float | None = None
    # Seconds for which the credentials are accepted after ``expires``: a JWT's issuer may have another clock.
    leeway: float = 0.0
    # Whether the identity holds every role that there is.
    every_role: bool = False
    # The SHA-256 of the token, so that a later change of the tokens file finds the identity again; else empty. Of the
    # static token, only sessions have it.
    credential: bytes = field(default=b"", repr=False)
    # The thumbprint (RFC 7638) of the key that has signed the JWT; else empty.
    signed_by: str = field(default="", repr=False)
    # The session whose cookie the request has sent; None if the request has sent the credentials themselves.
    session: Session | None = field(default=None, repr=False)

    def expired(self, now: float) -> bool:
        """Whether the credentials are no longer accepted at *now* (wall-clock seconds)."""
        return self.expires is not None and self.expires + self.leeway <= now

    def ends_at(self, now: float) -> float | None:
        """Return when a stream that begins at *now* must end: when the credentials expire. None: never.

        Credentials that have expired already, and are still accepted, are accepted to the end of their leeway.
        """
        if self.expires is None or self.expires > now:
            return self.expires
        return self.expires + self.leeway

    def claim(self, name: str) -> str | None:
        """Return the value of a claim, or None."""
        return next((value for known, value in self.claims if known == name), None)


ANONYMOUS = Identity("anonymous")
# The token of GATEWAY_TOKEN_FILE. The name has no colon, so no entry of the tokens file can have it.
STATIC_TOKEN = Identity("static-token", every_role=True)


def make_identity(
    namespace: Namespace,
    name: str,
    *,
    issuer: str = "",
    roles: frozenset[str] = frozenset(),
    claims: Mapping[str, str] | None = None,
    expires: float | None = None,
    leeway: float = 0.0,
    credential: bytes = b"",
    signed_by: str = "",
) -> Identity:
    """Return an identity whose name is in *namespace*. Its claim ``sub`` is *name*."""
    full = f"{namespace}:{issuer}#{name}" if namespace == "jwt" else f"{namespace}:{name}"
    pairs = tuple(sorted({**(claims or {}), "sub": name}.items()))
    return Identity(full, roles, pairs, expires, leeway, credential=credential, signed_by=signed_by)


def is_name(name: str) -> bool:
    """Whether *name* can be a user's name: not empty, not too long, and safe in a log line."""
    return 0 < len(name) <= MAX_NAME and name.isprintable()


def subject_of(name: str) -> str:
    """Return the part of an identity's full name after the namespace, and after a JWT's issuer."""
    namespace, _, rest = name.partition(":")
    return rest.partition("#")[2] if namespace == "jwt" else rest
