"""Permissions that are revoked, granted, and never existed.

Which subscribers are notified, and which must notice nothing.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.core.versions import parse_version, progress_is_trusted
from tests.etcd.conftest import USER, values
from tests.etcd.test_tls import client_files
from tests.integration.test_faults import all_hold, follow
from tests.integration.test_release import held_at_etcd, reconnects
from tests.support.certificates import Ca
from tests.support.gateway import gateway
from tests.support.metrics import etcd_metric
from tests.support.secure import Admin, SecureEtcd, administered
from tests.support.streams import request, watch, watch_synced
from tests.support.versions import Candidate
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd

Settings = dict[str, str]


# Long enough that the other feeds do not become stale on a slow machine; a refusal takes as long.
STALE_LATER = {"GATEWAY_STALE_AFTER": "8s"}


async def holds_nothing(etcd: SecureEtcd) -> bool:
    """Whether etcd has no watch and no stream of the gateway."""
    return await held_at_etcd(etcd) == (0, 0)


async def test_a_permission_is_revoked_and_given_again(etcd: SecureEtcd, root: Admin, login: Settings) -> None:
    """A revoked subscriber gets `close`, `revoked`, and nothing is left at etcd.

    A new one waits; after a new grant, it works again.
    """
    await root.grant(USER, "/other/")
    settings = {**login, **STALE_LATER}
    async with gateway(etcd.endpoint, settings=settings) as server, follow(server.base, 1, "/other/") as (other,):
        streams = [await watch(server.base, "prefix=/svc/") for _ in range(3)]
        for stream in streams:
            await stream.until("synced")
        await root.revoke(USER, "/svc/")
        for stream in streams:
            assert (await stream.until("close"))[-1].data["reason"] == "revoked"
            assert await stream.next_event() is None
            await stream.close()

        async def only_the_other_is_held() -> bool:
            return await held_at_etcd(etcd) == (1, 1)

        await eventually(only_the_other_is_held)  # the cancel may reach etcd after the client's close
        assert (await values(server))[0] == 502

        async with await watch(server.base, "prefix=/svc/") as stream:
            waiting = asyncio.create_task(stream.until("synced", "close"))
            await root.grant(USER, "/svc/")
            assert (await waiting)[-1].type == "synced"
            await root.put("/svc/a", "1")
            assert (await stream.changes(1))[0].data["value"] == "1"

        assert other.mirror.resets == ["initial"]
        assert "stale" not in other.states
    await eventually(lambda: holds_nothing(etcd))


@pytest.mark.trust
async def test_one_of_two_ranges_is_revoked(
    etcd: SecureEtcd, root: Admin, login: Settings, candidate: Candidate
) -> None:
    """The stream of both ends, with the reason; the readers of the other range notice nothing."""
    await root.grant(USER, "/other/")
    trusted = progress_is_trusted(parse_version(candidate.version))
    # Some members tell their version to root only.
    settings = {**login, **STALE_LATER, "GATEWAY_ETCD_VERSION": candidate.version if trusted else "3.5.16"}
    async with gateway(etcd.endpoint, settings=settings) as server, follow(server.base, 1, "/other/") as (other,):
        answer = await request(f"{server.base}/v1/watch?prefix=/svc/&prefix=/other/")
        async with answer as stream:
            if trusted:
                await stream.until("synced")
                await root.revoke(USER, "/svc/")
                assert (await stream.until("close"))[-1].data["reason"] == "revoked"
                assert await stream.next_event() is None
            else:
                assert stream.status == 501
        await root.put("/other/a", "1")
        await eventually(lambda: all_hold([other], root, "/other/"))

        assert other.mirror.resets == ["initial"]
        assert "stale" not in other.states
    await eventually(lambda: holds_nothing(etcd))


@pytest.mark.one_etcd
async def test_a_lingering_feed_is_revoked_too(etcd: SecureEtcd, root: Admin, login: Settings) -> None:
    """A lingering feed without subscribers is revoked too: a new subscriber must not get its data."""
    async with gateway(etcd.endpoint, settings={**login, "GATEWAY_LINGER": "60s"}) as server:
        async with await watch_synced(server.base, "prefix=/svc/"):
            pass
        assert await held_at_etcd(etcd) == (1, 1)
        await root.revoke(USER, "/svc/")

        await eventually(lambda: holds_nothing(etcd))


@pytest.mark.one_etcd
async def test_a_user_is_locked_out_while_etcd_is_away(etcd: SecureEtcd, root: Admin, login: Settings) -> None:
    """A refusal when the watch resumes also ends the stream."""
    async with gateway(etcd.endpoint, settings=login) as server:
        async with await watch_synced(server.base, "prefix=/svc/") as stream:
            await root.revoke(USER, "/svc/")
            await etcd.restart()

            assert (await stream.until("close"))[-1].data["reason"] == "revoked"
        await eventually(lambda: holds_nothing(etcd))


async def test_a_denied_prefix_beside_a_live_one(etcd: SecureEtcd, root: Admin, login: Settings) -> None:
    """A denied watch is retried on the others' stream: the other watches notice nothing, and the streams stay few."""
    settings = {**login, **STALE_LATER}
    async with gateway(etcd.endpoint, settings=settings) as server, follow(server.base, 1) as (follower,):
        before, lost = await watch_calls(etcd), await reconnects(server)
        # Of each connection one call for the follower, and one that tries a connection on which nobody watches.
        assert before <= 2 * (1 + lost)
        denied = [await watch(server.base, f"prefix=/denied/{n}/") for n in range(10)]
        for stream in denied:
            close = (await stream.until("close"))[-1]
            assert close.data["reason"] == "unavailable"
            assert (await held_at_etcd(etcd))[1] <= 1
            await stream.close()
        await root.put("/svc/a", "1")
        await eventually(lambda: all_hold([follower], root))

        assert follower.mirror.resets == ["initial"]
        assert "stale" not in follower.states
        # No call but the follower's, and those of connections that a slow machine has made anew.
        assert await watch_calls(etcd) - before == await reconnects(server) - lost
    assert [line for line in server.lines if line["message"] == "watch stream retired"] == []
    await eventually(lambda: holds_nothing(etcd))


@pytest.mark.one_etcd
async def test_only_denied(etcd: SecureEtcd, root: Admin, login: Settings) -> None:
    """A refused watch that is alone on its stream leaves no stream open."""
    del root
    async with gateway(etcd.endpoint, settings=login) as server:
        async with await watch(server.base, "prefix=/denied/") as stream:
            await stream.until("close")
        await eventually(lambda: holds_nothing(etcd))


async def test_audits_read_nothing(etcd: SecureEtcd, root: Admin, login: Settings) -> None:
    """Audits ask at a future revision, so that etcd only checks roles; etcd logs no complaint."""
    async with gateway(etcd.endpoint, settings=login) as server, follow(server.base, 1):
        await root.put("/svc/a", "1")
        before = await audits(etcd)
        await eventually(lambda: more_audits(etcd, before + 2))
    assert server.lines
    said = etcd.log_file.read_text()
    assert "future revision" not in said


async def watch_calls(etcd: SecureEtcd) -> float:
    """How many Watch calls etcd has seen."""
    return await etcd_metric(etcd.endpoint, "grpc_server_started_total", grpc_method="Watch")


async def audits(etcd: SecureEtcd) -> float:
    """The number of Range calls that ended like that."""
    return await etcd_metric(etcd.endpoint, "grpc_server_handled_total", grpc_method="Range", grpc_code="OutOfRange")


async def more_audits(etcd: SecureEtcd, count: float) -> bool:
    """Whether there were more audits than *count*."""
    return await audits(etcd) >= count


async def test_the_name_in_a_certificate(candidate: Candidate, tmp_path: Path) -> None:
    """Without a password, the certificate's name is the user, whose roles may change just the same."""
    ca = Ca(tmp_path / "ca")
    etcd = SecureEtcd(folder=candidate.folder, pki=tmp_path / "pki", client_auth=True)
    etcd.install(ca)
    async with etcd, administered(etcd) as root:
        # 3.4 has no users without a password; this password is never used.
        await root.add_user(USER, "unused", "/svc/")
        files = {**STALE_LATER, **client_files(tmp_path / "client", ca, USER)}
        async with (
            gateway(etcd.tls_endpoint, settings=files) as server,
            await watch(server.base, "prefix=/svc/") as stream,
        ):
            await root.put("/svc/a", "1")
            await stream.until("synced")
            assert await values(server) == (200, {"/svc/a": "1"})
            assert (await values(server, "/other/"))[0] == 502

            await root.revoke(USER, "/svc/")
            assert (await stream.until("close"))[-1].data["reason"] == "revoked"
        await eventually(lambda: holds_nothing(etcd))
