"""Convert protobuf messages to the core's values and back, and gRPC's errors to the gateway's; pure."""

from __future__ import annotations

import re
from typing import Any

from aetcd import rpc

from ..core.errors import (
    CompactedError,
    DeniedError,
    EtcdRefusedError,
    FutureRevisionError,
    LargeMessageError,
    TooSlowError,
    UnavailableError,
)
from ..core.events import Delete, Event, KeyValue
from ..core.multiplex import CancelRequest, CreateRequest, Message, Request
from ..ports import OUT_OF_REACH
from .hints import explain

# gRPC rejects a message by its length prefix, reads no further, and reports the length (grpcio 1.85.1: rejecting 200 MB
# added nothing to the process; accepting 200 MB added 540 MB).
_LENGTHS = re.compile(r"larger than max \((\d+) vs\. \d+\)")


def key_value(kv: Any) -> KeyValue:
    """Convert an mvccpb.KeyValue."""
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def event(ev: Any) -> Event:
    """Convert an mvccpb.Event: type 0 is PUT, type 1 is DELETE."""
    kv = ev.kv
    if ev.type:
        return Delete(kv.key, kv.mod_revision)
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def message(response: Any) -> Message:
    """Convert an etcdserverpb.WatchResponse."""
    return Message(
        watch_id=response.watch_id,
        revision=response.header.revision,
        created=response.created,
        canceled=response.canceled,
        compact_revision=response.compact_revision,
        cancel_reason=response.cancel_reason,
        fragment=response.fragment,
        events=[event(ev) for ev in response.events],
    )


def watch_request(request: Request) -> Any:
    """Return an etcdserverpb.WatchRequest.

    It always asks for fragments and progress, and never for prev_kv, which costs etcd a Range per event.
    """
    if isinstance(request, CreateRequest):
        return rpc.WatchRequest(
            create_request=rpc.WatchCreateRequest(
                key=request.range.start,
                range_end=request.range.end,
                start_revision=request.start,
                progress_notify=True,
                fragment=True,
                watch_id=request.watch_id,
            )
        )
    if isinstance(request, CancelRequest):
        return rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=request.watch_id))
    return rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())


def is_too_large(error: BaseException | None) -> bool:
    """Whether a message was over the limit, the gateway's or the sender's.

    The text decides, because etcd and proxies use RESOURCE_EXHAUSTED for other failures too: "CLIENT: Received message
    larger than max (102947 vs. 65536)" (grpcio 1.85.1), "trying to send message larger than max" (etcd's own gRPC,
    2 GiB).
    """
    return (
        isinstance(error, rpc.AioRpcError)
        and error.code() is rpc.StatusCode.RESOURCE_EXHAUSTED
        and "larger than max" in (error.details() or "")
    )


def timed_out(error: rpc.AioRpcError) -> bool:
    """Return whether no quorum answered in time. The deadline also reaches etcd, which may report it first.

    etcd 3.4 reports it as UNKNOWN (seen with 3.4.23, in 2 of 19 runs). After its own 7 s, etcd reports UNAVAILABLE.
    """
    details = error.details() or ""
    return (
        error.code() is rpc.StatusCode.DEADLINE_EXCEEDED
        or (error.code() is rpc.StatusCode.UNKNOWN and "context deadline exceeded" in details)
        or (error.code() is rpc.StatusCode.UNAVAILABLE and "etcdserver: request timed out" in details)
    )


def is_of_etcd(error: rpc.AioRpcError) -> bool:
    """Whether etcd itself has answered with the error: then the connection to it is well."""
    return (error.details() or "").startswith("etcdserver: ")


def leader_changed(error: rpc.AioRpcError) -> bool:
    """Whether the cluster has a new leader: that ends all linearizable reads that wait at a member."""
    return "etcdserver: leader changed" in (error.details() or "")


def range_error(endpoint: str, error: rpc.AioRpcError) -> Exception:
    """Return the gateway's exception for a failed call."""
    code, details = error.code(), error.details() or ""
    if code is rpc.StatusCode.OUT_OF_RANGE:
        return CompactedError(details) if "compacted" in details else FutureRevisionError(details)
    if is_too_large(error):
        lengths = _LENGTHS.search(details)
        return LargeMessageError(
            "etcd's answer is too large for one message",
            int(lengths[1]) if lengths is not None else 0,
            cause=f"{endpoint}: {details}",
        )
    if timed_out(error):
        return TooSlowError("etcd did not answer in time", cause=f"{endpoint}: {explain(endpoint, error)}")
    if code is rpc.StatusCode.PERMISSION_DENIED:
        return DeniedError(_told(details), cause=f"{endpoint}: {details}")
    if code in (
        rpc.StatusCode.UNAUTHENTICATED,
        rpc.StatusCode.INVALID_ARGUMENT,
        rpc.StatusCode.FAILED_PRECONDITION,
    ):
        return EtcdRefusedError(_told(details), cause=f"{endpoint}: {details}")
    return unavailable(endpoint, explain(endpoint, error))


def unavailable(endpoint: str, why: str) -> UnavailableError:
    """Return the error for an etcd that cannot be used. Operators see *why*; clients do not."""
    return UnavailableError(OUT_OF_REACH, cause=f"{endpoint}: {why}")


def _told(details: str) -> str:
    """Return what a client may read of a refusal: etcd's own text, but not the text of a proxy in between."""
    return details if details.startswith("etcdserver: ") else "etcd refused the request"
