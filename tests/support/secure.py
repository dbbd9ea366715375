"""An etcd with TLS and users. It keeps a plain port for the true state: health, metrics, and root's changes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from aetcd import rpc

from app.dev import etcd as embedded
from tests.support.certificates import Ca
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, EtcdClient
from tests.support.waiting import HANG

ROOT = "root"
# The default cost of 10 takes a tenth of a second for each login.
CHEAP = "--bcrypt-cost=4"
# The timeout in seconds for one of root's calls: an etcd that is just restarting may lose a call.


class SecureEtcd(EmbeddedEtcd):
    """Listens on ``tls_endpoint`` too if it has *pki*, a folder with ca.crt, server.crt and server.key.

    *client_auth*: clients must present a certificate there. ``users`` is true while auth is enabled; a restart then
    does not wait with a read.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        pki: Path | None = None,
        client_auth: bool = False,
        args: Sequence[str] = (),
    ) -> None:
        super().__init__(folder=folder, args=(CHEAP, *ALONE, *args))
        self.pki = pki
        self.client_auth = client_auth
        self.users = False
        self._tls_port = 0

    @property
    def tls_endpoint(self) -> str:
        """The TLS endpoint, by name: ``https://localhost:port``."""
        return f"https://localhost:{self._tls_port}"

    def install(self, ca: Ca) -> None:
        """Install certificates of *ca*.

        etcd reads the certificates for each new connection, but reads its CA only when it starts.
        """
        assert self.pki is not None
        self.pki.mkdir(parents=True, exist_ok=True)
        server = ca.sign("etcd")
        for source, name in ((ca.cert, "ca.crt"), (server.cert, "server.crt"), (server.key, "server.key")):
            shutil.copy(source, self.pki / name)

    def _flags(self) -> list[str]:
        flags = super()._flags()
        if self.pki is None:
            return flags
        if not self._tls_port:
            (self._tls_port,) = embedded.free_ports(1)
            self._ports.hold(self._tls_port)
        plain = self.place.client_url
        return [
            *flags,
            f"--listen-client-urls={plain},https://127.0.0.1:{self._tls_port}",
            f"--advertise-client-urls={plain}",
            f"--cert-file={self.pki / 'server.crt'}",
            f"--key-file={self.pki / 'server.key'}",
            *([f"--trusted-ca-file={self.pki / 'ca.crt'}", "--client-cert-auth"] if self.client_auth else []),
        ]

    async def wait_healthy(self) -> None:
        """Wait until etcd answers, on both ports, and has a leader; with users, etcd refuses a plain read."""
        if self.users:
            await self._wait_leader()
        else:
            await super().wait_healthy()
        if self.pki is not None:
            await self._shake_hands()

    async def _shake_hands(self) -> None:
        """Wait until the TLS port is served. When that begins, etcd reads its certificate, and ends if it is wrong.

        The plain port is served earlier: a test that put a wrong certificate there at once had no etcd any more.
        """
        anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        with contextlib.suppress(ssl.SSLError):  # etcd may demand a certificate
            async with asyncio.timeout(HANG):
                _reader, writer = await asyncio.open_connection("127.0.0.1", self._tls_port, ssl=anybody)
                writer.close()
                await writer.wait_closed()

    async def _wait_leader(self) -> None:
        deadline = time.monotonic() + embedded.START_TIMEOUT
        async with plain_channel(self) as channel:
            while not await _leads(channel):
                assert self.running, self.log_file.read_text()[-2000:]
                assert time.monotonic() < deadline
                await asyncio.sleep(embedded.POLL)


async def _leads(channel: grpc.aio.Channel) -> bool:
    try:
        status = await rpc.MaintenanceStub(channel).Status(rpc.StatusRequest(), timeout=1, wait_for_ready=True)
    except rpc.AioRpcError:
        return False
    return bool(status.leader)


def plain_channel(etcd: EmbeddedEtcd, *interceptors: Any) -> grpc.aio.Channel:
    """A channel to etcd's plain port."""
    target = etcd.endpoint.removeprefix("http://")
    return grpc.aio.insecure_channel(target, embedded.LOOPBACK_OPTIONS, interceptors=interceptors)


class LoginFirst(grpc.aio.UnaryUnaryClientInterceptor):
    """Logs in before every call, so that the tests' own token never expires."""

    def __init__(self, channel: grpc.aio.Channel, user: str, password: str) -> None:
        self._auth = rpc.AuthStub(channel)
        self._request = rpc.AuthenticateRequest(name=user, password=password)

    async def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        """Add the token to the call."""
        token = (await self._auth.Authenticate(self._request, timeout=HANG)).token
        metadata = grpc.aio.Metadata(*(details.metadata or ()), ("token", token))
        return await continuation(details._replace(metadata=metadata, timeout=HANG), request)


class Admin(EtcdClient):
    """Root's client: it writes keys, and adds users, each with one role of the same name."""

    def __init__(self, channel: Any, plain: Any) -> None:
        super().__init__(channel)
        self._auth = rpc.AuthStub(channel)
        self._plain = plain

    async def token(self, user: str, password: str) -> str:
        """A token of *user*."""
        answer = await rpc.AuthStub(self._plain).Authenticate(rpc.AuthenticateRequest(name=user, password=password))
        return str(answer.token)

    async def takes(self, token: str) -> bool:
        """Whether etcd accepts the token (which prolongs the token's life)."""
        try:
            await rpc.KVStub(self._plain).Range(rpc.RangeRequest(key=b"/svc/"), metadata=(("token", token),))
        except rpc.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise
            return False
        return True

    async def add_user(self, name: str, password: str = "", *prefixes: str) -> None:
        """Add a user who may read *prefixes*; without a password, a certificate must name the user."""
        options = rpc.UserAddOptions(no_password=not password)
        await self._auth.UserAdd(rpc.AuthUserAddRequest(name=name, password=password, options=options))
        await self._auth.RoleAdd(rpc.AuthRoleAddRequest(name=name))
        await self._auth.UserGrantRole(rpc.AuthUserGrantRoleRequest(user=name, role=name))
        for prefix in prefixes:
            await self.grant(name, prefix)

    async def grant(self, role: str, prefix: str) -> None:
        """Permit *role* to read *prefix*."""
        start, end = _range(prefix)
        permission = rpc.Permission(permType=rpc.Permission.READ, key=start, range_end=end)
        await self._auth.RoleGrantPermission(rpc.AuthRoleGrantPermissionRequest(name=role, perm=permission))

    async def revoke(self, role: str, prefix: str) -> None:
        """Revoke the permission of *role* to read *prefix*."""
        start, end = _range(prefix)
        await self._auth.RoleRevokePermission(rpc.AuthRoleRevokePermissionRequest(role=role, key=start, range_end=end))

    async def change_password(self, user: str, password: str) -> None:
        """Change a user's password; etcd no longer accepts the user's tokens."""
        await self._auth.UserChangePassword(rpc.AuthUserChangePasswordRequest(name=user, password=password))

    async def disable_auth(self) -> None:
        """Disable auth: everybody may read and write again."""
        await self._auth.AuthDisable(rpc.AuthDisableRequest())


def _range(prefix: str) -> tuple[bytes, bytes]:
    start = prefix.encode()
    return start, start[:-1] + bytes([start[-1] + 1])


@asynccontextmanager
async def administered(etcd: SecureEtcd) -> AsyncIterator[Admin]:
    """Enable auth, and yield root's access."""
    async with plain_channel(etcd) as channel:
        root = Admin(channel, channel)
        await root.add_user(ROOT, ROOT)
        await rpc.AuthStub(channel).AuthEnable(rpc.AuthEnableRequest())
        etcd.users = True
        async with plain_channel(etcd, LoginFirst(channel, ROOT, ROOT)) as trusted:
            yield Admin(trusted, channel)
