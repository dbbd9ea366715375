"""The token of a link's user: how long it is valid, when it is renewed, and the meaning of a refusal."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from aetcd import rpc

from app.etcd.credentials import Credentials
from app.etcd.login import IDLE, LOGIN_TIMEOUT, RENEW_AT, Login, LoginError, life_of


def token(claims: Any) -> str:
    """A JWT with these claims."""
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJSUzI1NiJ9.{body}.c2ln"


@pytest.mark.parametrize(
    ("text", "life"),
    [
        (token({"username": "a", "revision": 3, "exp": 1300}), 300),
        (token({"iat": 5000, "exp": 5060}), 60),  # its clock differs from ours
        (token({"exp": 900}), None),  # expired by our clock: its claims are not trusted
        (token({"exp": "soon"}), None),
        (token({"revision": 3}), None),
        (token([]), None),
        (token(None), None),
        ("vZbXHRwcgWpBnAbi.28", None),  # etcd's simple tokens
        ("a.b.c", None),
        ("a.!!!.c", None),
        ("", None),
    ],
)
def test_the_life_of_a_token(text: str, life: float | None) -> None:
    """The claims decide the life of a token."""
    assert life_of(text, now=1000) == life


def status(code: grpc.StatusCode, details: str) -> rpc.AioRpcError:
    """The error that gRPC raises."""
    return rpc.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


class Auth:
    """etcd's Authenticate, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[tuple[str, str]] = []
        self.token = "simple.1"
        self.error: rpc.AioRpcError | None = None

    async def authenticate(self, request: Any, *, timeout: float) -> Any:
        """Answer one call."""
        assert timeout == LOGIN_TIMEOUT
        self.asked.append((request.name, request.password))
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return rpc.AuthenticateResponse(token=self.token, header=rpc.ResponseHeader(cluster_id=7))


@pytest.fixture(name="auth")
def _auth() -> Auth:
    """An etcd's Authenticate."""
    return Auth()


@pytest.fixture(name="login")
def _login(auth: Auth, tmp_path: Path) -> Login:
    """A user there."""
    path = tmp_path / "password"
    path.write_text("secret\n")
    return Login(auth.authenticate, Credentials(user="gateway", password_file=path), clock=lambda: auth.now)


async def test_nobody_needs_no_token(auth: Auth) -> None:
    """Without a user there is no login, and calls carry no token."""
    login = Login(auth.authenticate, Credentials(), clock=lambda: 0.0)
    await login.ensure()
    assert (login.metadata, auth.asked) == ((), [])
    assert not login.is_stale(status(grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token"))
    login.require_user(status(grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied"))


@pytest.mark.parametrize("known", [True, False])
async def test_a_user_that_is_missing(login: Login, auth: Auth, known: bool) -> None:
    """The reason names the settings. A user that is configured logs in instead."""
    refusal = status(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: user name is empty")
    if known:
        login.require_user(refusal)
        return
    with pytest.raises(LoginError, match="GATEWAY_ETCD_USER"):
        Login(auth.authenticate, Credentials(), clock=lambda: 0.0).require_user(refusal)


async def test_a_simple_token_is_renewed_when_it_was_not_used(login: Login, auth: Auth) -> None:
    """etcd forgets a simple token 300 s after its last use, so an unused one is renewed."""
    await login.ensure()
    assert login.metadata == (("token", "simple.1"),)
    auth.now, auth.token = IDLE - 1, "simple.2"
    login.used()
    auth.now += IDLE - 1
    await login.ensure()
    assert login.token == "simple.1"
    auth.now += 1
    await login.ensure()
    assert login.token == "simple.2"
    assert auth.asked == [("gateway", "secret")] * 2


async def test_a_jwt_is_renewed_by_its_age(login: Login, auth: Auth) -> None:
    """A JWT is renewed by its age, however often it is used."""
    auth.token = token({"iat": 5000, "exp": 5100})
    await login.ensure()
    auth.now = 100 * RENEW_AT - 1
    login.used()
    await login.ensure()
    assert len(auth.asked) == 1
    auth.now += 1
    await login.ensure()
    assert len(auth.asked) == 2


async def test_one_login_for_all_whose_token_is_stale(login: Login, auth: Auth) -> None:
    """One login serves all calls whose token is stale: each bcrypt costs etcd a tenth of a second of a core."""
    await login.ensure()
    auth.token = "simple.2"
    await asyncio.gather(*(login.renew("simple.1") for _ in range(10)))
    assert (len(auth.asked), login.token) == (2, "simple.2")


@pytest.mark.parametrize(
    ("code", "raised"),
    [(grpc.StatusCode.INVALID_ARGUMENT, LoginError), (grpc.StatusCode.UNAVAILABLE, rpc.AioRpcError)],
    ids=["refused", "no answer"],
)
async def test_one_failure_for_all_who_wait_for_the_login(
    login: Login, auth: Auth, code: grpc.StatusCode, raised: type[Exception]
) -> None:
    """One after the other, each caller would wait for all attempts before its own. Who comes later tries again."""
    auth.error = status(code, "etcdserver: no")
    answers = await asyncio.gather(*(login.renew("") for _ in range(10)), return_exceptions=True)
    assert ([type(answer) for answer in answers], len(auth.asked)) == ([raised] * 10, 1)
    assert len({str(answer) for answer in answers}) == 1
    auth.error = None
    await login.renew("")
    assert (len(auth.asked), login.token) == (2, "simple.1")


async def test_a_login_whose_caller_has_gone_answers_nobody(login: Login, auth: Auth) -> None:
    """It ended with its caller. The next one who waits logs in."""
    first, second = (asyncio.create_task(login.renew("")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert (first.cancelled(), len(auth.asked), login.token) == (True, 2, "simple.1")


async def test_a_refusal_names_the_user(login: Login, auth: Auth) -> None:
    """A refusal names the user, and never the password."""
    auth.error = status(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: authentication failed")
    with pytest.raises(LoginError, match=r"^user 'gateway': etcdserver: authentication failed$"):
        await login.ensure()


async def test_an_etcd_that_is_away_keeps_the_token(login: Login, auth: Auth) -> None:
    """The token may still be valid while etcd is away; the renewal is tried again soon."""
    auth.error = status(grpc.StatusCode.UNAVAILABLE, "away")
    with pytest.raises(rpc.AioRpcError):
        await login.ensure()
    auth.error = None
    await login.ensure()
    auth.now, auth.error = IDLE, status(grpc.StatusCode.UNAVAILABLE, "away")
    await login.ensure()
    assert login.token == "simple.1"
    await login.ensure()
    assert len(auth.asked) == 3
    auth.now, auth.error, auth.token = IDLE + LOGIN_TIMEOUT, None, "simple.2"
    await login.ensure()
    assert login.token == "simple.2"


async def test_an_etcd_without_authentication(login: Login, auth: Auth) -> None:
    """A user may be configured before auth is enabled; later a call's error shows that a token is needed."""
    auth.error = status(grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")
    await login.ensure()
    await login.ensure()
    assert (login.metadata, len(auth.asked)) == ((), 1)
    assert login.is_stale(status(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: user name is empty"))
