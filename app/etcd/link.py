"""A connection to one etcd endpoint: its channels, its login, its health, its watch streams.

Watches and reads have a connection each: a big Range would starve the watches on a shared one (etcd #15402). A third
one is for items that do not fit a page; most gateways never open it.

A link never recovers: what fails is closed, and the upstream makes the next one, to the next endpoint. So a channel
that reconnects by itself with credentials that are no longer good ends its link, and the next one reads the files
again.
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
from .channels import MAX_MESSAGE, open_channels
from .convert import watch_request
from .credentials import Credentials
from .hints import explain
from .login import Login, LoginError
from .stream import METADATA, RetiredError, UnmatchedError, WatchStream
from .stream_pool import StreamPool

logger = logging.getLogger("gateway.etcd")

# No server that counts its watches would give this one by itself.
PROBE_ID = 1 << 40


class Link:
    """See the module. ``failed`` is set, once, with the reason.

    Raises:
        CredentialsError: a file cannot be used.
    """

    def __init__(
        self,
        endpoint: str,
        credentials: Credentials,
        *,
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
        self._cluster = rpc.ClusterStub(self._kv_channel)
        self._watch = rpc.WatchStub(self._watch_channel)
        authenticate = partial(unary, rpc.AuthStub(self._kv_channel).Authenticate)
        self.login = Login(authenticate, credentials, clock=clock)
        self._proof_interval = proof_interval
        self._on_header = on_header
        self._clock = clock
        self._streams: set[WatchStream] = set()
        self.pool = StreamPool(self._open_stream, lambda: self.login.token, on_room)
        # Of the last health check: who answered. None when nothing that we may ask names it.
        self.header: Any = None
        self.version_text = ""
        self.version: Version = UNKNOWN
        self.applied = 0  # of its raft log; 0 while it does not say
        self._watch_member = 0
        self._may_not_ask = False
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def progress_trusted(self) -> bool:
        """Whether on-demand progress may be believed, as far as we know now."""
        return self._trusts(self._watch_member or self._member)

    @property
    def _member(self) -> int:
        return int(self.header.member_id) if self.header is not None else 0

    def _trusts(self, member: int) -> bool:
        """By the version that *our* member said: behind one name or Service there may be others, of other versions."""
        return member == self._member and progress_is_trusted(self.version)

    def _may_lose(self, member: int) -> bool:
        """The same, for what is better assumed of a member whose version we don't know."""
        return member != self._member or may_lose_events(self.version)

    # --- calls --------------------------------------------------------------------------------------------------------

    async def range(self, request: Any, timeout: float, *, large: bool = False) -> Any:
        """KV's Range; unless it is *large*, an answer over ``app.etcd.channels.MAX_PAGE_MESSAGE`` is refused.

        Raises rpc.AioRpcError, and LoginError when our token is not taken and there is no other.
        """
        response = await self._ask(self._large_kv.Range if large else self._kv.Range, request, timeout)
        self.login.used()
        return response

    async def _ask(self, call: Callable[..., Awaitable[Any]], request: Any, timeout: float) -> Any:
        """A call with our token, and once more with another one when that is not taken."""
        token = self.login.token
        try:
            return await unary(call, request, timeout=timeout, metadata=self.login.metadata)
        except rpc.AioRpcError as error:
            if not self.login.is_stale(error):
                raise
        try:
            await self.login.renew(token)
            return await unary(call, request, timeout=timeout, metadata=self.login.metadata)
        except grpc.aio.UsageError:
            # The channel was closed while another token was had: a password that changed ends links, too.
            raise LoginError("the connection was given up") from None

    async def check(self, timeout: float) -> str | None:
        """Ask the member how it is, and log in there; what is wrong with it, or None."""
        try:
            reason = await self._check(timeout)
            if reason is None:
                await self.login.ensure()
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
            return await self._check_as_a_stranger(timeout)
        self.header = status.header
        if not status.leader:
            return "the member has no leader"
        if status.isLearner:
            return "the member is a learner, which serves no watches"
        self.applied = status.raftAppliedIndex
        self.version_text = status.version
        self.version = parse_version(status.version)
        return None

    async def _check_as_a_stranger(self, timeout: float) -> str | None:
        """From 3.5.28 on (and in 3.6 until it was mended) only root may ask for the status: etcd #21663.

        Then its version stays unknown, which means that its progress is not believed. That it has no leader is noticed
        by the watches (``hasleader``) and by reads.
        """
        if not self._may_not_ask:
            self._may_not_ask = True
            logger.warning("etcd does not tell its version to our user", extra={"endpoint": self.endpoint})
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

    async def matches(self, watched: KeyRange, timeout: float) -> bool | None:
        """Whether a watch is answered under the id that it asks for; None where none is permitted, so that none tells.

        Asked with one watch, on a call of its own: nothing of it is left.

        Raises:
            rpc.AioRpcError, TimeoutError: there is no answer.
        """
        call = self._watch.Watch(metadata=METADATA + self.login.metadata)
        try:
            async with asyncio.timeout(timeout):
                with contextlib.suppress(asyncio.InvalidStateError):  # it is over already: the answer says why
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
        """Give this link up."""
        if not self.failed.done():
            self.failed.set_result(why)

    def ask_for_progress(self) -> None:
        """Have the watch streams say how far they are."""
        for stream in self.pool.streams:
            stream.ask()

    def silent_streams(self, limit: float) -> bool:
        """Whether an open stream has not said anything for *limit* seconds, progress requests notwithstanding.

        Not one that we closed: the connection was given up 30 s after the last watch of any stream had gone.
        """
        now = self._clock()
        return any(now - stream.last_response > limit for stream in self._streams if not stream.closed)

    def _open_stream(self, forget: Callable[[WatchStream], None]) -> WatchStream:
        def ended(stream: WatchStream, error: BaseException | None) -> None:
            forget(stream)
            if error is not None:
                self._stream_broke(error)

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
        self._watch_member = header.member_id or self._watch_member
        self._on_header(header)

    def _stream_broke(self, error: BaseException) -> None:
        """A stream that broke because of what is on it costs nothing else; otherwise the member is at fault."""
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
        """End everything on it; the watches hear ``Lost``."""
        self.fail(why)
        tasks = [task for stream in self._streams for task in stream.tasks]
        self.pool.close(ConnectionError(why))
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._watch_channel.close()
        await self._large_channel.close()
        await self._kv_channel.close()
