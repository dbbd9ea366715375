"""The token of a link's user: how long it is good for, when it is renewed, and what a refusal means."""

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
    """A JWT that says *claims*."""
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJSUzI1NiJ9.{body}.c2ln"


@pytest.mark.parametrize(
    ("text", "life"),
    [
        (token({"username": "a", "revision": 3, "exp": 1300}), 300),
        (token({"iat": 5000, "exp": 5060}), 60),  # its clock is not ours
        (token({"exp": 900}), None),  # expired by our clock: it is not to be believed
        (token({"exp": "soon"}), None),
        (token({"revision": 3}), None),
        (token([]), None),
        (token(None), None),
        ("vZbXHRwcgWpBnAbi.28", None),  # etcd's simple ones
        ("a.b.c", None),
        ("a.!!!.c", None),
        ("", None),
    ],
)
def test_the_life_of_a_token(text: str, life: float | None) -> None:
    """By its claims."""
    assert life_of(text, now=1000) == life


def status(code: grpc.StatusCode, details: str) -> rpc.AioRpcError:
    """What gRPC raises."""
    return rpc.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


class Auth:
    """etcd's Authenticate, and the clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[tuple[str, str]] = []
        self.token = "simple.1"
        self.error: rpc.AioRpcError | None = None

    async def authenticate(self, request: Any, *, timeout: float) -> Any:
        """One call."""
        assert timeout == LOGIN_TIMEOUT
        self.asked.append((request.name, request.password))
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return rpc.AuthenticateResponse(token=self.token, header=rpc.ResponseHeader(cluster_id=7))


@pytest.fixture(name="auth")
def _auth() -> Auth:
    """An etcd."""
    return Auth()


@pytest.fixture(name="login")
def _login(auth: Auth, tmp_path: Path) -> Login:
    """A user there."""
    path = tmp_path / "password"
    path.write_text("secret\n")
    return Login(auth.authenticate, Credentials(user="gateway", password_file=path), clock=lambda: auth.now)


async def test_nobody_needs_no_token(auth: Auth) -> None:
    """Without a user nothing is asked, and no call carries anything."""
    login = Login(auth.authenticate, Credentials(), clock=lambda: 0.0)
    await login.ensure()
    assert (login.metadata, auth.asked) == ((), [])
    assert not login.is_stale(status(grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token"))


async def test_a_simple_token_is_renewed_when_it_was_not_used(login: Login, auth: Auth) -> None:
    """etcd forgets it 300 s after its last use."""
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
    """However much it is used."""
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
    """bcrypt costs etcd a tenth of a second of a core each time."""
    await login.ensure()
    auth.token = "simple.2"
    await asyncio.gather(*(login.renew("simple.1") for _ in range(10)))
    assert (len(auth.asked), login.token) == (2, "simple.2")


async def test_a_refusal_names_the_user(login: Login, auth: Auth) -> None:
    """And never the password."""
    auth.error = status(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: authentication failed")
    with pytest.raises(LoginError, match=r"^user 'gateway': etcdserver: authentication failed$"):
        await login.ensure()


async def test_an_etcd_that_is_away_keeps_the_token(login: Login, auth: Auth) -> None:
    """It may be good for a while yet; the renewal is tried again soon."""
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
    """A user may be configured before it is enabled; then a call says that a token is needed."""
    auth.error = status(grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")
    await login.ensure()
    await login.ensure()
    assert (login.metadata, len(auth.asked)) == ((), 1)
    assert login.is_stale(status(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: user name is empty"))
