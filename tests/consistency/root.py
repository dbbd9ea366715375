"""Users at etcd: the gateways are one whose password changes, the tests' own tools are root."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
from aetcd import rpc

from app.embedded import EmbeddedEtcd
from tests.consistency.oracle import OPTIONS

ROOT = "root"
USER = "gateway"
# Seconds for a login, and for a change of root's.
TIMEOUT = 2.0
Metadata = tuple[tuple[str, str], ...]


def channel_to(member: EmbeddedEtcd) -> Any:
    """A channel of its own to one member."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{member.place.client_port}", options=OPTIONS)


class Root:
    """root's hands. ``password`` is what etcd takes from the gateways, *file* what they read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.password = "first"
        self.write()

    def write(self, password: str | None = None) -> None:
        """Let the gateways read *password*, by default the one that etcd takes; whole, as the kubelet does."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(self.password if password is None else password, encoding="utf-8")
        fresh.replace(self._file)

    @property
    def settings(self) -> dict[str, str]:
        """What a gateway needs."""
        return {"GATEWAY_ETCD_USER": USER, "GATEWAY_ETCD_PASSWORD_FILE": str(self._file)}

    async def enable(self, member: EmbeddedEtcd) -> None:
        """Users from now on: the gateways' may read everything."""
        async with channel_to(member) as channel:
            auth = rpc.AuthStub(channel)
            for name, password in ((ROOT, ROOT), (USER, self.password)):
                await auth.UserAdd(rpc.AuthUserAddRequest(name=name, password=password, options=rpc.UserAddOptions()))
                await auth.RoleAdd(rpc.AuthRoleAddRequest(name=name))
                await auth.UserGrantRole(rpc.AuthUserGrantRoleRequest(user=name, role=name))
            everything = rpc.Permission(permType=rpc.Permission.READ, key=b"\0", range_end=b"\0")
            await auth.RoleGrantPermission(rpc.AuthRoleGrantPermissionRequest(name=USER, perm=everything))
            await auth.AuthEnable(rpc.AuthEnableRequest())

    async def login(self, channel: Any) -> Metadata:
        """What a call carries. A token of its own for each use: members forget them when they restart.

        Raises:
            rpc.AioRpcError: etcd does not answer.
        """
        request = rpc.AuthenticateRequest(name=ROOT, password=ROOT)
        return (("token", (await rpc.AuthStub(channel).Authenticate(request, timeout=TIMEOUT)).token),)

    async def change_password(self, member: EmbeddedEtcd, password: str) -> None:
        """At etcd; tried again until it answers."""
        request = rpc.AuthUserChangePasswordRequest(name=USER, password=password)
        while True:
            try:
                async with channel_to(member) as channel:
                    metadata = await self.login(channel)
                    await rpc.AuthStub(channel).UserChangePassword(request, timeout=TIMEOUT, metadata=metadata)
            except rpc.AioRpcError:
                await asyncio.sleep(0.1)
            else:
                self.password = password
                return

    async def revision(self, member: EmbeddedEtcd) -> int:
        """Of a linearizable read; 0 when it does not answer."""
        request = rpc.RangeRequest(key=b"\0", count_only=True)
        try:
            async with channel_to(member) as channel:
                metadata = await self.login(channel)
                return int(
                    (await rpc.KVStub(channel).Range(request, timeout=TIMEOUT, metadata=metadata)).header.revision
                )
        except rpc.AioRpcError:
            return 0
