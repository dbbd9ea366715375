"""The audit log's lines: who, what, from where, and by which rule; no tokens and no values."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from app.access import audit
from app.access.control import MAX_REMEMBERED
from app.access.identity import make_identity
from app.core.keys import KeyRange
from tests.access.test_control import BEARER, PEER, POLICY, SVC, World, encoded


@pytest.fixture(name="lines")
def _lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "gateway.audit")
    return caplog


def said(lines: pytest.LogCaptureFixture) -> list[tuple[str, str, str, str]]:
    """Decision, identity, selection and rule of each line."""
    found = [vars(record) for record in lines.records if record.name == "gateway.audit"]
    return [(one["decision"], one["identity"], one["selection"], one["rule"]) for one in found]


def test_a_line(lines: pytest.LogCaptureFixture) -> None:
    """An identity is its name alone: its claims and its token's hash stay out of the log."""
    identity = make_identity("jwt", "alice", issuer="i", claims={"email": "a@b"}, credential=b"\x01", signed_by="key")
    audit.write("refused", identity, [SVC], rule="policy", address="10.0.0.1:2", status=403)
    audit.write("refused", None, [], rule="credentials", address="10.0.0.1:2")
    (first, _second) = [vars(record) for record in lines.records]

    assert said(lines) == [
        ("refused", "jwt:i#alice", "prefix=/svc/", "policy"),
        ("refused", "unknown", "", "credentials"),
    ]
    assert (first["address"], first["status"], first["msg"]) == ("10.0.0.1:2", 403, "audit")
    assert "a@b" not in str(first)


def test_a_long_range_hides_no_other(lines: pytest.LogCaptureFixture) -> None:
    """Of a long range the line has the beginning, so all ranges of a request are in a line of bounded length."""
    audit.write("joined", None, [KeyRange("key", b"\xff" * 4000)] * 31 + [SVC], rule="reader", address="10.0.0.1:2")
    ((_, _, selection, _),) = said(lines)

    assert selection.startswith("key=%FF%FF")
    assert selection.endswith("… prefix=/svc/")
    assert len(selection) < 32 * (audit.MOST_OF_RANGE + 2)


async def test_a_stream_from_its_join_to_its_end(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    """The rule of a join is the roles; of an end, the credentials, the policy, or etcd if both still permit."""
    world = World(tmp_path, policy=POLICY)
    identity = await world.control.authenticate(encoded(BEARER), PEER)
    permit = world.control.permit(identity, (SVC,), (SVC,))
    permit.note("joined", address="a:1", request_id="r")
    permit.note("revoked", address="a:1", request_id="r")
    world.policy_path.write_text("roles: {}")
    await world.control.reload()
    permit.note("revoked", address="a:1", request_id="r")
    world.write(token="another", more="roles: [reader]")
    await world.control.reload()
    permit.note("revoked", address="a:1", request_id="r")
    permit.note("expired", address="a:1", request_id="r")

    assert said(lines) == [
        ("joined", "token:dash", "prefix=/svc/", "reader"),
        ("revoked", "token:dash", "prefix=/svc/", "etcd"),
        ("revoked", "token:dash", "prefix=/svc/", "policy"),
        ("revoked", "token:dash", "prefix=/svc/", "credentials"),
        ("expired", "token:dash", "prefix=/svc/", "credentials"),
    ]
    assert World(tmp_path).control.rule(identity, (SVC,)) == "fence"


def test_rules_and_permits_are_remembered_within_bounds(tmp_path: Path) -> None:
    """Clients choose selections, so what is remembered of them is bounded in number and in bytes."""
    control, identity = (
        World(tmp_path, policy=POLICY).control,
        make_identity("token", "dash", roles=frozenset({"reader"})),
    )
    names = [*(b"/svc/%d" % number for number in range(MAX_REMEMBERED + 10)), b"/svc/" + b"a" * 4000]
    for name in names:
        ranges = (KeyRange("key", name),)
        assert control.rule(identity, ranges) == "reader"
        assert control.admit(identity, ranges).ranges == ranges

    for known in (control._deciding, control._permits):
        assert 0 < len(known) <= MAX_REMEMBERED
        assert all(len(one.name) < 1000 for _, ranges, _ in known for one in ranges)


async def test_nothing_is_worked_out_for_a_log_that_is_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a higher level no line is written, and no rule is looked for."""
    caplog.set_level(logging.WARNING, "gateway.audit")
    world = World(tmp_path, policy=POLICY)
    permit = world.control.permit(await world.control.authenticate(encoded(BEARER), PEER), (SVC,), (SVC,))
    permit.note("joined", address="a:1", request_id="r")

    assert not audit.enabled()
    assert caplog.records == []
