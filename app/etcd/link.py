"""A connection to one etcd endpoint: its channels, its login, its health checks, its watch streams.

Watches and reads have separate connections: on a shared connection, a big Range would starve the watches (etcd #15402).
A third connection is for items that do not fit a page; most gateways never open it.

A link never recovers. When something fails, the upstream closes the link and makes the next one, to the next endpoint.
So a channel that reconnects by itself with credentials that are no longer valid ends its link, and the next link reads
the files again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
from aetcd import rpc

from ..core.keys import KeyRange
from ..core.multiplex import CreateRequest
from ..core.versions import UNKNOWN, Version, may_lose_events, parse_version, progress_is_trusted
from ..ports import Clock
from .calls import raise_unless_cancelled, unary
from .convert import leader_changed, watch_request
from .credentials import Credentials
from .grpc_channels import MAX_MESSAGE, open_channels
from .hints import explain
from .login import Login, LoginError
from .stream import METADATA, RetiredError, UnmatchedError, WatchStream
from .stream_pool import StreamPool

logger = logging.getLogger("gateway.etcd")

# A server that numbers the watches itself would never reach this id.
PROBE_ID = 1 << 40


class Link:
    """See the module. ``failed`` is set once, to the reason.

    *vouched_version*: the version of members that do not tell theirs, as the operator knows it; "": unknown.

    Raises:
        CredentialsError: a file cannot be used.
    """

    def __init__(
        self,
        endpoint: str,
        credentials: Credentials,
        *,
        vouched_version: str = "",
        proof_interval: float,
        on_header: Callable[[Any], None],
        on_room: Callable[[], None],
        clock: Clock,
        max_message: int = MAX_MESSAGE,
    ) -> None:
        self.endpoint = endpoint
        self._kv_channel, self._watch_channel, self._large_channel = open_channels(endpoint, credentials, max_message)
        self._kv = rpc.KVStub(self._kv_channel)
        self._large_kv = rpc.KVStub(self._large_channel)
        self._maintenance = rpc.MaintenanceStub(self._kv_channel)
        self._watch_maintenance = rpc.MaintenanceStub(self._watch_channel)
        self._cluster = rpc.ClusterStub(self._kv_channel)
        self._watch = rpc.WatchStub(self._watch_channel)
        authenticate = partial(unary, rpc.AuthStub(self._kv_channel).Authenticate)
        self.login = Login(authenticate, credentials, clock=clock)
        self._proof_interval = proof_interval
        self._on_header = on_header
        self._clock = clock
        self._streams: set[WatchStream] = set()
        self.pool = StreamPool(self._open_stream, lambda: self.login.token, on_room)
        # The header of the last health check identifies the member. None if the user may make no call that returns one.
        self.header: Any = None
        self.version_text = ""
        self.version: Version = UNKNOWN
        # The member's raft indexes; 0 while the member does not report them.
        self.applied = self.committed = 0
        self._watch_member = 0
        self._watch_member_version: Version | None = None  # None: not known yet
        self._vouched_version = vouched_version
        self._status_denied = False  # members tell their status, and with it their version, to root only
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def progress_trusted(self) -> bool:
        """Whether answers to progress requests can be trusted, as far as the gateway knows now."""
        return self._trusts(self._watch_member or self._member)

    @property
    def _member(self) -> int:
        return int(self.header.member_id) if self.header is not None else 0

    def _trusts(self, member: int) -> bool:
        """Whether the progress of *member* can be trusted."""
        return progress_is_trusted(self._version_of(member))

    def _may_lose(self, member: int) -> bool:
        """Whether *member* may lose events. A member of unknown version may."""
        return may_lose_events(self._version_of(member))

    def _version_of(self, member: int) -> Version:
        """Return the version of *member*.

        Only the members that serve the link's reads and its watches have told their versions: behind one name or
        Service there may be members of other versions. The version that the operator vouches for is that of all.
        """
        if member == self._member or self._status_denied:
            return self.version
        return (self._watch_member_version if member == self._watch_member else None) or UNKNOWN

    @property
    def watch_version(self) -> str:
        """The version of the member that serves the watches; empty if it is not known."""
        version = self._version_of(self._watch_member or self._member)
        return ".".join(map(str, version)) if version != UNKNOWN else ""

    @property
    def version_known(self) -> bool:
        """Whether the member that serves the watches has told its version, or is known not to tell."""
        return self._watch_member in (0, self._member) or self._status_denied or self._watch_member_version is not None

    # --- calls --------------------------------------------------------------------------------------------------------

    async def range(self, request: Any, timeout: float, *, large: bool = False) -> Any:
        """Make KV's Range call. Without *large*, an answer over ``MAX_PAGE_MESSAGE`` is rejected.

        A new leader ends all linearizable reads. Then the call is made once more, in what is left of the time.

        Raises rpc.AioRpcError, and LoginError if etcd rejects the token and the login for another one fails, or if etcd
        requires a user and none is configured.
        """
        call, end = self._large_kv.Range if large else self._kv.Range, self._clock() + timeout
        try:
            response = await self._ask(call, request, timeout)
        except rpc.AioRpcError as error:
            if self.failed.done() or not leader_changed(error):
                raise
            response = await self._ask(call, request, end - self._clock())
        self.login.used()
        return response

    async def _ask(self, call: Callable[..., Awaitable[Any]], request: Any, timeout: float) -> Any:
        """Make a call with the present token. If etcd rejects the token, get another one and make the call again."""
        token = self.login.token
        try:
            return await unary(call, request, timeout=timeout, metadata=self.login.metadata)
        except rpc.AioRpcError as error:
            if not self.login.is_stale(error):
                self.login.require_user(error)
                raise
        try:
            await self.login.renew(token)
            return await unary(call, request, timeout=timeout, metadata=self.login.metadata)
        except grpc.aio.UsageError:
            # The channel was closed during the login: a changed password ends links, too.
            raise LoginError("the connection was closed during the login") from None

    async def check(self, timeout: float) -> str | None:
        """Check the member's health, and log in. Return what is wrong with the member, or None."""
        try:
            reason = await self._check(timeout)
            if reason is None:
                await self.login.ensure()
                if not self.version_known:
                    await self._check_watch_member(timeout)
        except rpc.AioRpcError as error:
            if error.code() is rpc.StatusCode.DEADLINE_EXCEEDED:
                return f"deadline_exceeded: no answer within {timeout:g} s"
            return explain(self.endpoint, error)
        except LoginError as error:
            return str(error)
        self.header = self.header or self.login.header
        return reason

    async def _check(self, timeout: float) -> str | None:
        try:
            status = await self._ask(self._maintenance.Status, rpc.StatusRequest(), timeout)
        except rpc.AioRpcError as error:
            if error.code() is not rpc.StatusCode.PERMISSION_DENIED:
                raise
            return await self._check_without_status(timeout)
        self.header = status.header
        if not status.leader:
            return "the member has no leader"
        if status.isLearner:
            return "the member is a learner, which serves no watches"
        self.applied, self.committed = status.raftAppliedIndex, status.raftIndex
        self._status_denied = False
        self.version_text = status.version
        self.version = parse_version(status.version)
        return None

    async def _check_watch_member(self, timeout: float) -> None:
        """Find out the version of the member that serves the watches.

        Behind one name or Service, each connection may lead to another member. A call on the watches' connection
        reaches the watches' member.
        """
        try:
            status = await self._ask(self._watch_maintenance.Status, rpc.StatusRequest(), timeout)
        except rpc.AioRpcError as error:
            # After any other error, the next check tries again: the streams themselves show whether the member is well.
            if error.code() is rpc.StatusCode.PERMISSION_DENIED:
                self._watch_member_version = parse_version(self._vouched_version)
        else:
            if status.header.member_id == self._watch_member:
                self._watch_member_version = parse_version(status.version)

    async def _check_without_status(self, timeout: float) -> str | None:
        """Check a member that denies its status to the gateway's user.

        From 3.5.28 on (and in 3.6 until the fix), only root may ask for the status: etcd #21663. Then the version is
        the one that the operator vouches for. Without one, the version stays unknown, so the gateway does not trust the
        member's progress. A missing leader still shows in watches (``hasleader``) and in reads.
        """
        self._use_vouched_version()
        try:
            found = await self._ask(self._cluster.MemberList, rpc.MemberListRequest(), timeout)
        except rpc.AioRpcError as error:
            if error.code() is not rpc.StatusCode.PERMISSION_DENIED:
                raise
            return None
        self.header = found.header
        us = found.header.member_id
        if any(member.isLearner for member in found.members if us == member.ID):
            return "the member is a learner, which serves no watches"
        return None

    def _use_vouched_version(self) -> None:
        """Use the version that the operator vouches for, unless the member has told its own. Log that once."""
        if self.version_text or self._status_denied:
            return
        self._status_denied = True
        self.version_text, self.version = self._vouched_version, parse_version(self._vouched_version)
        if self.version_text:
            logger.info(
                "etcd does not tell its version to the gateway's user: GATEWAY_ETCD_VERSION is used",
                extra={"endpoint": self.endpoint, "version": self.version_text},
            )
        else:
            logger.warning(
                "etcd does not tell its version to the gateway's user: set GATEWAY_ETCD_VERSION",
                extra={"endpoint": self.endpoint},
            )

    async def matches(self, watched: KeyRange, timeout: float) -> bool | None:
        """Return whether a watch is answered under the id that the watch asks for; None if no watch is permitted.

        The check opens one watch on a separate call, and cancels that call.

        Raises:
            rpc.AioRpcError, TimeoutError: there is no answer.
        """
        call = self._watch.Watch(metadata=METADATA + self.login.metadata)
        try:
            async with asyncio.timeout(timeout):
                with contextlib.suppress(asyncio.InvalidStateError):  # the call has ended already: the read says why
                    await call.write(watch_request(CreateRequest(PROBE_ID, watched, 0)))
                answer = await call.read()
        except asyncio.CancelledError:
            raise_unless_cancelled()
            return None
        finally:
            call.cancel()
        if answer is grpc.aio.EOF or (answer.canceled and answer.watch_id != PROBE_ID):
            return None
        return bool(answer.created and answer.watch_id == PROBE_ID)

    # --- failing ------------------------------------------------------------------------------------------------------

    def fail(self, why: str) -> None:
        """Mark this link as failed, for the reason *why*."""
        if not self.failed.done():
            self.failed.set_result(why)

    def ask_for_progress(self) -> None:
        """Request progress on every watch stream."""
        for stream in self.pool.streams:
            stream.ask()

    def silent_streams(self, limit: float) -> bool:
        """Whether an open stream has received nothing for *limit* seconds, despite progress requests.

        Streams that the gateway closed do not count. When they counted, the link failed 30 s after the last watch of
        any stream had ended.
        """
        now = self._clock()
        return any(now - stream.last_response > limit for stream in self._streams if not stream.closed)

    def _open_stream(self, forget: Callable[[WatchStream], None]) -> WatchStream:
        def ended(stream: WatchStream, error: BaseException | None) -> None:
            if error is not None:
                self._stream_broke(error)  # first: if this fails the link, no waiting watch may take the room there
            forget(stream)

        stream = WatchStream(
            lambda: self._watch.Watch(metadata=METADATA + self.login.metadata),
            token=self.login.token,
            proof_interval=self._proof_interval,
            progress_trusted=self._trusts,
            may_lose=self._may_lose,
            on_response=self._heard_on_a_stream,
            on_end=ended,
            clock=self._clock,
        )
        self._streams = {other for other in self._streams if not other.closed} | {stream}
        return stream

    def _heard_on_a_stream(self, header: Any) -> None:
        if header.member_id not in (0, self._watch_member):
            self._watch_member, self._watch_member_version = header.member_id, None
        self._on_header(header)

    def _stream_broke(self, error: BaseException) -> None:
        """Fail the link if a stream broke, unless the cause lies in that stream alone."""
        if isinstance(error, RetiredError):
            return
        if isinstance(error, rpc.AioRpcError) and error.code() in (
            rpc.StatusCode.RESOURCE_EXHAUSTED,
            rpc.StatusCode.PERMISSION_DENIED,
            rpc.StatusCode.UNAUTHENTICATED,
        ):
            logger.warning("watch stream ended", extra={"endpoint": self.endpoint, "reason": error.details()})
            return
        if isinstance(error, UnmatchedError):
            self.fail(str(error))
            return
        why = error.details() if isinstance(error, rpc.AioRpcError) else str(error)
        self.fail(f"watch stream: {why}")

    async def aclose(self, why: str) -> None:
        """Close everything on the link. The watches receive ``Lost``."""
        self.fail(why)
        tasks = [task for stream in self._streams for task in stream.tasks]
        self.pool.close(ConnectionError(why))
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._watch_channel.close()
        await self._large_channel.close()
        await self._kv_channel.close()
