"""The gRPC channels to one member: their options, and the maximum message size on each."""

from __future__ import annotations

import grpc

from .credentials import Credentials

# One message holds a fragment (2 MiB by default, or one event), a page of a Range, or a response that etcd does not
# divide: up to 1,000 revisions that waited for the answer to a create. A page that does not fit is requested again with
# fewer keys. Values up to an etcd --max-request-bytes of tens of MiB still fit. ``FeedCore`` decides what happens to a
# watch whose message does not fit.
MAX_MESSAGE = 512 * 1024 * 1024

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # An http_proxy in the environment is meant for the web, not for etcd.
    ("grpc.enable_http_proxy", 0),
    # Each channel has its own pool: otherwise channels to the same address share one connection.
    ("grpc.use_local_subchannel_pool", 1),
    # etcd allows a ping every 5 s (--grpc-keepalive-min-time). Idle connections are not pinged.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # The gateway's own backoff decides when to retry.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # In fact this is the timeout of one connection attempt, TLS included. With 100 ms, an etcd 80 ms away was out of
    # reach.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


# The number of bytes that gRPC reads ahead of the gateway. By default, gRPC measures the connection and reads more and
# more ahead, even of an answer that it then rejects for its length. Six reads of values of 0.9 MB, within a bound of
# 16 MiB, made the process 23 to 61 MiB larger by default, and 14 to 20 MiB larger with these options.
READ_AHEAD = {"grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": 1 << 20}
# A page of a Range that is larger is rejected and requested again with fewer keys: the sizes of values are unknown
# before they are read. The limit fits a value of the maximum size that etcd allows by default, 1.5 MiB.
MAX_PAGE_MESSAGE = 2 * 1024 * 1024


def open_channels(
    endpoint: str, credentials: Credentials, max_message: int
) -> tuple[grpc.aio.Channel, grpc.aio.Channel, grpc.aio.Channel]:
    """Return three channels: for reads, for watches, and for single items larger than a page.

    The third channel connects only when it is used.
    """
    scheme, _, target = endpoint.partition("://")
    tls = credentials.channel() if scheme == "https" else None

    def channel(limit: int, options: dict[str, int]) -> grpc.aio.Channel:
        least = min(limit, options["grpc.max_receive_message_length"])
        chosen = tuple((options | {"grpc.max_receive_message_length": least}).items())
        if tls is not None:
            return grpc.aio.secure_channel(target, tls, options=chosen)
        return grpc.aio.insecure_channel(target, options=chosen)

    reads = dict(OPTIONS) | READ_AHEAD
    return channel(MAX_PAGE_MESSAGE, reads), channel(max_message, dict(OPTIONS)), channel(MAX_MESSAGE, reads)
