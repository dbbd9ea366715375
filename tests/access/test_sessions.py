"""Browsers' sessions: whom a cookie stands for and until when, and every way to forge one."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwe, jws
from joserfc.jwk import OctKey

from app.access import sessions as module
from app.access.bearer import Bearer
from app.access.control import AccessControl
from app.access.cookie import COOKIE, MAX_COOKIE
from app.access.identity import STATIC_TOKEN, Identity, make_identity
from app.access.permit import Permit
from app.access.sessions import LIFETIME, MAX_KEY_FILE, MOST_KEYS, SessionKeys, Sessions, keys_parser
from app.access.token import LOOK, Token
from app.access.tokens import parse_tokens
from app.core.errors import BadRequestError, IssuerUnavailableError, UnauthorizedError
from app.file_watch import FileError, WatchedFile
from tests.access.test_bearer import FakeJwt, entry
from tests.access.test_control import BEARER, SVC, encoded

OLD, NEW = "an old key of more than 32 bytes!", "a new key, of more than 32 bytes!"
PEER = "10.0.0.1"
DASH = "dash-token"
ALICE = make_identity(
    "jwt", "alice", issuer="i", roles=frozenset({"a", "b"}), claims={"team": "x"}, expires=5000.0, leeway=30,
    signed_by="good",
)  # fmt: skip


class World:
    """An access control with sessions, a tokens file, a static token and JWTs."""

    def __init__(self, folder: Path, *keys: str, purpose: tuple[str, ...] = (), guarded: bool = True) -> None:
        self.now = 1000.0
        self.tokens_path, self.keys_path = folder / "tokens.yaml", folder / "keys"
        self.token_path = folder / "token"
        self.token_path.write_text("static")
        self.list_tokens("dash-token")
        self.write(*(keys or (NEW, OLD)))
        tokens = WatchedFile(self.tokens_path, "tokens_file", parse_tokens, 4096)
        self.keys: WatchedFile[SessionKeys] = WatchedFile(
            self.keys_path, "session_key_file", keys_parser(purpose), MAX_KEY_FILE
        )
        self.token = Token(self.token_path, "GATEWAY_TOKEN_FILE", clock=lambda: 0.0)
        self.sessions = Sessions(self.keys, wall=lambda: self.now)
        self.control = AccessControl(
            [b""],
            Bearer(self.token, tokens, FakeJwt(), wall=lambda: self.now),
            sessions=self.sessions,
            guarded=guarded,
            sources=[tokens, self.keys],
        )

    def list_tokens(self, token: str, more: str = "") -> None:
        """Write the tokens file: one token of ``dash``."""
        self.tokens_path.write_text(f"tokens: [{entry('dash', token, ', roles: [reader]' + more)}]")

    def write(self, *keys: str) -> None:
        """Write the keys' file."""
        self.keys_path.write_text("\n".join(keys) + "\n")

    async def begin(self, token: str = DASH) -> tuple[str, Identity]:
        """Begin a session with a bearer token."""
        identity = await self.control.authenticate(encoded(("authorization", f"Bearer {token}")), PEER)
        return self.control.begin_session(identity)

    async def who(self, cookie: str | bytes, *headers: tuple[str, str]) -> Identity:
        """The identity that sends a cookie, and these headers."""
        value = cookie.encode() if isinstance(cookie, str) else cookie
        sent = [*encoded(*headers), (b"cookie", COOKIE.encode() + b"=" + value)]
        return await self.control.authenticate(sent, PEER)

    async def refused(self, cookie: str | bytes) -> str:
        """Why a cookie is refused: never with a word of the cookie."""
        with pytest.raises(UnauthorizedError) as caught:
            await self.who(cookie)
        assert caught.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        assert caught.value.__cause__ is None
        return caught.value.detail


@pytest.fixture(name="world")
def _world(tmp_path: Path) -> World:
    return World(tmp_path)


# --- whom a cookie stands for, and until when -------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["dash-token", "a.b.c", "static"])
async def test_the_same_identity(world: World, token: str) -> None:
    """The cookie's identity is that of the token, for 15 minutes; a replica with the same keys accepts it."""
    bearer = await world.control.authenticate(encoded(("authorization", f"Bearer {token}")), PEER)
    cookie, begun = await world.begin(token)
    again = await world.who(cookie)
    elsewhere = await World(world.keys_path.parent).who(cookie)

    assert again == begun == elsewhere
    assert again.session is not None
    assert again.expires == world.now + LIFETIME
    plain = replace(again, session=None, expires=None, credential=bearer.credential)
    assert plain == bearer


def test_everything_of_a_jwt(world: World) -> None:
    """Roles, claims and the signing key go with the cookie; the policy and the audit log see what they would have."""
    cookie, begun = world.control.begin_session(ALICE)
    opened = world.sessions.identity_of(cookie.encode())

    assert opened == begun
    assert replace(opened, session=None, leeway=30, expires=5000.0) == ALICE


async def test_nobody_can_read_the_cookie(world: World) -> None:
    """Not even the hash of the token: whoever steals the cookie could otherwise try weak tokens against it."""
    cookie, identity = await world.begin()
    parts = [urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in cookie.split(".")]

    assert json.loads(parts[0]).keys() == {"alg", "enc", "kid", "typ"}
    for secret in (b"dash", identity.credential, identity.credential.hex().encode(), b"reader"):
        assert not any(secret in part for part in parts)


@pytest.mark.parametrize(
    ("expires", "ends"), [(None, 1900.0), (5000.0, 1900.0), (1899.5, 1899.5), (1200.0, 1200.0), (990.0, 1020.0)]
)
async def test_a_session_never_outlives_its_token(world: World, expires: float | None, ends: float) -> None:
    """15 minutes, or what is left of the token: of a JWT in its leeway, the rest of the leeway."""
    cookie, begun = world.control.begin_session(replace(ALICE, expires=expires))
    world.now = ends - 0.1
    assert (await world.who(cookie)).expires == begun.expires == ends
    world.now = ends

    assert "has ended" in await world.refused(cookie)


async def test_a_session_begins_with_a_bearer_alone(world: World) -> None:
    """Not with a cookie: a session would live for ever. Not without credentials, and not with a proxy's user."""
    cookie, begun = await world.begin()
    for identity in (begun, await world.who(cookie), make_identity("proxy", "pam"), Identity("anonymous")):
        with pytest.raises(UnauthorizedError, match="begins with a bearer token"):
            world.control.begin_session(identity)


async def test_a_bearer_beats_the_cookie(world: World) -> None:
    """Also a wrong one: it is refused, and the cookie does not help."""
    cookie, _begun = await world.begin("static")

    assert (await world.who(cookie, BEARER)).name == "token:dash"
    with pytest.raises(UnauthorizedError, match="bearer token is wrong"):
        await world.who(cookie, ("authorization", "Bearer wrong"))


async def test_the_static_token_is_replaced_while_a_session_begins(world: World) -> None:
    """The session is of the token that was sent. The file used to be looked at in between, and an old token got a
    session of the new one.
    """
    now = 0.0

    def clock() -> float:  # each question takes a moment
        nonlocal now
        now += 0.01
        return now

    world.token = world.control._bearer.token = Token(world.token_path, "GATEWAY_TOKEN_FILE", clock=clock)
    now += LOOK - 0.015
    world.token_path.write_text("rotated")
    cookie, _begun = await world.begin("static")
    world.token.look()

    assert "has ended" in await world.refused(cookie)


async def test_beside_the_static_token_alone(tmp_path: Path) -> None:
    """Sessions do not close the metrics to anybody, and what the cookie opens still ends."""
    world = World(tmp_path, guarded=False)
    cookie, _begun = await world.begin("static")
    identity = await world.who(cookie)

    assert identity.name == STATIC_TOKEN.name
    assert world.control.may_end(identity)
    assert not world.control.may_end(STATIC_TOKEN)
    world.control.check_operator(identity)
    for headers in ([], [(b"cookie", b"other=1")], [(b"authorization", b"Bearer wrong")]):
        with pytest.raises(UnauthorizedError, match="missing or wrong"):
            await world.control.authenticate(headers, PEER)
    world.token_path.write_text("rotated")
    world.token.look()
    with pytest.raises(UnauthorizedError, match="has ended"):
        await world.who(cookie)


def test_too_much_for_a_cookie(world: World) -> None:
    """Browsers drop a longer cookie without a word. So the request is refused, and says what to do instead."""
    name, room = len(COOKIE) + 1, MAX_COOKIE
    sizes: list[int] = []

    def add_roles() -> None:
        while len(sizes) < 200:
            roles = frozenset(f"a-role-with-a-long-name-{one:04}" for one in range(len(sizes)))
            sizes.append(name + len(world.control.begin_session(replace(ALICE, roles=roles))[0]))

    with pytest.raises(BadRequestError, match="send the token in the Authorization header instead") as caught:
        add_roles()
    assert caught.value.code == "session-too-large"
    assert room - 100 < sizes[-1] <= room
    assert len(sizes) > 70


# --- what ends a session ----------------------------------------------------------------------------------------------


def opened(world: World, identity: Identity) -> Permit:
    """The permit of a stream that the identity has opened."""
    return world.control.permit(identity, (SVC,), (SVC,))


async def test_the_end(world: World) -> None:
    """The cookie is refused from then on, in this process; so are requests that wait. Another session goes on."""
    cookie, begun = await world.begin()
    other, _ = await world.begin()
    permit = opened(world, await world.who(cookie))
    assert begun.session is not None
    assert permit.session == begun.session.id
    world.control.end_session(begun.session)

    assert "has ended" in await world.refused(cookie)
    assert permit.renewed() == "revoked"
    with pytest.raises(UnauthorizedError):
        permit.check()
    await world.who(other)
    elsewhere = World(world.keys_path.parent)
    await elsewhere.who(cookie)  # what a cookie without a shared store cannot promise
    elsewhere.now = 1000 + LIFETIME
    assert "has ended" in await elsewhere.refused(cookie)


async def test_ended_sessions_are_remembered_until_they_would_expire(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no longer, and only so many: then the one that was ended first gives way."""
    monkeypatch.setattr(module, "MOST_ENDED", 3)
    begun = [(await world.begin())[1].session for _ in range(5)]
    for session in (*begun[:3], begun[2]):
        assert session is not None
        world.control.end_session(session)
    assert world.control.session_counts() == (5, 3)
    for session in begun[3:]:
        assert session is not None
        world.control.end_session(session)
    assert [world.sessions.holds(session) for session in begun if session] == [True, True, False, False, False]
    world.now += LIFETIME
    late = (await world.begin())[1].session
    assert late is not None
    world.control.end_session(late)

    assert len(world.sessions._ended) == 1


async def test_a_token_is_taken_away(world: World) -> None:
    """What ends the token's streams ends those of the session, at the same reload; a role is gone at once."""
    cookie, _ = await world.begin()
    permit = opened(world, await world.who(cookie))
    world.list_tokens("dash-token", ", expires: 1970-01-01T00:20:00Z")
    await world.control.reload()
    renewed = permit.renewed()
    assert isinstance(renewed, Permit)
    assert (renewed.expires, (await world.who(cookie)).expires) == (1200.0, 1200.0)
    assert renewed.session == permit.session
    world.list_tokens("another")
    await world.control.reload()

    assert permit.renewed() == "revoked"
    assert "has ended" in await world.refused(cookie)


async def test_the_issuers_key_is_withdrawn(world: World) -> None:
    """The session of a JWT ends with the key that has signed the JWT."""
    cookie, begun = world.control.begin_session(ALICE)
    withdrawn, gone = world.control.begin_session(replace(ALICE, signed_by="withdrawn"))

    assert world.control.current(begun) == begun
    assert world.control.current(gone) is None
    await world.who(cookie)
    assert "has ended" in await world.refused(withdrawn)


async def test_a_session_can_be_ended_while_its_token_is_away(world: World) -> None:
    """Otherwise the cookie would be good again as soon as the token is listed again."""
    cookie, _ = await world.begin()
    world.list_tokens("another")
    await world.control.reload()
    sent = [(b"cookie", COOKIE.encode() + b"=" + cookie.encode())]
    found = world.control.opened_session(sent)
    assert found is not None
    assert found.session is not None
    world.control.end_session(found.session)
    world.list_tokens("dash-token")
    await world.control.reload()

    assert "has ended" in await world.refused(cookie)
    assert world.control.opened_session(sent) is None
    assert world.control.opened_session([]) is None


async def test_before_the_issuers_keys_are_known(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows yet whether the session of a JWT is good, and no client must be told that it is not."""
    cookie, _ = world.control.begin_session(replace(ALICE, signed_by="not known yet"))
    monkeypatch.setattr(AccessControl, "ready", property(lambda _self: False))
    with pytest.raises(IssuerUnavailableError):
        await world.who(cookie)


def test_a_claim_that_is_not_text(world: World) -> None:
    """A claim may hold half of a surrogate pair. No policy can match it, and a cookie cannot hold it."""
    identity = replace(ALICE, claims=(*ALICE.claims, ("name", "\ud800")))
    cookie, _ = world.control.begin_session(identity)
    assert world.sessions.identity_of(cookie.encode()).claims == ALICE.claims


# --- the keys ---------------------------------------------------------------------------------------------------------


async def test_the_keys_are_rotated(world: World) -> None:
    """The first key seals; every key opens; a session ends with its key, and a stream with the session."""
    world.write(OLD)
    await world.control.reload()
    first, _ = await world.begin()
    permit = opened(world, await world.who(first))
    world.write(OLD, NEW)  # the new key opens everywhere before it seals anywhere
    await world.control.reload()
    assert (await world.begin())[1].session.sealed_by == permit.identity.session.sealed_by  # type: ignore[union-attr]  # both have one
    world.write(NEW, OLD)
    await world.control.reload()
    second, sealed = await world.begin()
    assert sealed.session.sealed_by != permit.identity.session.sealed_by  # type: ignore[union-attr]  # as above
    await world.who(first)
    assert isinstance(permit.renewed(), Permit)
    world.write(NEW)
    await world.control.reload()

    assert permit.renewed() == "revoked"
    assert "not accepted" in await world.refused(first)
    await world.who(second)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "has no key"),
        (b"\n \n", "has no key"),
        (b"x" * 31, "line 1 has 31 bytes"),
        (b"x" * 32 + b"\n" + b"short-secret", "line 2 has 12 bytes"),
        (b"x" * 32 + b"\r\n\n" + b"x" * 32 + b" ", "line 3 repeats a key"),
        (b"-----BEGIN PRIVATE KEY-----\n", "a key of another kind"),
        (b"\n".join(b"%032d" % number for number in range(MOST_KEYS + 1)), "has 17 keys"),
    ],
)
def test_a_file_that_holds_no_keys(data: bytes, why: str) -> None:
    """The fault names the line, and nothing of what may be a key."""
    with pytest.raises(FileError, match=why) as caught:
        keys_parser(())(data)
    assert "short-secret" not in str(caught.value)


def test_keys_of_any_bytes() -> None:
    """The order of the lines is the order of the keys; blank lines and a missing line end do not matter."""
    one = keys_parser(())(b"\xff" * 32 + b"\n\n" + b"b" * 40)
    other = keys_parser(())(b"b" * 40 + b"\r\n" + b"\xff" * 32 + b"\n")

    assert list(one.keys) == list(other.keys)[::-1]
    assert one.newest[0] != other.newest[0]


# --- attacks ----------------------------------------------------------------------------------------------------------


async def test_another_key(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cookie of a gateway with another key, or with the same key and another issuer or audience, is refused."""
    for keys, purpose in (([OLD + "x"], ()), ([NEW, OLD], ("https://id.example",)), ([NEW, OLD], ("", "a"))):
        other = World(tmp_path_factory.mktemp("other"), *keys, purpose=purpose)
        cookie, _ = await other.begin()
        await other.who(cookie)
        assert "not accepted" in await world.refused(cookie)


@given(st.data())
def test_any_change_of_a_cookie(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Truncated, longer, with another byte, or with parts of another good cookie: refused."""
    world = World(tmp_path_factory.mktemp("session"))
    good, other = (world.control.begin_session(one)[0] for one in (ALICE, replace(ALICE, name="jwt:i#bob")))
    kind = data.draw(st.sampled_from(["cut", "add", "byte", "part"]))
    place = data.draw(st.integers(0, len(good) - 1))
    if kind == "cut":
        changed = good[:place]
    elif kind == "add":
        changed = good[:place] + data.draw(st.text("abcABC019-_.", min_size=1, max_size=3)) + good[place:]
    elif kind == "byte":
        changed = good[:place] + data.draw(st.characters(codec="latin-1")) + good[place + 1 :]
    else:
        parts, others = good.split("."), other.split(".")
        index = data.draw(st.sampled_from([2, 3, 4]))
        parts[index] = others[index]
        changed = ".".join(parts)
    if _bytes(changed) == _bytes(good):
        return
    with pytest.raises(UnauthorizedError):
        world.sessions.identity_of(changed.encode("latin-1"))


def _bytes(cookie: str) -> list[bytes | str]:
    """The parts of a cookie. The last character of base64 may have bits that mean nothing."""
    try:
        return [urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in cookie.split(".")]
    except ValueError:
        return [cookie]


CLAIMS = {
    "sid": "a", "exp": 9e9, "name": "static-token", "roles": [], "claims": [], "every_role": True, "credential": "",
    "signed_by": "",
}  # fmt: skip


def forged(world: World) -> list[str | bytes]:
    """Cookies that claim to be the static token's, and other things that are not cookies."""
    kid, _key = world.keys.value.newest
    own = OctKey.import_key(b"k" * 32)
    text = json.dumps(CLAIMS)
    none = ".".join(urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in ('{"alg":"none"}', text)) + "."
    header = {"alg": "dir", "enc": "A256GCM"}
    return [
        none,
        jws.serialize_compact({"alg": "HS256", "kid": kid}, text, own),
        jwe.encrypt_compact({**header, "kid": kid}, text, own),
        jwe.encrypt_compact({**header, "kid": "unknown"}, text, own),
        jwe.encrypt_compact(header, text, own),
        f"{_b64({**header, 'kid': ['x']})}..AAAAAAAAAAAAAAAA.AAAA.AAAAAAAAAAAAAAAAAAAAAA",
        # PBES2 with this count would take hours.
        f"{_b64({'alg': 'PBES2-HS256+A128KW', 'enc': 'A128CBC-HS256', 'kid': kid, 'p2s': 'AA', 'p2c': 2**31})}.A.A.A.A",
        f"{_b64({**header, 'kid': kid, 'crit': ['x'], 'zip': 'DEF'})}....",
        *("", ".", "....", "a" * 100_000, "\x00", '"', b"\xff" * 50, "e30.e30.e30.e30.e30", "null", "dash-token"),
    ]


def _b64(header: object) -> str:
    return urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")


async def test_forged_cookies(world: World) -> None:
    """Other algorithms, own keys, no key, and anything else are a 401: never anonymous, and never a 500."""
    for cookie in forged(world):
        assert "not accepted" in await world.refused(cookie), cookie
    assert world.sessions.started == 0


def test_sealed_by_us_for_something_else(world: World) -> None:
    """What is sealed with the right key, and is not a session, is refused like everything else."""
    kid, key = world.keys.value.newest
    for text in ("[]", "7", '{"sid":"a"}', json.dumps({**CLAIMS, "credential": "zz"}), "not json"):
        cookie = jwe.encrypt_compact({"alg": "dir", "enc": "A256GCM", "kid": kid}, text, key)
        with pytest.raises(UnauthorizedError):
            world.sessions.identity_of(cookie.encode())


async def test_a_session_that_another_worker_ends_counts_there(world: World) -> None:
    """It is over here, too, and one session that ends is one in the sum of all workers."""
    _value, identity = world.sessions.begin(make_identity("token", "a"))
    assert identity.session is not None
    world.sessions.end(identity.session, counts=False)
    assert not world.sessions.holds(identity.session)
    assert world.sessions.ended == 0
