"""Access control: who sends a request (``authenticate``), and what that identity may read (``authorize``).

Both run before a feed is joined or started, and before etcd is asked for anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ..core.errors import BadRequestError, ForbiddenError, IssuerUnavailableError, UnauthorizedError
from ..core.keys import KeyRange
from ..core.query import bounded
from ..core.selection import MOST_RANGES, Ranges
from ..file_watch import Outcome, Source, WatchedFile, WatchedFiles, poll_together, run_together
from .bearer import INSUFFICIENT_SCOPE, INVALID_TOKEN, Bearer, token_in
from .cookie import cookie_in
from .identity import ANONYMOUS, STATIC_TOKEN, Identity, Session
from .permit import Permit
from .policy import OPERATOR, Grants, Policy
from .proxy import Headers, TrustedProxy

if TYPE_CHECKING:  # the import of joserfc takes 0.2 s
    from .sessions import Sessions

T = TypeVar("T")

# Who asks, for what, and whether for keys alone.
Asked = tuple[Identity, Ranges, bool]

# Identities whose grants, and reads whose rules and permits, are remembered until the files change. Finding them out
# takes time for each role and binding: 12 us of a join with a single role, and as much again for the permit.
MAX_REMEMBERED = 4096
# Bytes of the longest selection whose rule and permit are remembered, a range counting as RANGE more than its name.
# Clients choose selections, and 60 kB fit in a request: 3,000 of these took 200 MB.
LONGEST_REMEMBERED, RANGE = 1000, 100

# The settings that name something which is read again while the gateway runs.
SOURCES = ("tokens_file", "policy_file", "jwt_jwks", "jwt_secret_file", "session_key_file")


class AccessControl:
    """The access checks of ``/v1``.

    Args:
        fence: the prefixes that the gateway serves at all (``GATEWAY_ALLOW_PREFIXES``).
        min_prefix: the minimum number of bytes of a prefix (``GATEWAY_MIN_PREFIX``).
        bearer: how bearer tokens are known.
        proxy: the proxies that may name users.
        policy: what identities may read. Without a policy, every identity may read what the fence allows.
        sessions: browsers' sessions; None: no cookie is accepted.
        guarded: whether any mode other than the static token is on. Then only operators may see metrics and feeds.
        sources: everything that is read again while the gateway runs, but the static token.
    """

    def __init__(
        self,
        fence: Sequence[bytes],
        bearer: Bearer,
        *,
        proxy: TrustedProxy | None = None,
        policy: WatchedFile[Policy] | None = None,
        guarded: bool = False,
        min_prefix: int = 0,
        sessions: Sessions | None = None,
        sources: Sequence[Source] = (),
    ) -> None:
        self._fence = tuple(fence)
        self._bearer = bearer
        self.wall = bearer.wall  # returns the wall clock's seconds, with which expiries are compared
        self._proxy = proxy
        self._policy = policy
        self.guarded = guarded
        self._min_prefix = min_prefix
        self._sessions = sessions
        self._sources = tuple(sources)
        # A role may be renamed in several files by one swap: a check between two of them would end streams.
        self._files = [source for source in sources if isinstance(source, WatchedFiles)]
        self._others = [source for source in sources if not isinstance(source, WatchedFiles)]
        self._listeners: list[Callable[[], None]] = []
        self._grants: dict[Identity, Grants] = {}
        self._deciding: dict[Asked, str] = {}
        self._permits: dict[Asked, Permit] = {}
        self.generation = 0  # grows with each change of a file or of the issuer's keys
        for source in self._sources:
            source.on_change(self._changed)

    # --- who ----------------------------------------------------------------------------------------------------------

    async def authenticate(self, headers: Headers, peer: str | None) -> Identity:
        """Return who sends a request.

        Args:
            headers: the request's headers as ASGI has them, their names in lower case.
            peer: the IP address of the connection itself, whatever a proxy says; None if it is not known.

        Raises:
            UnauthorizedError: the credentials are missing or wrong. Wrong credentials never become ``anonymous``.
            BadRequestError: the request has two kinds of credentials, or the same kind twice.
            IssuerUnavailableError: the issuer's keys could not be fetched yet.
        """
        headers = list(headers)
        sent = [value for name, value in headers if name == b"authorization"]
        if not self.guarded and (self._sessions is None or sent):
            return self._by_static_token(sent)
        try:
            named = self._proxy.identity_of(headers, peer) if self._proxy is not None else None
            if named is not None:
                if any(token_in(value) is not None for value in sent):
                    raise BadRequestError(
                        "the request has a bearer token beside the user that the proxy names; send one of them",
                        code="conflicting-credentials",
                    )
                return named
            _refuse_two(sent)
            if sent:
                return await self._bearer.identity_of(sent[0])
            session = self.session_of(headers)
            if session is not None:
                return session
        except UnauthorizedError as error:
            error.headers = INVALID_TOKEN
            raise
        if not self.guarded:
            return self._by_static_token(sent)
        if not self.admits_anonymous:
            raise UnauthorizedError("the request has no credentials; send the header 'Authorization: Bearer <token>'")
        return ANONYMOUS

    def _by_static_token(self, sent: Sequence[bytes]) -> Identity:
        token = self._bearer.token
        if token is None:
            return ANONYMOUS
        _refuse_two(sent)
        if not token.matches((token_in(sent[0]) if sent else None) or b""):
            raise UnauthorizedError(
                "the bearer token is missing or wrong; send the header 'Authorization: Bearer <token>'"
            )
        return STATIC_TOKEN

    def opened_session(self, headers: Headers) -> Identity | None:
        """Return the identity in the session's cookie, whether or not its credentials hold now; None without a cookie.

        None, too, if the session is over. For the end of a session.

        Raises:
            UnauthorizedError: the cookie is not good.
            BadRequestError: there are two of them.
        """
        cookie = cookie_in(headers) if self._sessions is not None else None
        if self._sessions is None or cookie is None:
            return None
        identity = self._sessions.identity_of(cookie)
        assert identity.session is not None, "a cookie stands for a session"
        over = identity.expired(self.wall()) or not self._sessions.holds(identity.session)
        return None if over else identity

    def session_of(self, headers: Headers) -> Identity | None:
        """Return the identity of the session's cookie among *headers*, whatever else they have; None without a cookie.

        Raises:
            UnauthorizedError: the cookie is not good, or no longer.
            IssuerUnavailableError: nobody knows yet whether the JWT that began the session is still good.
            BadRequestError: there are two of them.
        """
        cookie = cookie_in(headers) if self._sessions is not None else None
        if self._sessions is None or cookie is None:
            return None
        opened = self._sessions.identity_of(cookie)
        identity = self.current(opened)
        if identity is None and opened.signed_by and not self.ready and self.opened_session(headers) is not None:
            raise IssuerUnavailableError("the issuer's keys could not be fetched yet; try again later")
        if identity is None or identity.expired(self.wall()):
            raise UnauthorizedError("the session has ended; begin a new session with POST /v1/session")
        return identity

    def begin_session(self, identity: Identity, present: Identity | None = None) -> tuple[str, Identity]:
        """Return the value of a new cookie, and the identity that it stands for. See ``Sessions.begin``.

        *present*: the identity of the browser's present session. The new cookie continues that session: when the
        session ends, everything that the browser has opened ends. The cookie never continues somebody else's session,
        because that user could end it, too.

        Raises:
            UnauthorizedError: the identity is not that of a bearer token. A session cannot begin another session, and
                so live for ever.
        """
        assert self._sessions is not None, "only then there is the endpoint"
        if identity.every_role and self._bearer.token is not None:
            # Not that of the file now, which may just have changed: a token that was replaced would begin a session of
            # the token that has replaced it.
            identity = replace(identity, credential=self._bearer.token.last_digest)
        if identity.session is not None or not (identity.credential or identity.signed_by):
            raise UnauthorizedError(
                "a session begins with a bearer token; send the header 'Authorization: Bearer <token>'"
            )
        same = present is not None and present.name == identity.name
        return self._sessions.begin(identity, present.session if present is not None and same else None)

    def end_session(self, session: Session, *, counts: bool = True) -> None:
        """End a session: its cookie is refused from now on, and requests that wait are refused when they go on."""
        assert self._sessions is not None, "only then there are sessions"
        self._sessions.end(session, counts=counts)
        self.generation += 1

    def session_counts(self) -> tuple[int, int]:
        """Return the numbers of the sessions that have begun, and that were ended, in this process."""
        return (0, 0) if self._sessions is None else (self._sessions.started, self._sessions.ended)

    # --- what ---------------------------------------------------------------------------------------------------------

    def authorize(self, identity: Identity, ranges: Sequence[KeyRange], *, keys_only: bool = False) -> None:
        """Check that *identity* may read all of *ranges*, or their keys if *keys_only*.

        Raises:
            BadRequestError: one of the ranges is a prefix that is too short.
            ForbiddenError: one of the ranges is not permitted. The text names the range, and nothing of what exists.
        """
        self.check_length(ranges)
        self.check_fence(ranges)
        if self._policy is None:
            return
        grants = self.grants(identity)
        for asked in ranges:
            if grants.permit(asked, keys_only=keys_only):
                continue
            if grants.permit(asked, keys_only=True):
                detail = f"only the keys of {asked} may be read by {identity.name}; ask for keys_only=1"
                if asked.kind == "key":  # and /v1/kv refuses keys_only=1 with a single key
                    detail += ", at /v1/kv with prefix= or several keys"
            else:
                detail = _denied(identity, asked)
            raise self._forbidden(detail, asked.kind)

    def check_length(self, ranges: Sequence[KeyRange]) -> None:
        """Check that no prefix among *ranges* is too short. Raises BadRequestError if one is."""
        for asked in ranges:
            if asked.kind == "prefix" and len(asked.name) < self._min_prefix:
                raise BadRequestError(
                    f"{asked} is too short: a prefix must have at least {self._min_prefix} bytes; ask for a narrower "
                    "range",
                    code="prefix-too-short",
                    parameter="prefix",
                )

    def permitted(self, identity: Identity, ranges: Sequence[KeyRange], *, keys_only: bool = False) -> Ranges:
        """Return the parts of *ranges* that *identity* may read: ``scope=permitted``.

        Raises:
            ForbiddenError: *identity* may read none of them.
            BadRequestError: there are too many parts for one request.
        """
        left = self.grants(identity).permitted(ranges, keys_only=keys_only)
        if not left:
            raise self._forbidden(_denied(identity, *ranges), ranges[0].kind)
        if len(left) > MOST_RANGES:
            raise BadRequestError(
                f"{identity.name} may read {len(left)} separate ranges of what is requested; one request can have "
                f"{MOST_RANGES}: ask for narrower ranges",
                code="selection-too-wide",
                parameter=ranges[0].kind,
            )
        self.check_length(left)
        return bounded(left)

    def may_end(self, identity: Identity) -> bool:
        """Whether the permission of *identity* may end during a request. If not, nothing checks it again."""
        return self.guarded or identity.session is not None

    def admit(self, identity: Identity, ranges: Ranges, *, keys_only: bool = False) -> Permit:
        """Return the permit of *identity* for all of *ranges*. Equal requests share one permit.

        Raises:
            as ``authorize``.
        """
        asked = (identity, ranges, keys_only)
        permit = self._permits.get(asked)
        # A JWT that has expired is accepted for a while, and then its permit ends later.
        over = permit is not None and permit.expires is not None and permit.expires <= self.wall()
        if permit is None or over or permit.generation != self.generation:
            self.authorize(identity, ranges, keys_only=keys_only)
            permit = self.permit(identity, ranges, ranges, keys_only=keys_only)
            _remember(self._permits, asked, permit)
        return permit

    def permit(
        self,
        identity: Identity,
        asked: Ranges,
        ranges: Ranges,
        *,
        keys_only: bool = False,
        permitted_only: bool = False,
    ) -> Permit:
        """Return the permit for *ranges*, which have just been authorized. *permitted_only*: ``scope=permitted``."""
        expires = identity.ends_at(self.wall())
        return Permit(identity, asked, ranges, keys_only, permitted_only, self, expires, self.generation)

    def check_fence(self, ranges: Sequence[KeyRange]) -> None:
        """Check that the gateway serves all of *ranges*, whoever asks. Raises ForbiddenError if it does not."""
        for asked in ranges:
            if not asked.within(self._fence):
                outside = f"{asked} is outside the prefixes that this gateway serves"
                raise self._forbidden(f"{outside}; GET /v1/access lists what may be read", asked.kind)

    @property
    def admits_anonymous(self) -> bool:
        """Whether requests without credentials are admitted now."""
        if self.guarded:
            return self._policy is not None and bool(self._policy.value.anonymous)
        return not self.has_static_token

    @property
    def has_static_token(self) -> bool:
        """Whether the gateway has a static token."""
        return self._bearer.token is not None

    def check_operator(self, identity: Identity) -> None:
        """Check that *identity* may see metrics and feeds. Raises ForbiddenError if it may not."""
        if self.guarded and not identity.every_role and OPERATOR not in self.roles_of(identity):
            raise self._forbidden(f"{identity.name} does not have the role {OPERATOR!r}, which this path needs")

    def _forbidden(self, detail: str, parameter: str | None = None) -> ForbiddenError:
        error = ForbiddenError(detail, parameter=parameter)
        if self.guarded:
            error.headers = INSUFFICIENT_SCOPE
        return error

    def roles_of(self, identity: Identity) -> frozenset[str]:
        """Return the roles that *identity* has now."""
        return self._policy.value.roles_of(identity) if self._policy is not None else identity.roles

    def grants(self, identity: Identity) -> Grants:
        """Return what *identity* may read now."""
        grants = self._grants.get(identity)
        if grants is None:
            everything = Grants((KeyRange("prefix", b""),))
            grants = self._policy.value.grants(identity) if self._policy is not None else everything
            grants = grants.within(self._fence)
            if len(self._grants) >= MAX_REMEMBERED:
                self._grants.clear()
            self._grants[identity] = grants
        return grants

    def rule(self, identity: Identity, ranges: Ranges, *, keys_only: bool = False) -> str:
        """Return what permits the read, for the audit log: roles, or the fence if there is no policy."""
        if self._policy is None:
            return "fence"
        asked = (identity, ranges, keys_only)
        rule = self._deciding.get(asked)
        if rule is None:
            rule = ",".join(self._policy.value.deciding(identity, ranges, keys_only=keys_only))
            _remember(self._deciding, asked, rule)
        return rule

    def current(self, identity: Identity) -> Identity | None:
        """Return the identity as it is now; None if its credentials, or its session's cookie, would be refused now.

        See ``Bearer.current``.
        """
        found, session = self._bearer.current(identity), identity.session
        if found is None or session is None:
            return found
        if self._sessions is None or not self._sessions.holds(session):
            return None
        expires = session.expires if found.expires is None else min(session.expires, found.expires)
        return replace(found, expires=expires, leeway=0.0, session=session)

    # --- files --------------------------------------------------------------------------------------------------------

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call *listener* after each change of a file or of the issuer's keys: who may read what may have changed."""
        self._listeners.append(listener)

    def _changed(self) -> None:
        self.generation += 1
        self._grants.clear()
        self._deciding.clear()
        self._permits.clear()
        for listener in self._listeners:
            listener()

    async def reload(self) -> dict[str, Outcome]:
        """Read everything now. Return the outcomes, by the names of the settings."""
        outcomes = {source.setting: await source.look() for source in self._others}
        found = await poll_together(self._files, at_once=True)
        outcomes |= {file.setting: outcome for file, outcome in zip(self._files, found, strict=True)}
        if self._bearer.token is not None:
            outcomes["token"] = self._bearer.token.look()
        return outcomes

    @property
    def token_unusable(self) -> bool:
        """Whether the file of the static token cannot be used now."""
        return self._bearer.token is not None and not self._bearer.token.usable

    @property
    def contents(self) -> dict[str, bytes]:
        """What is in use now of everything that is read again, by the names of the settings."""
        found = {setting: data for source in self._sources for setting, data in source.contents.items()}
        if self._bearer.token is not None:
            found["token_file"] = self._bearer.token.content
        return found

    def troubles(self) -> dict[str, str]:
        """Return what is wrong with each source now, by the names of the settings.

        The text is empty if nothing is wrong, or if the setting is not set.
        """
        return dict.fromkeys(SOURCES, "") | {source.setting: source.trouble for source in self._sources}

    @property
    def ready(self) -> bool:
        """Whether everything that clients' credentials are compared with has been read once."""
        return all(source.ready for source in self._sources)

    async def run(self) -> None:
        """Read the files again when they change, and fetch the issuer's keys. Runs for ever."""
        read_again = [source.run() for source in self._others]
        if self._bearer.token is not None:
            read_again.append(self._bearer.token.run())
        await asyncio.gather(run_together(self._files), *read_again)


def _remember(known: dict[Asked, T], asked: Asked, value: T) -> None:
    """Keep *value*, unless the selection is long. Clients choose both the number and the length of selections."""
    _, ranges, _ = asked
    if sum(len(one.name) + RANGE for one in ranges) > LONGEST_REMEMBERED:
        return
    if len(known) >= MAX_REMEMBERED:
        known.clear()
    known[asked] = value


def _denied(identity: Identity, *ranges: KeyRange) -> str:
    named = ", ".join(map(str, ranges))
    return f"{named} may not be read by {identity.name}; GET /v1/access lists what may be read"


def _refuse_two(sent: Sequence[bytes]) -> None:
    """Refuse two Authorization headers: a proxy may look at the other one."""
    if len(sent) > 1:
        raise BadRequestError("the request has two Authorization headers; send one", code="conflicting-credentials")
