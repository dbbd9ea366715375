"""A connection to one etcd endpoint: its channels, its health, its watch streams.

Watches and reads have a connection each: a big Range would starve the watches on a shared one (etcd #15402). A link
never recovers: what fails is closed, and the upstream makes the next one, to the next endpoint.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
from aetcd import rpc

from app.core.versions import UNKNOWN, Version, parse_version, progress_is_trusted
from app.etcd.lanes import Lanes
from app.etcd.stream import METADATA, WatchStream
from app.ports import Clock

log = logging.getLogger("gateway.etcd")

# One message holds at most a revision's events of a fragment (2 MiB by default) or a page of a Range, which halves its
# limit when this does not fit; values up to etcd's --max-request-bytes of tens of MiB still pass.
MAX_MESSAGE = 512 * 1024 * 1024

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # An http_proxy in the environment is for the web, not for etcd.
    ("grpc.enable_http_proxy", 0),
    # A pool of its own: otherwise channels to the same address share one connection.
    ("grpc.use_local_subchannel_pool", 1),
    # etcd allows a ping every 5 s (--grpc-keepalive-min-time); idle connections are not pinged.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Our own backoff decides when to try again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class Link:
    """See the module. ``failed`` is set, once, with the reason."""

    def __init__(
        self,
        endpoint: str,
        *,
        proof_interval: float,
        on_header: Callable[[Any], None],
        clock: Clock,
    ) -> None:
        self.endpoint = endpoint
        target = endpoint.removeprefix("http://")
        self._kv_channel = grpc.aio.insecure_channel(target, options=OPTIONS)
        self._watch_channel = grpc.aio.insecure_channel(target, options=OPTIONS)
        self.kv = rpc.KVStub(self._kv_channel)
        self._maintenance = rpc.MaintenanceStub(self._kv_channel)
        self._watch = rpc.WatchStub(self._watch_channel)
        self._proof_interval = proof_interval
        self._on_header = on_header
        self._clock = clock
        self._streams: set[WatchStream] = set()
        self.lanes = Lanes(self._open_stream)
        self.version_text = ""
        self.version: Version = UNKNOWN
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def progress_trusted(self) -> bool:
        """Of the member that we talk to, by the version it said last."""
        return progress_is_trusted(self.version)

    async def check(self, timeout: float) -> str | None:
        """Ask the member how it is; what is wrong with it, or None."""
        try:
            status = await self._maintenance.Status(rpc.StatusRequest(), timeout=timeout)
        except rpc.AioRpcError as error:
            return f"{error.code().name.lower()}: {error.details()}"
        if not status.leader:
            return "the member has no leader"
        if status.isLearner:
            return "the member is a learner, which serves no watches"
        self.version_text = status.version
        self.version = parse_version(status.version)
        self._on_header(status.header)
        return None

    def fail(self, reason: str) -> None:
        """Give this link up."""
        if not self.failed.done():
            self.failed.set_result(reason)

    def silent_streams(self, limit: float) -> bool:
        """Whether a stream has not said anything for *limit* seconds, progress requests notwithstanding."""
        now = self._clock()
        return any(now - stream.last_response > limit for stream in self._streams)

    def _open_stream(self, forget: Callable[[WatchStream], None]) -> WatchStream:
        def ended(stream: WatchStream, error: BaseException | None) -> None:
            forget(stream)
            if error is not None:
                self._stream_broke(error)

        stream = WatchStream(
            lambda: self._watch.Watch(metadata=METADATA),
            proof_interval=self._proof_interval,
            progress_trusted=lambda: self.progress_trusted,
            on_response=self._on_header,
            on_end=ended,
            clock=self._clock,
        )
        self._streams = {other for other in self._streams if not other.closed} | {stream}
        return stream

    def _stream_broke(self, error: BaseException) -> None:
        """A stream that breaks for the sake of what is on it is its own trouble; otherwise the member is."""
        if isinstance(error, rpc.AioRpcError) and error.code() in (
            rpc.StatusCode.RESOURCE_EXHAUSTED,
            rpc.StatusCode.PERMISSION_DENIED,
            rpc.StatusCode.UNAUTHENTICATED,
        ):
            log.warning("watch stream ended", extra={"endpoint": self.endpoint, "reason": error.details()})
            return
        reason = error.details() if isinstance(error, rpc.AioRpcError) else str(error)
        self.fail(f"watch stream: {reason}")

    async def aclose(self, reason: str) -> None:
        """End everything on it; the watches hear ``Lost``."""
        self.fail(reason)
        tasks = [task for stream in self._streams for task in stream.tasks]
        self.lanes.close(ConnectionError(reason))
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._watch_channel.close()
        await self._kv_channel.close()
