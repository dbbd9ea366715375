"""A read of ``/v1/kv`` that counts for its caller's quotas until the client has the answer, however slow it is.

A caller that reads as fast as it can would otherwise use up ``GATEWAY_MAX_RANGES``, and the memory of all answers.
"""

from __future__ import annotations

import weakref

from starlette.responses import Response

from ..core.quotas import Releasable
from .kv_response import KvResponse


class CountedRead:
    """Ends the count when it is left, unless the answer's body is still to be sent.

    *reading*: what counts, for a read that was held its subscriber; None: nothing does.
    """

    __slots__ = ("_reading",)

    def __init__(self, reading: Releasable | None) -> None:
        self._reading = reading

    def __enter__(self) -> CountedRead:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        if self._reading is not None:
            self._reading.release()

    def until_sent(self, response: Response) -> Response:
        """Count the read until *response* is sent, or dropped without being sent."""
        if self._reading is not None and isinstance(response, KvResponse):
            reading, self._reading = self._reading, None
            response.on_sent = reading.release
            weakref.finalize(response, reading.release).atexit = False
        return response
