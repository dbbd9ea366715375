"""How the tests' own tools talk to etcd, and the password that the gateways present, which changes.

A tool logs in for every channel, and makes another channel after every error: so no token has to be renewed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from aetcd import rpc

from tests.support.embedded import EmbeddedCluster
from tests.support.secure import ROOT, Admin

OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
GATEWAY = "gateway"
TIMEOUT = 2.0
# Seconds for a request while the members are well; a member that was thawed just now may start an election.
HANG_TIMEOUT = 60.0

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Access:
    """Access as *user*, whose password is the user's name; without a user, access without a login."""

    user: str = ""

    @contextlib.asynccontextmanager
    async def channel(self, endpoint: str) -> AsyncIterator[tuple[Any, Metadata]]:
        """A channel to *endpoint*, and the metadata that each call on it must carry. Raises rpc.AioRpcError."""
        target = endpoint.partition("://")[2]
        async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel:
            yield channel, await self._login(channel)

    async def _login(self, channel: Any) -> Metadata:
        if not self.user:
            return ()
        request = rpc.AuthenticateRequest(name=self.user, password=self.user)
        return (("token", (await rpc.AuthStub(channel).Authenticate(request, timeout=TIMEOUT)).token),)

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags for etcdctl."""
        return (f"--user={self.user}:{self.user}",) if self.user else ()

    async def revision(self, endpoint: str) -> int:
        """etcd's current revision; asks until etcd answers."""
        request = rpc.RangeRequest(key=b"\0", count_only=True)
        async with asyncio.timeout(HANG_TIMEOUT):
            while True:
                with contextlib.suppress(rpc.AioRpcError):
                    async with self.channel(endpoint) as (channel, metadata):
                        answer = await rpc.KVStub(channel).Range(request, timeout=TIMEOUT, metadata=metadata)
                        return int(answer.header.revision)
                await asyncio.sleep(0.1)


class Password:
    """The gateways' password: ``now`` is the one that etcd accepts, *file* has the one that the gateways read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.now = "the first"
        self.write(self.now)

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings of a gateway."""
        return {"GATEWAY_ETCD_USER": GATEWAY, "GATEWAY_ETCD_PASSWORD_FILE": str(self._file)}

    def write(self, password: str) -> None:
        """Write the password into the file atomically: a reader gets the old password or the new one."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{password}\n")
        fresh.replace(self._file)

    def restore(self, password: str) -> None:
        """etcd was restored from a backup with this password."""
        self.now = password
        self.write(password)

    async def change(self, access: Access, endpoints: Sequence[str], password: str) -> None:
        """Change the password at etcd; ask its members in turn until one has done it."""
        request = rpc.AuthUserChangePasswordRequest(name=GATEWAY, password=password)
        async with asyncio.timeout(HANG_TIMEOUT):
            for endpoint in itertools.cycle(endpoints):
                with contextlib.suppress(rpc.AioRpcError):
                    async with access.channel(endpoint) as (channel, metadata):
                        await rpc.AuthStub(channel).UserChangePassword(request, timeout=TIMEOUT, metadata=metadata)
                        self.now = password
                        return
                await asyncio.sleep(0.1)


async def enable_auth(cluster: EmbeddedCluster, password: Password) -> Access:
    """Enable auth: only root may do everything, and the gateways may read everything. Returns root's access."""
    async with Access().channel(cluster.endpoints[0]) as (channel, _nothing):
        admin, auth = Admin(channel, channel), rpc.AuthStub(channel)
        await admin.add_user(ROOT, ROOT)
        await admin.add_user(GATEWAY, password.now)
        everything = rpc.Permission(permType=rpc.Permission.READ, key=b"\0", range_end=b"\0")
        await auth.RoleGrantPermission(rpc.AuthRoleGrantPermissionRequest(name=GATEWAY, perm=everything))
        await auth.AuthEnable(rpc.AuthEnableRequest())
    return Access(ROOT)
