"""A user and password at etcd: tokens that expire, are forgotten or outdated, and passwords that change."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.etcd.conftest import PASSWORD, USER, says, values
from tests.integration.test_faults import all_hold, follow
from tests.integration.test_release import held_at_etcd, subscribers
from tests.support.certificates import jwt_keys
from tests.support.etcd import EtcdClient
from tests.support.gateway import STALE_SOON, GatewayProcess, gateway
from tests.support.metrics import etcd_metric
from tests.support.secure import Admin, SecureEtcd, administered, plain_channel
from tests.support.streams import watch
from tests.support.versions import Candidate
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd

Settings = dict[str, str]


# Long, so that nothing is stale just because the machine is slow.
STALE_LATE = {"GATEWAY_STALE_AFTER": "60s"}


async def logins(etcd: SecureEtcd) -> float:
    """The number of logins at etcd, by the tests' root too."""
    return await etcd_metric(etcd.endpoint, "grpc_server_handled_total", grpc_method="Authenticate")


async def test_reads_and_watches(etcd: SecureEtcd, root: Admin, login: Settings) -> None:
    """With a role that may only read the prefix, everything that the gateway does works, resumes included."""
    await root.put("/svc/a", "1")
    async with gateway(etcd.endpoint, settings=login) as server, follow(server.base, 1) as (follower,):
        assert await values(server) == (200, {"/svc/a": "1"})
        assert (await values(server, "/other/"))[0] == 502
        for prefix in ("/svc/", "/svc/b/"):
            async with await watch(server.base, f"prefix={prefix}") as stream:
                cursor = (await stream.until("synced"))[-1].id
            await root.put("/svc/b/1", prefix)
            async with await watch(server.base, f"prefix={prefix}&last_event_id={cursor}") as stream:
                assert (await stream.until("put", "reset"))[-1].type == "put"

        await eventually(lambda: all_hold([follower], root))
        assert follower.mirror.resets == ["initial"]
    assert PASSWORD not in json.dumps(server.lines)


async def test_auth_that_is_enabled_later(etcd: SecureEtcd, login: Settings) -> None:
    """A configured user does no harm before auth is enabled; afterwards it is used."""
    async with gateway(etcd.endpoint, settings=login) as server, follow(server.base, 1) as (follower,):
        async with administered(etcd) as root:
            await root.add_user(USER, PASSWORD, "/svc/")
            assert (await values(server))[0] == 200
            await root.put("/svc/a", "1")
            await eventually(lambda: all_hold([follower], root))
            # On a stream that was opened without a user.
            async with await watch(server.base, "prefix=/svc/b/") as stream:
                await stream.until("synced")

        assert follower.mirror.resets == ["initial"]


def write(path: Path, text: str | None) -> None:
    """Write the file as an operator would; None removes it."""
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


async def test_wrong_password(etcd: SecureEtcd, root: Admin, login: Settings, password_file: Path) -> None:
    """/readyz reports the error.

    A corrected password in the file is used, and so is one that changes while the gateway runs.
    """
    write(password_file, "nonsense")
    async with gateway(etcd.endpoint, settings=login) as server:
        await eventually(lambda: says(server, "down", "'gateway'", "authentication failed"))
        write(password_file, PASSWORD)
        await eventually(lambda: says(server, "ready"))

        async with follow(server.base, 1) as (follower,):
            await root.change_password(USER, "new")
            # Streams from before live on at etcd; the gateway notices that it was locked out.
            await eventually(lambda: says(server, "down", "'gateway'", "authentication failed"))
            write(password_file, None)
            await eventually(lambda: says(server, "down", "GATEWAY_ETCD_PASSWORD_FILE", str(password_file)))
            write(password_file, "new\n")
            await eventually(lambda: says(server, "ready"))
            await root.put("/svc/a", "1")
            await eventually(lambda: all_hold([follower], root))

            assert follower.mirror.resets == ["initial"]


async def test_nobody(etcd: SecureEtcd, root: Admin) -> None:
    """A gateway without a required user is not ready, and says which settings are missing: no request can be served."""
    del root
    async with gateway(etcd.endpoint, settings=STALE_SOON) as server:
        await eventually(lambda: says(server, "down", "GATEWAY_ETCD_USER"))
        assert (await values(server))[0] == 503
        async with await watch(server.base, "prefix=/svc/", {"Accept": "text/event-stream"}) as stream:
            close = (await stream.until("close"))[-1]
            assert close.data["reason"] == "unavailable"


async def test_auth_that_is_enabled_while_a_gateway_without_a_user_runs(etcd: SecureEtcd) -> None:
    """The gateway reports what is missing. When auth is disabled again, streams resume with what was written."""
    async with gateway(etcd.endpoint, settings=STALE_SOON) as server, follow(server.base, 1) as (follower,):
        async with administered(etcd) as root:
            await eventually(lambda: says(server, "down", "GATEWAY_ETCD_USER"))
            await root.put("/svc/a", "1")
            await root.disable_auth()
            etcd.users = False
        await eventually(lambda: says(server, "ready"))
        async with plain_channel(etcd) as channel:
            await eventually(lambda: all_hold([follower], EtcdClient(channel)))
        assert follower.mirror.resets == ["initial"]


@pytest.fixture(name="short")
async def _short(candidate: Candidate) -> AsyncIterator[SecureEtcd]:
    """An etcd whose tokens live 2 s after their last use."""
    if candidate.version < "3.5":
        pytest.skip("--auth-token-ttl came with 3.5; the fixed 300 s of 3.4 are too long for a test")
    async with SecureEtcd(folder=candidate.folder, args=["--auth-token-ttl=2"]) as etcd:
        yield etcd


async def test_a_simple_token_expires(short: SecureEtcd, login: Settings) -> None:
    """etcd refuses a create on a stream with a forgotten token.

    The stream is retired, its watches resume, without a reset.
    """
    async with administered(short) as root:
        await root.add_user(USER, PASSWORD, "/svc/", "/more/")
        # Audits would keep the token alive.
        async with (
            gateway(short.endpoint, settings={**login, **STALE_LATE}) as server,
            follow(server.base, 1) as (follower,),
        ):
            canaries = [await root.token(USER, PASSWORD) for _ in range(150)]
            before = await logins(short)
            await eventually(lambda: forgotten(root, canaries))
            async with await watch(server.base, "prefix=/more/") as stream:
                await stream.until("synced")
                # One login of the gateway. Root logs in for each call, and has made no call.
                assert await logins(short) - before <= 2
                await root.put("/svc/a", "1")
                await eventually(lambda: all_hold([follower], root))

                assert (await held_at_etcd(short))[0] == 2
                assert (await held_at_etcd(short))[1] <= 2
            assert follower.mirror.resets == ["initial"]
            assert "stale" not in follower.states


async def forgotten(root: Admin, canaries: list[str]) -> bool:
    """Whether etcd has forgotten an unused token: a check renews the token, so each check uses another one."""
    return not await root.takes(canaries.pop())


async def test_the_member_forgets_tokens(etcd: SecureEtcd, root: Admin, login: Settings) -> None:
    """A restarted member has lost its simple tokens: the gateway logs in again and resumes, without a reset."""
    async with gateway(etcd.endpoint, settings=login) as server, follow(server.base, 1) as (follower,):
        await etcd.restart()
        await root.put("/svc/a", "1")
        await eventually(lambda: all_hold([follower], root))

        assert (await values(server))[0] == 200
        assert follower.mirror.resets == ["initial"]


@pytest.fixture(name="jwt")
async def _jwt(candidate: Candidate, tmp_path: Path) -> AsyncIterator[SecureEtcd]:
    """An etcd whose tokens are JWTs that live 3 s."""
    public, private = jwt_keys(tmp_path)
    token = f"--auth-token=jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=3s"
    async with SecureEtcd(folder=candidate.folder, args=[token]) as etcd:
        yield etcd


@pytest.mark.one_etcd
async def test_a_jwt_is_renewed_in_time(jwt: SecureEtcd, login: Settings) -> None:
    """Long after the first token expired, streams and reads work.

    A token is renewed at 80 % of its life, not at every call.
    """
    async with administered(jwt) as root:
        await root.add_user(USER, PASSWORD, "/svc/")
        settings = {**login, **STALE_LATE}
        async with gateway(jwt.endpoint, settings=settings) as server, follow(server.base, 1) as (follower,):
            clock = asyncio.get_running_loop().time
            before, start = await logins(jwt), clock()
            opened, renewals = 0, 0.0
            while renewals < 3 or opened <= 10:
                async with await watch(server.base, f"prefix=/svc/{opened}/") as stream:
                    await stream.until("synced")
                    opened += 1
                assert (await values(server))[0] == 200
                assert (await held_at_etcd(jwt))[1] <= 4
                renewals = await logins(jwt) - before
                await asyncio.sleep(0.1)  # without this pause, the loop takes 4 s of CPU until the third renewal
            # A token's end is in whole seconds: the token lives at least 2 s, and is renewed after 1.6 s.
            assert renewals <= (clock() - start) / 1.6 + 1, renewals
            await root.put("/svc/a", "1")
            await eventually(lambda: all_hold([follower], root))
            assert follower.mirror.resets == ["initial"]
            assert "stale" not in follower.states
        assert base64.urlsafe_b64encode(b'{"alg":"RS256"').decode()[:12] not in json.dumps(server.lines)


async def test_roles_that_change_outdate_a_jwt(candidate: Candidate, login: Settings, tmp_path: Path) -> None:
    """ "revision of auth store is old": the gateway gets another token, and clients notice nothing."""
    public, private = jwt_keys(tmp_path)
    token = f"--auth-token=jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=1h"
    async with SecureEtcd(folder=candidate.folder, args=[token]) as etcd, administered(etcd) as root:
        await root.add_user(USER, PASSWORD, "/svc/")
        settings = {**login, **STALE_LATE}
        async with gateway(etcd.endpoint, settings=settings) as server, follow(server.base, 1) as (follower,):
            for turn in range(5):
                await root.grant(USER, f"/more/{turn}/")
                async with await watch(server.base, f"prefix=/more/{turn}/") as stream:
                    await stream.until("synced")
                assert (await values(server))[0] == 200
                await root.grant(USER, f"/evenmore/{turn}/")
                assert (await values(server))[0] == 200
            await root.put("/svc/a", "1")
            await eventually(lambda: all_hold([follower], root))
            await eventually(lambda: only_one(server, etcd))

            assert follower.mirror.resets == ["initial"]
            assert "stale" not in follower.states


async def only_one(server: GatewayProcess, etcd: SecureEtcd) -> bool:
    """Whether one watch is left."""
    return await subscribers(server) == 1 and (await held_at_etcd(etcd))[0] == 1
