"""The issuer's public keys: a JWK set (RFC 7517) from a file or from a URL.

A request never makes the gateway fetch more often than once a minute. While the issuer is away, the keys that were read
before stay valid.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from ..core.backoff import Backoff
from ..file_watch import FileError, Outcome, WatchedFile
from ..ports import Clock, Draw
from ..urls import without_secrets
from .fetch import FetchError, fetch

logger = logging.getLogger("gateway")


class Get(Protocol):
    """``fetch``, or a test's own."""

    def __call__(self, url: str, *, most: int, timeout: float) -> Awaitable[bytes]:
        """Return the body at *url*. Raises FetchError."""


# The limits of a JWK set: its bytes, and the number of its keys.
MAX_JWKS = 256 << 10
MAX_KEYS = 100
# RFC 7518, section 3.3: a key of 2048 bits or more must be used.
LEAST_RSA_BITS = 2048
# Seconds between two regular fetches. A key that the issuer withdraws is accepted for at most this long. A new key may
# be unknown for as long, if somebody has used up the fetch that an unknown key id may cause.
PERIOD = 60.0
# Seconds between two fetches that unknown key ids cause.
COOLDOWN = 60.0
# Seconds for one fetch, and seconds that a request waits for the fetch that its key id has caused.
FETCH_TIMEOUT = 10.0
KEY_TIMEOUT = 5.0
# Seconds between attempts while the issuer is away.
RETRY = Backoff(first=1.0, cap=60.0)

# The members of a public key. All others, the private ones too, are left out.
_PUBLIC = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_COMMON = ("kty", "kid", "use", "alg", "key_ops")
_KINDS: Mapping[str, type[RSAKey] | type[ECKey] | type[OKPKey]] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}


class KeyRing:
    """The usable keys of a JWK set."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = tuple(keys)
        # RFC 7638: equal keys have equal thumbprints, whatever their ids are.
        self.thumbprints = frozenset(key.thumbprint() for key in keys)

    def knows(self, kid: str) -> bool:
        """Whether a key has this id."""
        return any(key.kid == kid for key in self._keys)

    def find(self, algorithm: str, kid: str | None) -> Key | None:
        """Return the key for a token with this header. Without a key id, only one key may fit the algorithm."""
        fitting = [key for key in self._keys if (kid is None or key.kid == kid) and _fits(key, algorithm)]
        return fitting[0] if len(fitting) == 1 or (fitting and kid is not None) else None


def _fits(key: Key, algorithm: str) -> bool:
    """Whether the key is of the algorithm's type and curve, and meant for signatures with the algorithm."""
    if key.get("use", "sig") != "sig" or key.get("alg", algorithm) != algorithm:
        return False
    try:
        JWSRegistry.algorithms[algorithm].check_key(key)
    except JoseError:
        return False
    return True


def parse_jwks(data: bytes) -> KeyRing:
    """Parse a JWK set. Keys of unknown types, symmetric keys and weak keys are left out. Raises FileError."""
    try:
        listed = json.loads(data)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FileError("is not a JWK set: it must be a JSON object with the member 'keys'") from None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise FileError(f"is not a usable JWK set: 'keys' must be a list of at most {MAX_KEYS} keys")
    keys = [key for one in listed if (key := _key(one)) is not None]
    if not keys:
        raise FileError("has no usable key: it must hold public keys of the types RSA (2048 bits or more), EC or OKP")
    return KeyRing(keys)


def _key(listed: Any) -> Key | None:
    kind = listed.get("kty") if isinstance(listed, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        return None
    members = {name: listed[name] for name in (*_COMMON, *_PUBLIC[kind]) if name in listed}
    try:
        if kind == "RSA" and _bits(members["n"]) < LEAST_RSA_BITS:
            return None
        key = _KINDS[kind].import_key(members)
        key.get_op_key("verify")  # fails for a point that is not on its curve
    except Exception:  # a key that the library cannot use is left out, and the others stay usable
        return None
    return key


def _bits(number: str) -> int:
    decoded = urlsafe_b64decode(number + "=" * (-len(number) % 4))
    return int.from_bytes(decoded, "big").bit_length()


class Jwks(Protocol):
    """Where the keys come from: ``JwksFile`` or ``JwksUrl``."""

    @property
    def value(self) -> KeyRing | None:
        """The keys; None before they were read for the first time."""

    @property
    def trouble(self) -> str:
        """Why the keys cannot be read now; empty if they can."""

    async def refresh(self) -> None:
        """Read the keys again, if a fetch is allowed now: a token names an unknown key."""


class JwksFile(WatchedFile[KeyRing]):
    """The keys in a file."""

    def __init__(self, path: Path, what: str = "a file", read_before: Mapping[str, bytes] | None = None) -> None:
        super().__init__(path, "jwt_jwks", parse_jwks, MAX_JWKS, what, read_before)

    async def refresh(self) -> None:
        """Do nothing: a change of the file is seen anyway."""


class JwksUrl:
    """The keys at a URL. ``run`` fetches them. *data*: the set that was fetched before; empty if none was."""

    setting = "jwt_jwks"

    def __init__(self, url: str, *, clock: Clock, draw: Draw, get: Get = fetch, data: bytes = b"") -> None:
        self.url = url
        self.value: KeyRing | None = parse_jwks(data) if data else None
        self.trouble = "" if data else "not fetched yet"
        self._listeners: list[Callable[[], None]] = []
        self._get = get
        self._clock = clock
        self._draw = draw
        self._data = data
        self._failures = 0
        self._caused = -COOLDOWN  # when an unknown key id last caused a fetch
        self._wanted = asyncio.Event()
        self._begun = self._ended = 0  # fetches
        self._needed = 0  # the number of the fetch that an unknown key id has caused
        self._fetched = asyncio.Event()  # replaced after each fetch

    @property
    def ready(self) -> bool:
        """Whether the keys were fetched once."""
        return self.value is not None

    @property
    def contents(self) -> Mapping[str, bytes]:
        """See ``Source``."""
        return {self.setting: self._data} if self._data else {}

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call *listener* after each change of the keys."""
        self._listeners.append(listener)

    async def look(self) -> Outcome:
        """Fetch the keys soon."""
        self._wanted.set()
        return "unchanged"

    async def run(self) -> None:
        """Fetch the keys now, then in every ``PERIOD``, and when an unknown key id asks for them."""
        while True:
            self._wanted.clear()
            self._begun += 1
            await self._fetch()
            self._ended += 1
            fetched, self._fetched = self._fetched, asyncio.Event()
            fetched.set()
            delay = RETRY.delay(self._failures - 1, self._draw()) if self._failures else PERIOD
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wanted.wait()

    async def refresh(self) -> None:
        """Ask for a fetch, and wait until it ends, for ``KEY_TIMEOUT`` at most.

        At most one fetch in every ``COOLDOWN`` has this cause. All who come during that fetch wait for it: after a
        rotation many clients bring the new key at once. After it, a caller returns at once until ``COOLDOWN`` is over.
        """
        if self.value is None:
            needed = self._ended + 1
        else:
            if self._clock() - self._caused >= COOLDOWN:
                self._caused = self._clock()
                self._needed = self._begun + 1  # a fetch that began earlier may bring the keys of before
                self._wanted.set()
            needed = self._needed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KEY_TIMEOUT):
                while self._ended < needed:
                    await self._fetched.wait()

    async def _fetch(self) -> None:
        shown = without_secrets(self.url)
        try:
            data = await self._get(self.url, most=MAX_JWKS, timeout=FETCH_TIMEOUT)
            ring = self.value if data == self._data and self.value is not None else parse_jwks(data)
        except Exception as error:  # whatever an issuer sends must not end the gateway
            self._failures += 1
            expected = isinstance(error, FetchError | FileError)
            trouble = str(error) if expected else f"cannot be fetched ({type(error).__name__})"
            if trouble != self.trouble:
                self.trouble = trouble
                logger.warning(
                    "the issuer's keys cannot be fetched: the keys that were fetched before stay valid",
                    extra={"setting": self.setting, "url": shown, "reason": self.trouble},
                )
            return
        if self._failures or self.value is None:
            logger.info("the issuer's keys are fetched", extra={"url": shown})
        self._failures, self.trouble, self._data = 0, "", data
        if ring is not self.value:
            self.value = ring
            for listener in self._listeners:
                listener()
