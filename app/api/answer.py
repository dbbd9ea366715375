"""Answers that may be large: written in slices, to a client that has to take them, within a bound for all together.

uvicorn would take a whole body into its buffer and keep it for as long as the client likes: 30 readers that did not
read held 22 MB each, for ever.
"""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.connection import Connection, StuckError
from app.core.errors import OverCapacityError

# Bytes handed to the server at a time.
SLICE = 64 * 1024


class Answers:
    """The bodies being sent. *limit*: bytes; beyond, nobody new is read for."""

    def __init__(self, *, limit: int, send_timeout: float) -> None:
        self.limit = limit
        self.send_timeout = send_timeout
        self.held = 0

    def check(self) -> None:
        """Raises OverCapacityError when the clients of earlier reads hold too much."""
        if self.held >= self.limit:
            msg = f"answers of {self.held} bytes wait for clients that do not take them"
            raise OverCapacityError(msg, code="too-many-reads")


class SlicedResponse(Response):
    """A response of known length; a client that takes nothing for ``send_timeout`` is cut off."""

    def __init__(self, answers: Answers, body: bytes, headers: dict[str, str], media_type: str) -> None:
        super().__init__(body, headers=headers, media_type=media_type)
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        connection = Connection(scope, receive, send, self._answers.send_timeout)
        size = len(self.body)
        self._answers.held += size
        try:
            await connection.start(self.status_code, self.raw_headers)
            for start in range(0, size, SLICE):
                await connection.send(bytes(self.body[start : start + SLICE]), more=start + SLICE < size)
        except StuckError:
            pass  # aborted; there is nobody to tell
        finally:
            self._answers.held -= size
