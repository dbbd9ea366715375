"""The token of one link's user: had by ``Authenticate``, sent with every call, renewed when it is about to go.

etcd has two kinds. A *simple* token lives 300 s from its last use (``--auth-token-ttl``, 3.5 and later) in the memory
of each member, so a member that restarts forgets it. A *JWT* ends at its ``exp`` whatever happens, and also as soon as
any user or role is changed ("revision of auth store is old").
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
from typing import Any

from aetcd import rpc

from ..ports import Clock
from .credentials import Credentials, CredentialsError

logger = logging.getLogger("gateway.etcd")

# Seconds for one Authenticate: bcrypt costs etcd about 0.1 s of a core, and it is a write to the cluster.
LOGIN_TIMEOUT = 2.0
# A JWT is renewed when so much of its life is over.
RENEW_AT = 0.8
# Seconds without use after which a simple token is renewed before etcd forgets it (after 300 by default): the first
# watch after a quiet night must not meet a refusal. Only where nobody watches: open watches are audited, which uses it.
IDLE = 120.0

# What etcd says when it does not take a token; its code differs ("revision in header" is UNKNOWN, on 3.5.1), and its
# watches say less (there an invalid token is "permission denied", on 3.5.1).
STALE = (
    "invalid auth token",
    "revision of auth store is old",
    "revision in header is old",
    "user name is empty",  # sent none: auth was enabled after we came
)
REFUSALS = (
    rpc.StatusCode.INVALID_ARGUMENT,
    rpc.StatusCode.UNAUTHENTICATED,
    rpc.StatusCode.PERMISSION_DENIED,
    rpc.StatusCode.FAILED_PRECONDITION,
)


class LoginError(Exception):
    """etcd does not take our user and password, or we have none to show; says why."""


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
        self._renew_at = -math.inf
        self._simple = False
        self.token = ""
        # Of the last answer: it names the cluster where nothing else may.
        self.header: Any = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call carries."""
        return (("token", self.token),) if self.token else ()

    def is_stale(self, error: rpc.AioRpcError) -> bool:
        """Whether a call failed for want of a newer token."""
        details = error.details() or ""
        return bool(self._credentials.user) and any(words in details for words in STALE)

    def used(self) -> None:
        """A call went well with the token."""
        if self._simple:
            self._renew_at = self._clock() + IDLE

    async def ensure(self) -> None:
        """Have a token that is good for a while. Raises as ``renew``, but while there is one it need not be had now."""
        if not self._credentials.user or self._clock() < self._renew_at:
            return
        try:
            await self.renew(self.token)
        except rpc.AioRpcError:
            if not self.token:
                raise
            self._renew_at = self._clock() + LOGIN_TIMEOUT

    async def renew(self, stale: str) -> None:
        """Get another token than *stale*: once, however many ask.

        Raises:
            LoginError: refused, or the password cannot be read.
            rpc.AioRpcError: etcd did not answer.
        """
        async with self._lock:
            if self.token != stale:
                return
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
                    # As etcd's own client: a user may be configured before auth is enabled.
                    logger.warning("etcd has no authentication enabled: the user is not needed", extra={"user": user})
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
    """Seconds that a JWT lives (*now* in Unix time); None for any other token, and for one that can't be read.

    Not verified: it is etcd's, and we only want to know when to ask for the next one.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        # etcd writes no "iat"; with one the two clocks need not agree.
        life = float(claims["exp"]) - float(claims.get("iat", now))
    except (binascii.Error, ValueError, KeyError, TypeError, AttributeError):
        return None
    return life if life > 0 else None
