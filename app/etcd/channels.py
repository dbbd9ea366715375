"""gRPC's channels to one member: their options, and how large a message may be on each."""

from __future__ import annotations

import grpc

from .credentials import Credentials

# One message holds a fragment (2 MiB by default, or one event), a page of a Range, which asks for fewer keys if it does
# not fit, or what etcd does not divide: up to 1,000 revisions that waited for the answer to a create. Values up to
# etcd's --max-request-bytes of tens of MiB still pass. A watch that does not is ``FeedCore``'s to judge.
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
    # In truth the time for one attempt to connect, TLS included: with 100 ms, an etcd 80 ms away was out of reach.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


# gRPC takes so many bytes of a read ahead of us. By itself it measures the connection, and takes more and more ahead,
# also of an answer that it then refuses for its length: six reads of values of 0.9 MB, in a bound of 16 MiB, made the
# process 23 to 61 MiB larger, and 14 to 20 MiB so.
READ_AHEAD = {"grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": 1 << 20}
# A page of a Range is refused when it is larger, and asked for again with fewer keys: the size of what etcd holds is
# not known before it is read. It holds a value of the size that etcd allows by default, 1.5 MiB.
MAX_PAGE_MESSAGE = 2 * 1024 * 1024


def open_channels(
    endpoint: str, credentials: Credentials, max_message: int
) -> tuple[grpc.aio.Channel, grpc.aio.Channel, grpc.aio.Channel]:
    """One for reads, one for watches, and one for single items that are larger than a page; that one connects late."""
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
