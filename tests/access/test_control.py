"""Access control: how modes combine, what a refusal says, and what a reload means for a stream that is open."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from app.access.bearer import Bearer
from app.access.control import AccessControl
from app.access.identity import ANONYMOUS, STATIC_TOKEN
from app.access.permit import Permit
from app.access.policy import Policy
from app.access.policy_file import parse_policy
from app.access.proxy import TrustedProxy
from app.access.token import Token
from app.access.tokens import parse_tokens
from app.core.errors import BadRequestError, ForbiddenError, GatewayError, UnauthorizedError
from app.core.keys import KeyRange
from app.file_watch import WatchedFile
from tests.support.waiting import soon

PEER = "10.0.0.1"
SVC, OTHER = KeyRange("prefix", b"/svc/"), KeyRange("prefix", b"/other/")
POLICY = """
roles: {reader: {read: [/svc/], keys_only: [/audit/]}, public: {read: [/public/]}}
bindings: [{identity: "proxy:alice", roles: [reader, operator]}]
anonymous: [public]
"""


class World:
    """An access control with files in a folder."""

    def __init__(self, folder: Path, *, policy: str | None = None, static: bool = False, fence: bytes = b"") -> None:
        self.now = 100.0
        self.policy_path, self.tokens_path = folder / "policy.yaml", folder / "tokens.yaml"
        self.write(token="dash-token", more="roles: [reader]")
        token = None
        if static:
            (folder / "token").write_text("static")
            token = Token(folder / "token", "GATEWAY_TOKEN_FILE", clock=lambda: 0.0)
        tokens = WatchedFile(self.tokens_path, "tokens_file", parse_tokens, 4096)
        found: WatchedFile[Policy] | None = None
        if policy is not None:
            self.policy_path.write_text(policy)
            found = WatchedFile(self.policy_path, "policy_file", parse_policy, 4096)
        self.control = AccessControl(
            [fence],
            Bearer(token, tokens, wall=lambda: self.now),
            proxy=TrustedProxy("X-User", "X-Roles", ["10.0.0.0/24"]),
            policy=found,
            guarded=True,
            sources=[file for file in (tokens, found) if file is not None],
        )

    def write(self, *, token: str, more: str) -> None:
        """Write the tokens file: one token of ``dash``."""
        digest = sha256(token.encode()).hexdigest()
        self.tokens_path.write_text(f"tokens: [{{name: dash, sha256: {digest}, {more}}}]")

    async def who(self, *headers: tuple[str, str], peer: str | None = PEER) -> str:
        """The name of the identity that sends these headers."""
        return (await self.control.authenticate(encoded(*headers), peer)).name


def encoded(*headers: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI has them."""
    return [(name.encode(), value.encode()) for name, value in headers]


BEARER = ("authorization", "Bearer dash-token")
USER = ("x-user", "alice")


# --- without a mode, and with the static token alone ------------------------------------------------------------------


async def test_without_a_mode_any_header_will_do() -> None:
    """Without access control any Authorization header is accepted: a proxy in front may send its own."""
    control = AccessControl([b""], Bearer(wall=lambda: 0.0))

    for headers in ([], encoded(("authorization", "Bearer whatever")), encoded(("authorization", "Basic x"))):
        assert await control.authenticate(headers, None) == ANONYMOUS
    control.check_operator(ANONYMOUS)


@pytest.fixture(name="static")
def _static(tmp_path: Path) -> AccessControl:
    (tmp_path / "token").write_bytes(b"s3cret\xa0\n")
    token = Token(tmp_path / "token", "GATEWAY_TOKEN_FILE", clock=lambda: 0.0)
    return AccessControl([b"/svc/"], Bearer(token, wall=lambda: 0.0))


@pytest.mark.parametrize("value", [b"Bearer s3cret\xa0", b"bearer s3cret\xa0", b"BEARER   s3cret\xa0\t "])
async def test_the_static_token(static: AccessControl, value: bytes) -> None:
    """The case of the scheme, and spaces and tabs around the token, do not matter."""
    assert await static.authenticate([(b"authorization", value)], None) == STATIC_TOKEN


WRONG = [b"", b"Bearer", b"Bearer ", b"s3cret\xa0", b"Basic s3cret\xa0", b"Bearer s3cret", b"Bearer S3CRET\xa0"]


@pytest.mark.parametrize("value", [*WRONG, None])
async def test_a_wrong_static_token(static: AccessControl, value: bytes | None) -> None:
    """A wrong token is refused with the scheme to use, as before there were other modes."""
    with pytest.raises(UnauthorizedError, match="Authorization: Bearer <token>") as caught:
        await static.authenticate([(b"authorization", value)] if value is not None else [], None)

    assert "s3cret" not in str(caught.value)
    assert caught.value.headers == {}


def test_the_fence_alone(static: AccessControl) -> None:
    """A range that is partly outside is refused; the error names the range and the parameter, and no scope."""
    static.authorize(STATIC_TOKEN, [SVC, KeyRange("key", b"/svc/a")])
    for outside in (KeyRange("prefix", b""), KeyRange("prefix", b"/svc"), KeyRange("key", b"/svc"), OTHER):
        with pytest.raises(ForbiddenError, match="is outside the prefixes that this gateway serves") as caught:
            static.authorize(STATIC_TOKEN, [SVC, outside])
        assert caught.value.parameter == outside.kind
        assert caught.value.headers == {}


# --- who --------------------------------------------------------------------------------------------------------------


async def test_each_mode(tmp_path: Path) -> None:
    """Each mode names its identities in its own namespace, whatever the header's spelling."""
    world = World(tmp_path, policy=POLICY, static=True)

    assert await world.who(BEARER) == "token:dash"
    assert await world.who(("authorization", "Bearer static")) == "static-token"
    assert await world.who(USER) == "proxy:alice"
    assert await world.who(USER, peer="192.0.2.1") == "anonymous"
    assert await world.who(USER, BEARER, peer="192.0.2.1") == "token:dash"
    assert await world.who() == "anonymous"


async def test_a_bearer_beside_a_proxys_user(tmp_path: Path) -> None:
    """A token and a proxy's user in one request are two answers to one question, even if the token is wrong."""
    world = World(tmp_path)
    for bearer in ("Bearer dash-token", "bearer x", "Bearer"):
        with pytest.raises(BadRequestError) as caught:
            await world.who(USER, ("authorization", bearer))
        assert caught.value.code == "conflicting-credentials"

    assert await world.who(USER, ("authorization", "Basic YTpi")) == "proxy:alice"  # what the proxy itself has checked


async def test_two_tokens(tmp_path: Path) -> None:
    """Two Authorization headers are refused: a proxy may look at the other one."""
    world = World(tmp_path)
    for second in (BEARER, ("authorization", "Bearer x"), ("authorization", "")):
        with pytest.raises(BadRequestError) as caught:
            await world.who(BEARER, second)
        assert caught.value.code == "conflicting-credentials"


async def test_two_static_tokens(static: AccessControl) -> None:
    """The same holds for the static token alone, whichever header is right."""
    right, wrong = (b"authorization", b"Bearer s3cret\xa0"), (b"authorization", b"Bearer x")
    for sent in ([right, right], [right, wrong], [wrong, right]):
        with pytest.raises(BadRequestError) as caught:
            await static.authenticate(sent, None)
        assert caught.value.code == "conflicting-credentials"


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer wrong")],
        [("authorization", "")],
        [("authorization", "Basic YTpi")],
        [("authorization", "Bearer a.b.c")],
        [("x-user", "")],
    ],
)
async def test_a_bad_credential_is_never_anonymous(tmp_path: Path, headers: list[tuple[str, str]]) -> None:
    """Although anonymous requests are allowed, bad credentials are refused, with RFC 6750's error."""
    with pytest.raises(UnauthorizedError) as caught:
        await World(tmp_path, policy=POLICY).who(*headers)

    assert caught.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}


async def test_no_credentials(tmp_path: Path) -> None:
    """Without roles for anonymous requests, credentials are required; RFC 6750 then names no error."""
    for policy in (None, "roles: {}"):
        with pytest.raises(UnauthorizedError, match="has no credentials") as caught:
            await World(tmp_path, policy=policy).who()
        assert caught.value.headers == {}


async def test_an_expired_token(tmp_path: Path) -> None:
    """A token is refused from the second at which it expires."""
    world = World(tmp_path)
    world.write(token="dash-token", more="expires: 1970-01-01T00:01:41Z")
    await world.control.reload()
    assert (await world.control.authenticate(encoded(BEARER), None)).expires == 101
    world.now = 101

    with pytest.raises(UnauthorizedError, match="has expired"):
        await world.who(BEARER)


# --- what -------------------------------------------------------------------------------------------------------------


async def refusal(
    control: AccessControl, *headers: tuple[str, str], ranges: list[KeyRange], **more: Any
) -> GatewayError:
    """The refusal of a read."""
    identity = await control.authenticate(encoded(*headers), PEER)
    with pytest.raises(ForbiddenError) as caught:
        control.authorize(identity, ranges, **more)
    return caught.value


async def test_the_policy_and_the_fence_must_permit(tmp_path: Path) -> None:
    """What only one of the two permits is refused."""
    world = World(tmp_path, policy=POLICY, fence=b"/svc/a/")
    identity = await world.control.authenticate(encoded(BEARER), PEER)
    world.control.authorize(identity, [KeyRange("prefix", b"/svc/a/")])

    assert "outside the prefixes" in str(await refusal(world.control, BEARER, ranges=[SVC]))
    assert "may not be read" in str(await refusal(world.control, ranges=[KeyRange("prefix", b"/svc/a/")]))
    assert world.control.grants(identity).read == (KeyRange("prefix", b"/svc/a/"),)


async def test_a_refusal_names_the_range_and_nothing_else(tmp_path: Path) -> None:
    """The text names the range, the identity and where to look; no role, no other range and nothing of etcd."""
    error = await refusal(World(tmp_path, policy=POLICY).control, BEARER, ranges=[SVC, OTHER])

    assert str(error) == "prefix=/other/ may not be read by token:dash; GET /v1/access lists what may be read"
    assert error.parameter == "prefix"
    assert error.headers == {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}


async def test_keys_without_values(tmp_path: Path) -> None:
    """Where the keys alone may be read, the refusal says how."""
    world, audit = World(tmp_path, policy=POLICY), KeyRange("prefix", b"/audit/")
    identity = await world.control.authenticate(encoded(BEARER), PEER)
    world.control.authorize(identity, [audit], keys_only=True)
    error = await refusal(world.control, BEARER, ranges=[audit])

    assert str(error) == "only the keys of prefix=/audit/ may be read by token:dash; ask for keys_only=1"
    single = await refusal(world.control, BEARER, ranges=[KeyRange("key", b"/audit/x")])
    assert str(single).endswith("; ask for keys_only=1, at /v1/kv with prefix= or several keys")


async def test_without_a_policy_the_fence_decides(tmp_path: Path) -> None:
    """Without a policy, every identity may read what the fence allows."""
    world = World(tmp_path, fence=b"/svc/")
    identity = await world.control.authenticate(encoded(BEARER), PEER)
    world.control.authorize(identity, [SVC])

    assert "outside" in str(await refusal(world.control, BEARER, ranges=[OTHER]))


async def test_operators(tmp_path: Path) -> None:
    """The role comes from the policy or the credentials; the static token has it; others are refused."""
    control = World(tmp_path, policy=POLICY, static=True).control
    for headers in ([USER], [("authorization", "Bearer static")], [("x-user", "bob"), ("x-roles", "operator")]):
        control.check_operator(await control.authenticate(encoded(*headers), PEER))
    for others in ([BEARER], [], [("x-user", "bob"), ("x-roles", "Operator")]):
        identity = await control.authenticate(encoded(*others), PEER)
        with pytest.raises(ForbiddenError, match="does not have the role 'operator'"):
            control.check_operator(identity)


# --- reload -----------------------------------------------------------------------------------------------------------


async def test_a_reload_changes_what_open_streams_may_read(tmp_path: Path) -> None:
    """After a change, exactly the streams that may no longer read can be told apart: by role, by token, by expiry."""
    world, changes = World(tmp_path, policy=POLICY), []
    world.control.on_change(lambda: changes.append(1))
    dash = await world.control.authenticate(encoded(BEARER), PEER)
    alice = await world.control.authenticate(encoded(USER), PEER)

    permits = [world.control.permit(identity, (SVC,), (SVC,)) for identity in (dash, alice)]

    def reading() -> list[object]:
        outcomes = [permit.renewed() for permit in permits]
        return [True if isinstance(outcome, Permit) else outcome for outcome in outcomes]

    assert reading() == [True, True]
    world.policy_path.write_text(POLICY.replace("roles: [reader, operator]", "roles: [operator]"))
    assert await world.control.reload() == {"tokens_file": "unchanged", "policy_file": "changed"}
    assert reading() == [True, "revoked"]
    world.policy_path.write_text(POLICY)
    world.write(token="dash-token", more="roles: []")
    await world.control.reload()
    assert reading() == ["revoked", True]
    world.write(token="another", more="roles: [reader]")
    await world.control.reload()
    assert reading() == ["revoked", True]
    world.write(token="dash-token", more="roles: [reader], expires: 1970-01-01T00:01:39Z")
    await world.control.reload()
    assert reading() == ["expired", True]
    assert len(changes) == world.control.generation == 5


@pytest.mark.parametrize("by", ["looks", "a signal"])
async def test_files_that_are_replaced_together(tmp_path: Path, by: str) -> None:
    """A role that is renamed in the tokens file and in the policy ends no stream: nobody sees one change alone."""
    world = World(tmp_path, policy=POLICY)
    dash = await world.control.authenticate(encoded(BEARER), PEER)
    permit = world.control.permit(dash, (SVC,), (SVC,))
    seen: list[object] = []
    world.control.on_change(lambda: seen.append(permit.renewed()))
    world.write(token="dash-token", more="roles: [viewer]")
    world.policy_path.write_text(POLICY.replace("reader", "viewer"))
    if by == "a signal":
        assert await world.control.reload() == {"tokens_file": "changed", "policy_file": "changed"}
    else:
        running = asyncio.create_task(world.control.run())
        await soon(lambda: len(seen) == 2)
        running.cancel()

    assert [isinstance(one, Permit) for one in seen] == [True, True]


async def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    """A policy that does not parse leaves everything as it was, and is a trouble of its setting."""
    world = World(tmp_path, policy=POLICY)
    world.policy_path.write_text("roles: [")
    assert await world.control.reload() == {"tokens_file": "unchanged", "policy_file": "unusable"}
    identity = await world.control.authenticate(encoded(BEARER), PEER)
    world.control.authorize(identity, [SVC])

    troubles = world.control.troubles()
    assert troubles["tokens_file"] == ""
    assert troubles["policy_file"].startswith("GATEWAY_POLICY_FILE (--policy-file): ")
    assert world.control.ready


async def test_changes_are_seen_without_a_signal(tmp_path: Path) -> None:
    """While ``run`` runs, files are read again by themselves; without files it runs for ever, too."""
    world, seen = World(tmp_path, policy=POLICY), asyncio.Event()
    world.control.on_change(seen.set)
    tasks = [asyncio.create_task(one.run()) for one in (world.control, AccessControl([b""], Bearer(wall=lambda: 0.0)))]
    world.write(token="new", more="roles: []")
    await seen.wait()

    assert await world.who(("authorization", "Bearer new")) == "token:dash"
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
