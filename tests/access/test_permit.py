"""Permits: what a change of the files does to a stream that is open, and to a request that has waited."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.access.identity import Identity, make_identity
from app.access.permit import Permit
from app.core.errors import ForbiddenError, ScopeChangedError, UnauthorizedError
from app.core.keys import KeyRange
from tests.access.test_control import BEARER, OTHER, PEER, POLICY, SVC, World, encoded

AUDIT = KeyRange("prefix", b"/audit/")
ALL = (KeyRange("prefix", b""),)
NARROWER = POLICY.replace("read: [/svc/]", "read: [/svc/a/]")


async def dash(world: World) -> Identity:
    """The identity of the token in the tokens file."""
    return await world.control.authenticate(encoded(BEARER), PEER)


async def test_a_permit_holds_while_nothing_is_taken_away(tmp_path: Path) -> None:
    """More roles, a wider policy and a rotated token change nothing; the permit has the new roles."""
    world = World(tmp_path, policy=POLICY)
    permit = world.control.permit(await dash(world), (SVC,), (SVC,))
    world.policy_path.write_text(POLICY.replace("read: [/svc/]", "read: [/]"))
    world.write(token="dash-token", more="roles: [reader, operator]")
    await world.control.reload()
    renewed = permit.renewed()

    assert isinstance(renewed, Permit)
    assert renewed.identity.roles == {"reader", "operator"}
    assert (renewed.ranges, renewed.generation) == ((SVC,), 2)


async def test_a_narrower_policy(tmp_path: Path) -> None:
    """A part of the ranges is not enough: the stream would deliver keys that are denied."""
    world = World(tmp_path, policy=POLICY)
    identity = await dash(world)
    inside = (KeyRange("prefix", b"/svc/a/b"),)
    wide, narrow = world.control.permit(identity, (SVC,), (SVC,)), world.control.permit(identity, inside, inside)
    world.policy_path.write_text(NARROWER)
    await world.control.reload()

    assert wide.renewed() == "revoked"
    assert narrow.renewed() == narrow


async def test_values_that_are_denied_while_keys_are_not(tmp_path: Path) -> None:
    """Where the keys alone stay permitted, a stream of values ends and a stream of keys goes on."""
    world = World(tmp_path, policy=POLICY)
    identity = await dash(world)
    values = world.control.permit(identity, (SVC,), (SVC,))
    keys = world.control.permit(identity, (SVC,), (SVC,), keys_only=True)
    world.policy_path.write_text(POLICY.replace("read: [/svc/], keys_only: [/audit/]", "keys_only: [/svc/]"))
    await world.control.reload()

    assert (values.renewed(), keys.renewed()) == ("revoked", keys)


async def test_permitted_parts(tmp_path: Path) -> None:
    """With scope=permitted a stream ends when a part is lost, and comes back for the rest; without a rest it ends."""
    world = World(tmp_path, policy=POLICY)
    identity = await dash(world)
    left = world.control.permitted(identity, ALL)
    permit = world.control.permit(identity, ALL, left, permitted_only=True)
    assert left == (SVC,)
    for policy, outcome in (
        (POLICY.replace("read: [/svc/]", "read: [/svc/, /more/]"), permit),
        (NARROWER, "scope-changed"),
        (POLICY.replace("read: [/svc/]", "read: [/other/]"), "scope-changed"),
        (POLICY.replace("read: [/svc/], ", ""), "revoked"),
    ):
        world.policy_path.write_text(policy)
        await world.control.reload()
        assert permit.renewed() == outcome


async def test_another_expiry(tmp_path: Path) -> None:
    """The tokens file may move the expiry; an expiry that has passed is no revocation."""
    world = World(tmp_path)
    permit = world.control.permit(await dash(world), (SVC,), (SVC,))
    assert permit.expires is None
    for second, expires in (("03:00", 180.0), ("01:41", 101.0)):
        world.write(token="dash-token", more=f"expires: 1970-01-01T00:{second}Z")
        await world.control.reload()
        renewed = permit.renewed()
        assert isinstance(renewed, Permit)
        assert renewed.expires == expires
    world.write(token="dash-token", more="expires: 1970-01-01T00:01:40Z")
    await world.control.reload()

    assert permit.renewed() == "expired"


@pytest.mark.parametrize(("now", "ends"), [(99.0, 100.0), (100.0, 130.0), (129.0, 130.0)])
async def test_the_leeway(tmp_path: Path, now: float, ends: float) -> None:
    """A stream ends when its JWT expires. A JWT that has expired, and is accepted, is accepted to the leeway's end."""
    world = World(tmp_path)
    world.now = now
    identity = make_identity("jwt", "alice", issuer="i", expires=100.0, leeway=30)

    assert world.control.permit(identity, (SVC,), (SVC,)).expires == ends


async def test_equal_requests_share_a_permit(tmp_path: Path) -> None:
    """A client that comes back costs no decision, until the rules change. Keys alone are another request."""
    world = World(tmp_path, policy=POLICY)
    identity = await dash(world)
    permit = world.control.admit(identity, (SVC,))
    assert world.control.admit(await dash(world), (SVC,)) is permit
    assert world.control.admit(identity, (SVC,), keys_only=True) != permit
    world.policy_path.write_text(NARROWER)
    await world.control.reload()

    with pytest.raises(ForbiddenError):
        world.control.admit(identity, (SVC,))


async def test_a_shared_permit_ends_when_a_new_one_would(tmp_path: Path) -> None:
    """A permit that was made before the expiry of a JWT is not for a request in the leeway after the expiry."""
    world = World(tmp_path)
    world.now = 99.0
    identity = make_identity("jwt", "alice", issuer="i", expires=100.0, leeway=30)
    assert [world.control.admit(identity, (SVC,)).expires for world.now in (99.0, 100.0, 129.0)] == [
        100.0,
        130.0,
        130.0,
    ]


async def test_a_request_that_has_waited(tmp_path: Path) -> None:
    """A request that was authorized by the old rules, and joins by the new ones, is refused."""
    world = World(tmp_path, policy=POLICY)
    permit = world.control.permit(await dash(world), (SVC,), (SVC,))
    world.write(token="dash-token", more="roles: [reader, operator]")
    await world.control.reload()
    permit.check()
    world.policy_path.write_text(NARROWER)
    await world.control.reload()

    with pytest.raises(ForbiddenError, match="token:dash may read has changed while the request waited") as caught:
        permit.check()
    assert caught.value.headers == {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}


@pytest.mark.parametrize("change", ["removed", "expired"])
async def test_credentials_that_end_while_a_request_waits(tmp_path: Path, change: str) -> None:
    """The answer is the 401 that the same request would get if it began now."""
    world = World(tmp_path, policy=POLICY)
    permit = world.control.permit(await dash(world), (SVC,), (SVC,))
    if change == "removed":
        world.write(token="another", more="roles: [reader]")
    else:
        world.write(token="dash-token", more="expires: 1970-01-01T00:01:40Z")
    await world.control.reload()

    with pytest.raises(UnauthorizedError, match="have ended while the request waited") as caught:
        permit.check()
    assert caught.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}


async def test_credentials_that_expire_while_a_request_waits(tmp_path: Path) -> None:
    """No file has changed, and the same request would be refused now. A JWT is accepted to the end of its leeway."""
    world = World(tmp_path, policy=POLICY)
    world.write(token="dash-token", more="roles: [reader], expires: 1970-01-01T00:01:50Z")
    await world.control.reload()
    listed = world.control.permit(await dash(world), (SVC,), (SVC,))
    alice = make_identity("jwt", "alice", issuer="i", expires=110.0, leeway=30)
    signed = world.control.permit(alice, (SVC,), (SVC,))
    for world.now, permit in ((109.0, listed), (139.0, signed)):
        permit.check()
    for world.now, permit in ((110.0, listed), (140.0, signed)):
        with pytest.raises(UnauthorizedError, match="have ended while the request waited"):
            permit.check()


async def test_a_request_for_the_permitted_parts_that_has_waited(tmp_path: Path) -> None:
    """Of a part that is left, the client is told to come back; without a rest it is refused."""
    world = World(tmp_path, policy=POLICY)
    permit = world.control.permit(await dash(world), ALL, (SVC,), permitted_only=True)
    world.policy_path.write_text(NARROWER)
    await world.control.reload()
    with pytest.raises(ScopeChangedError, match="send the request again"):
        permit.check()
    world.policy_path.write_text(POLICY.replace("read: [/svc/], ", ""))
    await world.control.reload()

    with pytest.raises(ForbiddenError, match="has changed while the request waited"):
        permit.check()


async def test_without_a_policy(tmp_path: Path) -> None:
    """Without a policy the fence permits, and only the token can be taken away."""
    world = World(tmp_path)
    permit = world.control.permit(await dash(world), (OTHER, SVC), (OTHER, SVC))
    world.write(token="dash-token", more="roles: []")
    await world.control.reload()
    assert isinstance(permit.renewed(), Permit)
    world.write(token="another", more="roles: []")
    await world.control.reload()

    assert permit.renewed() == "revoked"
