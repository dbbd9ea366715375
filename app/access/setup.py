"""The access control that the settings describe.

A setting that would have no effect is an error: somebody relies on it.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from ..file_watch import Source, WatchedFile
from ..ports import Clock, Draw
from ..settings import Settings, SettingsError, named
from ..urls import is_loopback, without_secrets
from .bearer import Bearer, Verifier
from .control import AccessControl
from .policy_file import MAX_POLICY_FILE, parse_policy
from .proxy import TrustedProxy
from .token import Token
from .tokens import MAX_TOKENS_FILE, parse_tokens

if TYPE_CHECKING:
    from .sessions import Sessions

logger = logging.getLogger("gateway")

T = TypeVar("T")

OF_ACCESS = "a file of the access control"  # as the log calls it

# The algorithms of JWTs. ``none`` is not one of them.
ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"),
    *("EdDSA", "Ed25519", "HS256", "HS384", "HS512"),
)
# Headers that mean something else. A client's own value would name the user.
_RESERVED = frozenset({"authorization", "cookie", "host", "forwarded", "x-forwarded-for", "content-length"})


def check_access(settings: Settings) -> None:
    """Compare the settings of the access control with each other. Raises SettingsError."""
    lines = [
        *_jwt_faults(settings),
        *_proxy_faults(settings),
        *_trusted_faults(settings),
        *_session_faults(settings),
    ]
    if lines:
        raise SettingsError("\n".join(lines))


def make_access_control(
    settings: Settings, *, clock: Clock, wall: Clock, draw: Draw, read_before: Mapping[str, bytes] | None = None
) -> AccessControl:
    """Return the access control. Reads the files once; a file that cannot be used is a SettingsError.

    *read_before*: ``AccessControl.contents`` of another process with the same settings, which count instead.
    """
    check_access(settings)
    before = read_before or {}
    token = None
    if settings.token_file is not None:
        token = Token(settings.token_file, named("token_file"), clock=clock, read_before=before.get("token_file"))
    tokens = _file(settings.tokens_file, "tokens_file", parse_tokens, MAX_TOKENS_FILE, before)
    policy = _file(settings.policy_file, "policy_file", parse_policy, MAX_POLICY_FILE, before)
    sources: list[Source] = [file for file in (tokens, policy) if file is not None]
    jwt = None
    if settings.jwt_issuer:
        jwt, of_jwt = _jwt(settings, before, clock=clock, wall=wall, draw=draw)
        sources += of_jwt
    proxy = None
    if settings.auth_proxy_header:
        proxy = TrustedProxy(settings.auth_proxy_header, settings.auth_proxy_roles_header, settings.auth_proxies)
    sessions = None
    if settings.session_key_file is not None:
        sessions, of_sessions = _sessions(settings, settings.session_key_file, before, wall=wall)
        sources.append(of_sessions)
    guarded = any(mode is not None for mode in (tokens, policy, jwt, proxy))
    if not guarded and token is None and not is_loopback(settings.host):
        logger.warning(
            "no access control: everybody who reaches the port may read the allowed prefixes",
            extra={"host": settings.host},
        )
    bearer = Bearer(token, tokens, jwt, wall=wall)
    return AccessControl(
        settings.allowed,
        bearer,
        proxy=proxy,
        policy=policy,
        guarded=guarded,
        min_prefix=settings.min_prefix,
        sessions=sessions,
        sources=sources,
    )


def _file(
    path: Path | None, setting: str, parse: Callable[[bytes], T], most: int, read_before: Mapping[str, bytes]
) -> WatchedFile[T] | None:
    return WatchedFile(path, setting, parse, most, OF_ACCESS, read_before) if path is not None else None


def _jwt(
    settings: Settings, read_before: Mapping[str, bytes], *, clock: Clock, wall: Clock, draw: Draw
) -> tuple[Verifier, list[Source]]:
    """Return the verifier of JWTs, and what it reads again. joserfc takes 0.2 s to import, so it is imported late."""
    from .jwks import JwksFile, JwksUrl
    from .jwt import MAX_SECRET, JwtSettings, JwtVerifier, parse_secret

    secret = _file(settings.jwt_secret_file, "jwt_secret_file", parse_secret, MAX_SECRET, read_before)
    jwks: JwksFile | JwksUrl | None = None
    location = settings.jwt_jwks.removeprefix("file://")
    if "://" in location:
        if settings.jwt_jwks.startswith("http://") and not is_loopback(urlsplit(settings.jwt_jwks).hostname or ""):
            shown = {"url": without_secrets(settings.jwt_jwks)}
            logger.warning("the issuer's keys are fetched in plain text", extra=shown)
        jwks = JwksUrl(settings.jwt_jwks, clock=clock, draw=draw, data=read_before.get("jwt_jwks", b""))
    elif location:
        jwks = JwksFile(Path(location), OF_ACCESS, read_before)
    group = replace(settings.group(JwtSettings, "jwt_"), algorithms=_algorithms(settings))
    verifier = JwtVerifier(group, jwks, secret, wall=wall)
    sources: list[Source] = [source for source in (secret, jwks) if source is not None]
    for source in sources:
        source.on_change(verifier.forget)
    return verifier, sources


def _sessions(
    settings: Settings, path: Path, read_before: Mapping[str, bytes], *, wall: Clock
) -> tuple[Sessions, Source]:
    """Return the browsers' sessions, and the file of their keys. Only this and ``_jwt`` import joserfc."""
    from .sessions import MAX_KEY_FILE, Sessions, keys_parser

    # A cookie stands for a JWT that was compared with these.
    relied_on = (settings.jwt_issuer, settings.jwt_roles_claim, *settings.jwt_audience)
    parse = keys_parser(relied_on)
    keys = WatchedFile(path, "session_key_file", parse, MAX_KEY_FILE, OF_ACCESS, read_before)
    return Sessions(keys, wall=wall), keys


def _algorithms(settings: Settings) -> tuple[str, ...]:
    """Return the accepted algorithms: those that are set, or else all for which there is a key."""
    usable = {True: settings.jwt_secret_file is not None, False: bool(settings.jwt_jwks)}
    return settings.jwt_algorithms or tuple(name for name in ALGORITHMS if usable[name.startswith("HS")])


def _jwt_faults(settings: Settings) -> Iterator[str]:
    given = {
        name: bool(getattr(settings, name))
        for name in ("jwt_issuer", "jwt_audience", "jwt_jwks", "jwt_secret_file", "jwt_algorithms")
    }
    if not any(given.values()):
        return
    for name in ("jwt_issuer", "jwt_audience"):
        if not given[name]:
            yield f"{named(name)}: is required for JWTs, and not set"
    if not given["jwt_jwks"] and not given["jwt_secret_file"]:
        yield f"{named('jwt_jwks')}: is required for JWTs, and not set"
    for name in settings.jwt_algorithms:
        if name not in ALGORITHMS:
            yield f"{named('jwt_algorithms')}: {name!r} is not an algorithm; use some of {', '.join(ALGORITHMS)}"
    symmetric = [name for name in settings.jwt_algorithms if name.startswith("HS")]
    if symmetric and not given["jwt_secret_file"]:
        yield f"{named('jwt_algorithms')}: {symmetric[0]} needs GATEWAY_JWT_SECRET_FILE (--jwt-secret-file)"
    if len(symmetric) < len(settings.jwt_algorithms) and not given["jwt_jwks"]:
        other = next(name for name in settings.jwt_algorithms if name not in symmetric)
        yield f"{named('jwt_algorithms')}: {other} needs GATEWAY_JWT_JWKS (--jwt-jwks)"
    if given["jwt_algorithms"] and given["jwt_secret_file"] and not symmetric:
        yield f"{named('jwt_secret_file')}: needs HS256, HS384 or HS512 in GATEWAY_JWT_ALGORITHMS (--jwt-algorithms)"
    if "://" in settings.jwt_jwks.removeprefix("file:///") and not _is_url(settings.jwt_jwks):
        yield f"{named('jwt_jwks')}: is not a URL; use the form https://id.example/jwks.json, or the path of a file"


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            text.isascii()
            and " " not in text
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and parts.username is None
        )
    except ValueError:
        return False


def _wrong_with_proxy(item: str) -> str:
    try:
        everybody = not ipaddress.ip_network(item).prefixlen
    except ValueError:
        return "is not an address or a network; use the form 10.0.0.7 or 10.0.0.0/24"
    return "would let everybody name any user; list the proxies' addresses" if everybody else ""


def _trusted_faults(settings: Settings) -> Iterator[str]:
    if settings.trusted_proxies == ("*",):
        return
    for item in settings.trusted_proxies:
        try:
            ipaddress.ip_network(item)
        except ValueError:
            yield (
                f"{named('trusted_proxies')}: {item!r} is not an address or a network; use the form 10.0.0.7 or "
                "10.0.0.0/24, or '*' alone to trust everybody"
            )


def _session_faults(settings: Settings) -> Iterator[str]:
    if settings.session_key_file and not (settings.token_file or settings.tokens_file or settings.jwt_issuer):
        yield (
            f"{named('session_key_file')}: needs bearer tokens, which begin sessions: GATEWAY_TOKENS_FILE "
            "(--tokens-file), GATEWAY_TOKEN_FILE (--token-file) or GATEWAY_JWT_ISSUER (--jwt-issuer)"
        )


def _proxy_faults(settings: Settings) -> Iterator[str]:
    header, roles_header = settings.auth_proxy_header, settings.auth_proxy_roles_header
    for name in ("auth_proxies", "auth_proxy_roles_header"):
        if getattr(settings, name) and not header:
            yield f"{named(name)}: needs GATEWAY_AUTH_PROXY_HEADER (--auth-proxy-header)"
    for item in settings.auth_proxies:
        if why := _wrong_with_proxy(item):
            yield f"{named('auth_proxies')}: {item!r} {why}"
    if header and not settings.auth_proxies:
        yield f"{named('auth_proxy_header')}: needs GATEWAY_AUTH_PROXIES (--auth-proxies)"
    for name, value in (("auth_proxy_header", header), ("auth_proxy_roles_header", roles_header)):
        if value.lower() in _RESERVED:
            yield f"{named(name)}: {value} has another meaning; use a header like X-Forwarded-User"
    if header and header.lower() == roles_header.lower():
        yield f"{named('auth_proxy_roles_header')}: must differ from GATEWAY_AUTH_PROXY_HEADER"
