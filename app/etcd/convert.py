"""Protobuf to the core's values and back, gRPC's errors to ours; pure."""

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

# gRPC rejects a message by the length in front of it, reads no further, and says the length (grpcio 1.85.1: refusing
# 200 MB added nothing to the process, taking them added 540 MB).
_LENGTHS = re.compile(r"larger than max \((\d+) vs\. \d+\)")


def key_value(kv: Any) -> KeyValue:
    """mvccpb.KeyValue."""
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def event(ev: Any) -> Event:
    """mvccpb.Event: type 0 is PUT, 1 is DELETE."""
    kv = ev.kv
    if ev.type:
        return Delete(kv.key, kv.mod_revision)
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def message(response: Any) -> Message:
    """etcdserverpb.WatchResponse."""
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
    """etcdserverpb.WatchRequest: never prev_kv (it costs etcd a Range per event), always fragments and progress."""
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
    """Whether a message was over the limit, ours or the sender's.

    By its words, since etcd and proxies say RESOURCE_EXHAUSTED for other things too: "CLIENT: Received message larger
    than max (102947 vs. 65536)" (grpcio 1.85.1), "trying to send message larger than max" (etcd's own gRPC, 2 GiB).
    """
    return (
        isinstance(error, rpc.AioRpcError)
        and error.code() is rpc.StatusCode.RESOURCE_EXHAUSTED
        and "larger than max" in (error.details() or "")
    )


def range_error(endpoint: str, error: rpc.AioRpcError) -> Exception:
    """What a failed call means to us."""
    code, details = error.code(), error.details() or ""
    if code is rpc.StatusCode.OUT_OF_RANGE:
        return CompactedError(details) if "compacted" in details else FutureRevisionError(details)
    if is_too_large(error):
        lengths = _LENGTHS.search(details)
        return LargeMessageError(
            "etcd's answer does not fit a message",
            int(lengths[1]) if lengths is not None else 0,
            cause=f"{endpoint}: {details}",
        )
    if code is rpc.StatusCode.DEADLINE_EXCEEDED:
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
    """etcd can't be used; why is for operators."""
    return UnavailableError(OUT_OF_REACH, cause=f"{endpoint}: {why}")


def _told(details: str) -> str:
    """What a client may read of a refusal: etcd's own words, and not those of anything that stands between."""
    return details if details.startswith("etcdserver: ") else "etcd refused the request"
