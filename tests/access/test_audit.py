"""The audit log's lines: who, what, from where, and by which rule; no tokens and no values."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from app.access import audit
from app.access.identity import make_identity
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


async def test_a_stream_from_its_join_to_its_end(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    """The rule of a join is the roles; of an end, the credentials, the policy, or etcd if both still permit."""
    world = World(tmp_path, policy=POLICY)
    identity = await world.control.authenticate(encoded(BEARER), PEER)
    permit = world.control.permit(identity, (SVC,), (SVC,))
    permit.note("joined", address="a:1", request_id="r")
    permit.note("revoked", address="a:1", request_id="r")
    world.policy_path.write_text("roles: {}")
    world.control.reload()
    permit.note("revoked", address="a:1", request_id="r")
    world.write(token="another", more="roles: [reader]")
    world.control.reload()
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


async def test_nothing_is_worked_out_for_a_log_that_is_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a higher level no line is written, and no rule is looked for."""
    caplog.set_level(logging.WARNING, "gateway.audit")
    world = World(tmp_path, policy=POLICY)
    permit = world.control.permit(await world.control.authenticate(encoded(BEARER), PEER), (SVC,), (SVC,))
    permit.note("joined", address="a:1", request_id="r")

    assert not audit.enabled()
    assert caplog.records == []
