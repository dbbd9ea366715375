"""Everything that can go wrong in words that a client may see.

GatewayError
├── BadRequestError            400, the parameter is named
│   ├── HeadTimeoutError       408
│   └── HeadTooLargeError      431
├── UnauthorizedError          401
├── ForbiddenError             403
├── NotFoundError              404
├── MethodNotAllowedError      405
├── PageExpiredError           410
├── TransientError             held open as a short stream for an EventSource, otherwise 429 or 503 with Retry-After
│   ├── OverCapacityError      429
│   ├── DrainingError          503
│   ├── UnavailableError       503, etcd is out of reach
│   │   └── TooSlowError       503, one answer of it took too long
│   └── TooLargeError          503, the range does not fit the memory it may have
│       ├── NoRoomError        503, not beside all that is held now
│       └── LargeMessageError  503, one answer of etcd is larger than a message may be
└── EtcdRefusedError           502, etcd answers, and says no
    └── DeniedError            502, its roles do not let us read that

CompactedError and FutureRevisionError are for callers inside: no client sees them as such.

What etcd or the way there says goes into ``cause``: it can hold addresses, names of users and paths of files. The log,
/v1/feeds and /readyz show it to operators; no client sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from .reasons import CloseReason


class GatewayError(Exception):
    """Carries what becomes an RFC 9457 problem: ``status``, a machine word ``code``, a ``title``, and its detail.

    *cause*: more, for operators alone; ``str`` of the error is that, if there is any.
    """

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    code: str = "internal"

    def __init__(self, detail: str, *, code: str | None = None, parameter: str | None = None, cause: str = "") -> None:
        super().__init__(cause or detail)
        self.detail = detail
        self.cause = cause
        self.parameter = parameter
        self.headers: Mapping[str, str] = {}  # more for the answer
        if code is not None:
            self.code = code


class BadRequestError(GatewayError):
    """The request is wrong, and will be whenever it is sent again."""

    status = 400
    title = "Bad request"
    code = "invalid-parameter"


class HeadTimeoutError(BadRequestError):
    """The request's line and headers did not end in time."""

    status = 408
    title = "Request head took too long"
    code = "head-timeout"


class HeadTooLargeError(BadRequestError):
    """The request's line and headers are larger than any that makes sense here."""

    status = 431
    title = "Request head too large"
    code = "head-too-large"


class UnauthorizedError(GatewayError):
    """No token, or not the right one."""

    status = 401
    title = "Unauthorized"
    code = "unauthorized"


class ForbiddenError(GatewayError):
    """The range lies outside of what may be read."""

    status = 403
    title = "Forbidden"
    code = "forbidden"


class NotFoundError(GatewayError):
    """No such key, or no such path."""

    status = 404
    title = "Not found"
    code = "not-found"


class MethodNotAllowedError(GatewayError):
    """The path knows other methods."""

    status = 405
    title = "Method not allowed"
    code = "method-not-allowed"


class PageExpiredError(GatewayError):
    """The revision that the pages are pinned to is compacted: start over."""

    status = 410
    title = "Page expired"
    code = "page-expired"


class TransientError(GatewayError):
    """Not now: the client is to come again, after a while that the answer tells it."""

    status = 503
    title = "Service unavailable"
    close_reason: ClassVar[CloseReason] = "unavailable"
    # How many times longer than usual a client is to wait.
    retry_factor: ClassVar[int] = 1


class OverCapacityError(TransientError):
    """A cap is reached; ``code`` says which."""

    status = 429
    title = "Over capacity"
    code = "over-capacity"
    close_reason = "overloaded"


class DrainingError(TransientError):
    """This instance is about to stop."""

    code = "draining"
    close_reason = "drain"


class UnavailableError(TransientError):
    """etcd is out of reach, and there is no view to serve from."""

    code = "etcd-unavailable"


class TooSlowError(UnavailableError):
    """One answer took longer than it may: perhaps for its size."""


class TooLargeError(TransientError):
    """The range does not fit ``GATEWAY_MAX_FEED_BYTES``, or one answer does not fit a message.

    It will hardly fit in five seconds, and every try costs etcd a Range of the whole prefix: hence the factor.
    """

    title = "Too large"
    code = "too-large"
    close_reason = "too-large"
    retry_factor = 10


class NoRoomError(TooLargeError):
    """The bytes that are read do not fit beside all that is held now."""


class LargeMessageError(TooLargeError):
    """One answer of etcd is larger than a message may be. ``size``: its bytes, 0 where they are not known."""

    def __init__(self, detail: str, size: int = 0, *, cause: str = "") -> None:
        super().__init__(detail, cause=cause)
        self.size = size


class EtcdRefusedError(GatewayError):
    """etcd answers, and refuses."""

    status = 502
    title = "etcd refused"
    code = "etcd-refused"


class DeniedError(EtcdRefusedError):
    """etcd's roles do not let the gateway read that."""


class CompactedError(Exception):
    """The revision asked for is compacted."""


class FutureRevisionError(Exception):
    """The revision asked for has not happened (here)."""
