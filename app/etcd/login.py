"""The token of one link's user: ``Authenticate`` returns it, every call carries it, and a login renews it in time.

etcd has two kinds of token. A *simple* token expires 300 s after its last use (``--auth-token-ttl``, 3.5 and later).
Each member keeps simple tokens in memory, so a member that restarts forgets them. A *JWT* expires at its ``exp`` even
if it is used, and also as soon as any user or role is changed ("revision of auth store is old").
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from copy import copy
from typing import Any

from aetcd import rpc

from ..ports import Clock
from .credentials import Credentials, CredentialsError

logger = logging.getLogger("gateway.etcd")

# Seconds for one Authenticate call: bcrypt costs etcd about 0.1 s of a core, and the call is a write to the cluster.
LOGIN_TIMEOUT = 2.0
# A JWT is renewed after this fraction of its lifetime.
RENEW_AT = 0.8
# Seconds without use after which a simple token is renewed, before etcd forgets it (after 300 by default): the first
# watch after a quiet night must not be refused. This happens only while nobody watches: audits of open watches use the
# token.
IDLE = 120.0

# etcd's texts when it rejects a token. The status code varies ("revision in header" is UNKNOWN, on 3.5.1), and watches
# report less (for a watch, an invalid token is "permission denied", on 3.5.1).
NOBODY = "user name is empty"  # the call had no token
STALE = (
    "invalid auth token",
    "revision of auth store is old",
    "revision in header is old",
    NOBODY,  # auth was enabled after the gateway connected
)
USER_NEEDED = (
    "etcd requires a user, and the gateway has none: set GATEWAY_ETCD_USER and GATEWAY_ETCD_PASSWORD_FILE, or, if etcd "
    "has --client-cert-auth, a GATEWAY_ETCD_CERT with a common name"
)
REFUSALS = (
    rpc.StatusCode.INVALID_ARGUMENT,
    rpc.StatusCode.UNAUTHENTICATED,
    rpc.StatusCode.PERMISSION_DENIED,
    rpc.StatusCode.FAILED_PRECONDITION,
)


class LoginError(Exception):
    """etcd rejects the user and password, or requires them, or the password cannot be read. The text says which."""


class Login:
    """See the module. Without a user it does nothing.

    Args:
        authenticate: the RPC.
    """

    def __init__(self, authenticate: Callable[..., Awaitable[Any]], credentials: Credentials, *, clock: Clock) -> None:
        self._authenticate = authenticate
        self._credentials = credentials
        self._clock = clock
        self._lock = asyncio.Lock()
        self._ended = 0  # the number of logins that have ended
        self._failure: LoginError | rpc.AioRpcError | None = None  # of the last one
        self._renew_at = -math.inf
        self._simple = False
        self.token = ""
        # The header of the last answer. It names the cluster if the user may make no other call that names the cluster.
        self.header: Any = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a call."""
        return (("token", self.token),) if self.token else ()

    def is_stale(self, error: rpc.AioRpcError) -> bool:
        """Whether a call failed because it needs a newer token."""
        details = error.details() or ""
        return bool(self._credentials.user) and any(words in details for words in STALE)

    def require_user(self, error: rpc.AioRpcError) -> None:
        """Raise LoginError if a call failed because etcd requires a user, and none is configured.

        Then no call can succeed on this connection, whatever it asks for.
        """
        if not self._credentials.user and NOBODY in (error.details() or ""):
            raise LoginError(USER_NEEDED) from None

    def used(self) -> None:
        """Record that a call with the token succeeded."""
        if self._simple:
            self._renew_at = self._clock() + IDLE

    async def ensure(self) -> None:
        """Renew the token if it is missing or about to expire.

        Raises as ``renew``; but if etcd does not answer and there is a token, keep that token for now.
        """
        if not self._credentials.user or self._clock() < self._renew_at:
            return
        try:
            await self.renew(self.token)
        except rpc.AioRpcError:
            if not self.token:
                raise
            self._renew_at = self._clock() + LOGIN_TIMEOUT

    async def renew(self, stale: str) -> None:
        """Replace the token *stale*. Concurrent callers share one login, and its failure.

        Raises:
            LoginError: etcd refused, or the password cannot be read.
            rpc.AioRpcError: etcd did not answer.
        """
        ended = self._ended
        async with self._lock:
            if self.token != stale:
                return
            if self._ended != ended:  # this caller has waited for that login
                if self._failure is not None:
                    raise copy(self._failure)
                return
            try:
                await self._log_in()
            except (LoginError, rpc.AioRpcError) as error:
                # A copy has no traceback, which would keep the callers' frames.
                self._failure, self._ended = copy(error), ended + 1
                raise
            self._failure, self._ended = None, ended + 1

    async def _log_in(self) -> None:
        try:
            password = self._credentials.password()
        except CredentialsError as error:
            raise LoginError(str(error)) from None
        user = self._credentials.user
        try:
            answer = await self._authenticate(
                rpc.AuthenticateRequest(name=user, password=password), timeout=LOGIN_TIMEOUT
            )
        except rpc.AioRpcError as error:
            details = error.details() or ""
            if "authentication is not enabled" in details:
                # etcd's own client does the same: a user may be configured before auth is enabled.
                logger.warning("etcd has authentication disabled: the user is not needed", extra={"user": user})
                self.token, self._renew_at, self._simple = "", math.inf, False
                return
            if error.code() in REFUSALS:
                msg = f"user {user!r}: {details}"
                raise LoginError(msg) from None
            raise
        self.header = answer.header
        self._take(answer.token)

    def _take(self, token: str) -> None:
        life = life_of(token, time.time())
        self.token = token
        self._simple = life is None
        self._renew_at = self._clock() + (IDLE if life is None else RENEW_AT * life)


def life_of(token: str, now: float) -> float | None:
    """Return the lifetime of a JWT in seconds (*now* in Unix time); None for any other or unreadable token.

    The token is not verified: it comes from etcd, and the gateway only needs to know when to renew it.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        # etcd writes no "iat". If there is one, the two clocks need not agree.
        life = float(claims["exp"]) - float(claims.get("iat", now))
    except (binascii.Error, ValueError, KeyError, TypeError, AttributeError):
        return None
    return life if life > 0 else None
