"""Protobuf to the core's values and back, and the meaning of a failed Range."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from aetcd import rpc

from app.core.errors import (
    CompactedError,
    DeniedError,
    EtcdRefusedError,
    FutureRevisionError,
    GatewayError,
    LargeMessageError,
    TooSlowError,
    UnavailableError,
)
from app.core.events import Delete, KeyValue
from app.core.keys import KeyRange
from app.core.multiplex import CancelRequest, CreateRequest, Message, ProgressRequest
from app.etcd.convert import is_too_large, key_value, message, range_error, watch_request

ENDPOINT = "http://a:1"
KV = {"key": b"a", "value": b"1", "create_revision": 2, "mod_revision": 5, "version": 3, "lease": 7}


def status(code: grpc.StatusCode, details: str = "") -> rpc.AioRpcError:
    """The error that gRPC raises."""
    return rpc.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def test_a_key_value() -> None:
    """All members are converted."""
    assert key_value(rpc.KeyValue(**KV)) == KeyValue(b"a", b"1", 2, 5, 3, 7)


def test_a_message() -> None:
    """For a delete, etcd only sends the key and the revision."""
    response = rpc.WatchResponse(
        header=rpc.ResponseHeader(revision=9),
        watch_id=4,
        fragment=True,
        events=[
            rpc.Event(type=0, kv=rpc.KeyValue(**KV)),
            rpc.Event(type=1, kv=rpc.KeyValue(key=b"b", mod_revision=6)),
        ],
    )
    assert message(response) == Message(4, 9, fragment=True, events=[KeyValue(b"a", b"1", 2, 5, 3, 7), Delete(b"b", 6)])
    cancelled = rpc.WatchResponse(watch_id=4, canceled=True, compact_revision=8, cancel_reason="gone")
    assert message(cancelled) == Message(4, canceled=True, compact_revision=8, cancel_reason="gone", events=[])


def test_requests() -> None:
    """A create asks for fragments and progress, but not for the previous value, which costs etcd a Range an event."""
    create = watch_request(CreateRequest(3, KeyRange("prefix", b"/svc/"), 17)).create_request
    assert (create.watch_id, create.key, create.range_end, create.start_revision) == (3, b"/svc/", b"/svc0", 17)
    assert (create.fragment, create.progress_notify, create.prev_kv) == (True, True, False)
    assert watch_request(CancelRequest(3)).cancel_request.watch_id == 3
    assert watch_request(ProgressRequest()).WhichOneof("request_union") == "progress_request"


@pytest.mark.parametrize(
    ("error", "too_large"),
    [
        (status(grpc.StatusCode.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (9 vs. 5)"), True),
        (status(grpc.StatusCode.RESOURCE_EXHAUSTED, "trying to send message larger than max (9 vs. 5)"), True),
        (status(grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests"), False),
        (status(grpc.StatusCode.INTERNAL, "larger than max (9 vs. 5)"), False),
        (ConnectionError("larger than max"), False),
        (None, False),
    ],
)
def test_too_large(error: BaseException | None, too_large: bool) -> None:
    """A message over the limit is recognised by its text: the code has other meanings, too."""
    assert is_too_large(error) is too_large


C = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (C.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", CompactedError),
        (C.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision", FutureRevisionError),
        (C.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (102947 vs. 65536)", LargeMessageError),
        (C.RESOURCE_EXHAUSTED, "etcdserver: too many requests", UnavailableError),
        (C.DEADLINE_EXCEEDED, "Deadline Exceeded", TooSlowError),
        (C.PERMISSION_DENIED, "etcdserver: permission denied", DeniedError),
        (C.UNAUTHENTICATED, "etcdserver: invalid auth token", EtcdRefusedError),
        (C.INVALID_ARGUMENT, "etcdserver: user name is empty", EtcdRefusedError),
        (C.FAILED_PRECONDITION, "etcdserver: authentication is not enabled", EtcdRefusedError),
        (C.UNAVAILABLE, "etcdserver: no leader", UnavailableError),
        (C.CANCELLED, "the call was cancelled", UnavailableError),
        (C.INTERNAL, "broken", UnavailableError),
    ],
)
def test_what_a_failed_range_means(code: grpc.StatusCode, details: str, kind: type[Exception]) -> None:
    """Each failure has its exact kind; operators get the endpoint and etcd's text."""
    error: Any = range_error(ENDPOINT, status(code, details))
    assert type(error) is kind
    if isinstance(error, GatewayError):
        assert error.cause.startswith(f"{ENDPOINT}: ")
        assert details in error.cause
        assert ENDPOINT not in error.detail


def test_the_size_of_a_large_message() -> None:
    """gRPC's text has the size; the text about a sender's limit has another form."""
    error: Any = range_error(
        ENDPOINT, status(C.RESOURCE_EXHAUSTED, "Received message larger than max (102947 vs. 65536)")
    )
    assert error.size == 102_947
    error = range_error(ENDPOINT, status(C.RESOURCE_EXHAUSTED, "message larger than max"))
    assert error.size == 0
