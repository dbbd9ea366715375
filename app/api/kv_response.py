"""Answers that may be large: encoded once for all who ask the same, written in slices, and counted while they exist.

uvicorn would take a whole body into its buffer and keep it for as long as the client likes: 30 readers that did not
read held 22 MB each, for ever.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.core.budget import Hold
from app.stream.connection import Connection, StuckError

# Bytes handed to the server at a time.
SLICE = 64 * 1024


class Answer:
    """What was read, encoded: one body for all who asked the same. ``parts`` None: there is no such key.

    *hold* is given back when the last of them has let go of it, or when a feed needs the bytes: then those who are
    still being sent it are cut off.
    """

    __slots__ = ("__weakref__", "_senders", "parts", "revision", "revoked")

    def __init__(self, revision: int, parts: Sequence[bytes] | None, hold: Hold) -> None:
        self.revision = revision
        self.parts = parts
        self.revoked = False
        self._senders: set[Connection] = set()
        hold.set(self.size)
        ours = weakref.ref(self)
        hold.on_revoked = lambda: _revoke(ours())
        weakref.finalize(self, hold.release).atexit = False

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return sum(map(len, self.parts or ()))

    def slices(self) -> Iterator[memoryview]:
        """The body, in pieces that the server may copy."""
        for part in self.parts or ():
            view = memoryview(part)
            for start in range(0, len(view), SLICE):
                yield view[start : start + SLICE]

    def revoke(self) -> None:
        """Keep nothing of it, and cut off whoever is being sent it."""
        self.revoked = True
        self.parts = None
        for connection in self._senders:
            connection.drop()

    def sent_on(self, connection: Connection) -> None:
        """It is being sent there."""
        self._senders.add(connection)

    def sent(self, connection: Connection) -> None:
        """It is no longer."""
        self._senders.discard(connection)


def _revoke(answer: Answer | None) -> None:
    if answer is not None:
        answer.revoke()


class SlicedResponse(Response):
    """A response of known length; a client that takes nothing for *send_timeout* is cut off."""

    def __init__(self, answer: Answer, headers: dict[str, str], media_type: str, *, send_timeout: float) -> None:
        super().__init__(None, headers={**headers, "Content-Length": str(answer.size)}, media_type=media_type)
        self._answer: Answer | None = answer
        self._send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        answer, self._answer = self._answer, None
        assert answer is not None, "a response is sent once"
        connection = Connection(scope, receive, send, self._send_timeout)
        answer.sent_on(connection)
        try:
            await connection.start(self.status_code, self.raw_headers)
            for data in answer.slices():
                if answer.revoked:
                    await connection.cut_off()  # the length that was announced is not reached
                    return
                await connection.send(data)
            await connection.send(b"", more=False)
        except StuckError:
            pass  # aborted; there is nobody to tell
        finally:
            answer.sent(connection)
            del answer  # whoever keeps an error of this request does not keep the body
