"""A request for a stream, parsed and authorized."""

from __future__ import annotations

from dataclasses import dataclass

from ..access.permit import Permit
from ..core.cursor import Cursor
from ..core.frames import GZIP
from ..core.negotiation import Coding
from ..core.quotas import Caller
from ..core.selection import Selection


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """See the module."""

    selection: Selection
    format: str
    cursor: Cursor | None
    snapshot: bool
    holdable: bool  # an EventSource sent it: a transient refusal must be a 200
    address: str
    user_agent: str
    request_id: str
    interval: float = 0.0  # of ``mode=latest``, in seconds; 0: every event is sent
    min_revision: int = 0
    caller: Caller | None = None  # whose quotas the stream counts for
    permit: Permit | None = None  # None: nothing is checked after the stream has begun
    from_gateway: bool = False  # a gateway that follows this one sent it
    coding: Coding = Coding.FIXED

    @property
    def form(self) -> str:
        """The form of the stream's bytes: see ``app.core.frames``."""
        return self.format + GZIP if self.coding is Coding.GZIP else self.format

    @property
    def id_header(self) -> tuple[bytes, bytes]:
        """The header that tells the client its request's id."""
        return (b"x-request-id", self.request_id.encode())
