"""What this package raises.

EtcdWatchError
├── RefusedError     the gateway refuses the request, and would refuse a retry
└── DecodeError      a value cannot be decoded (also a ValueError)
"""

from __future__ import annotations


class EtcdWatchError(Exception):
    """Base class of all errors of this package."""


class RefusedError(EtcdWatchError):
    """The gateway refuses the request, and would refuse a retry: a problem of RFC 9457, with a 4xx or a 501."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"HTTP {status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail


class DecodeError(EtcdWatchError, ValueError):
    """``decode`` failed for the value of ``key``. The other keys can be read."""

    def __init__(self, key: str | bytes, revision: int, cause: Exception) -> None:
        super().__init__(f"the value of {key!r} at revision {revision} cannot be decoded: {cause}")
        self.key = key


class StreamEnd(Exception):  # noqa: N818 - a stream's end is not an error: the mirror reconnects
    """Internal: why a stream ended, and the seconds that the gateway asked the client to wait.

    ``at_once``: the same gateway can be asked again without a wait.
    """

    def __init__(self, reason: str, wait: float = 0, *, at_once: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait
        self.at_once = at_once
