"""Every error that a client may see.

GatewayError
├── BadRequestError            400, names the parameter
│   ├── HeadTimeoutError       408
│   └── HeadTooLargeError      431
├── UnauthorizedError          401
├── ForbiddenError             403
├── NotFoundError              404
├── MethodNotAllowedError      405
├── PageExpiredError           410
├── TransientError             held open as a short stream for an EventSource, otherwise 429 or 503 with Retry-After
│   ├── OverCapacityError      429
│   │   └── AnswerRevokedError 429, a feed needed the memory of the answer
│   ├── DrainingError          503
│   ├── PinUnavailableError    503, the range lies in a pin that cannot be held
│   ├── ScopeChangedError      503, what ``scope=permitted`` leaves of the request has changed while it waited
│   ├── NoWorkerError          503, no worker of this gateway can start
│   ├── IssuerUnavailableError 503, the keys that verify a token could not be fetched yet
│   ├── UnavailableError       503, etcd is out of reach
│   │   ├── TooSlowError       503, one answer of etcd took too long
│   │   ├── AnswerCutError     503, one answer of the upstream gateway ended too early
│   │   └── NotConnectedError  503, the connection to the upstream gateway could not be made, or was lost
│   └── TooLargeError          503, the range does not fit in the memory that it may use
│       ├── NoRoomError        503, the range does not fit beside everything that is held now
│       └── LargeMessageError  503, one answer of etcd exceeds the limit of a message
├── EtcdRefusedError           502, etcd answers and refuses the request
│   └── DeniedError            502, etcd's roles do not let the gateway read the range
├── RangesNeedPinError         501, several ranges on one stream need another version of etcd, or a pin
└── RevisionNotReachedError    504, the answer did not reach the revision that the client asked for

CompactedError and FutureRevisionError are for callers inside the gateway. No client sees them as such.

Texts from etcd, or from the connection to etcd, go into ``cause``, because they can contain addresses, user names and
file paths. The log, /v1/feeds and /readyz show the cause to operators. No client sees the cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

from .reasons import CloseReason

_REVOKED = "the gateway needed the memory of this response for its feeds; try again later"


class GatewayError(Exception):
    """An error that becomes an RFC 9457 problem: ``status``, ``title``, ``detail`` and the machine-readable ``code``.

    Args:
        detail: for the client.
        code: replaces the class's own.
        parameter: the query parameter at fault.
        cause: more, for operators only; if given, ``str`` of the error is the cause.
    """

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    code: str = "internal"

    def __init__(self, detail: str, *, code: str | None = None, parameter: str | None = None, cause: str = "") -> None:
        super().__init__(cause or detail)
        self.detail = detail
        self.cause = cause
        self.parameter = parameter
        self.headers: Mapping[str, str] = {}  # additional headers of the response
        if code is not None:
            self.code = code


class BadRequestError(GatewayError):
    """The request is wrong, and sending it again cannot help."""

    status = 400
    title = "Bad request"
    code = "invalid-parameter"


class HeadTimeoutError(BadRequestError):
    """The request's line and headers did not end in time."""

    status = 408
    title = "Request head took too long"
    code = "head-timeout"


class HeadTooLargeError(BadRequestError):
    """The request's line and headers are larger than any sensible request needs."""

    status = 431
    title = "Request head too large"
    code = "head-too-large"


class UnauthorizedError(GatewayError):
    """The credentials are missing or wrong."""

    status = 401
    title = "Unauthorized"
    code = "unauthorized"


class ForbiddenError(GatewayError):
    """The identity may not read the range, or may not ask for this."""

    status = 403
    title = "Forbidden"
    code = "forbidden"


class NotFoundError(GatewayError):
    """The key or the path does not exist."""

    status = 404
    title = "Not found"
    code = "not-found"


class MethodNotAllowedError(GatewayError):
    """The path does not support the request's method."""

    status = 405
    title = "Method not allowed"
    code = "method-not-allowed"


class PageExpiredError(GatewayError):
    """The revision that the pages are pinned to is compacted: the client must start over."""

    status = 410
    title = "Page expired"
    code = "page-expired"


class TransientError(GatewayError):
    """The request cannot be served now. The client must retry after the time that the answer states."""

    status = 503
    title = "Service unavailable"
    close_reason: ClassVar[CloseReason] = "unavailable"
    # By how much the usual retry time is multiplied.
    retry_factor: ClassVar[int] = 1


class OverCapacityError(TransientError):
    """A limit is reached; ``code`` says which."""

    status = 429
    title = "Over capacity"
    code = "over-capacity"
    close_reason = "overloaded"


class AnswerRevokedError(OverCapacityError):
    """The memory of an answer was needed for something that could not wait."""

    code = "too-many-reads"

    def __init__(self, detail: str = _REVOKED, *, cause: str = "") -> None:
        super().__init__(detail, cause=cause)


class DrainingError(TransientError):
    """This gateway is about to stop."""

    code = "draining"
    close_reason = "drain"


class NoWorkerError(TransientError):
    """This gateway has workers, and none of them can start."""

    code = "no-worker"


class ScopeChangedError(TransientError):
    """With ``scope=permitted``: while the request waited, its identity lost the permission for some of the ranges."""

    code = "scope-changed"
    close_reason = "scope-changed"


class IssuerUnavailableError(TransientError):
    """The keys that verify a token could not be fetched yet, so nobody knows whether the token is good."""

    code = "issuer-unavailable"


class UnavailableError(TransientError):
    """etcd is out of reach, and there is no view to serve from."""

    code = "etcd-unavailable"


class PinUnavailableError(TransientError):
    """The range lies in a pinned range (``GATEWAY_PIN``) that the gateway cannot hold now."""

    code = "pin-unavailable"


class TooSlowError(UnavailableError):
    """One answer of etcd exceeded its timeout, perhaps because of its size."""


class AnswerCutError(UnavailableError):
    """The upstream gateway ended the connection within an answer."""


class NotConnectedError(UnavailableError):
    """The connection to the upstream gateway could not be made, or was lost before the head of an answer."""


class TooLargeError(TransientError):
    """The range does not fit ``GATEWAY_MAX_FEED_BYTES``, or one answer does not fit in a message.

    The range will hardly fit in five seconds' time, and every retry costs etcd a Range of the whole prefix. Hence the
    factor.
    """

    title = "Too large"
    code = "too-large"
    close_reason = "too-large"
    retry_factor = 10


class NoRoomError(TooLargeError):
    """The bytes read do not fit beside everything that is held now."""


class LargeMessageError(TooLargeError):
    """One answer of etcd exceeds the limit of a message. ``size``: bytes of the answer, 0 if not known."""

    def __init__(self, detail: str, size: int = 0, *, cause: str = "") -> None:
        super().__init__(detail, cause=cause)
        self.size = size


class EtcdRefusedError(GatewayError):
    """etcd answers and refuses the request."""

    status = 502
    title = "etcd refused"
    code = "etcd-refused"


class DeniedError(EtcdRefusedError):
    """etcd's roles do not let the gateway read the range."""

    @classmethod
    def of(cls, ranges: Iterable[object], cause: str = "") -> Self:
        """Return the error for a channel of *ranges*. It does not tell which of several is denied."""
        return cls(f"etcd's roles do not let the gateway read {', '.join(map(str, ranges))}", cause=cause)


class RangesNeedPinError(GatewayError):
    """Several ranges on one stream, and the progress of the present member cannot be trusted."""

    status = 501
    title = "Not supported by this etcd"
    code = "ranges-need-pin"


class RevisionNotReachedError(GatewayError):
    """The answer has not reached ``min_revision`` in time."""

    status = 504
    title = "Revision not reached"
    code = "revision-not-reached"


class CompactedError(Exception):
    """The requested revision is compacted."""


class FutureRevisionError(Exception):
    """The requested revision has not happened, at least not at this member."""
