"""The response of ``/v1/kv``, which may be large: one body for all equal requests, sent in slices, counted while it
exists.

uvicorn would take a whole body into its buffer and keep it for as long as the client likes: 30 readers that did not
read held 22 MB each, for ever.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..core.budget import Hold
from ..stream.connection import Connection, StuckError

# Bytes handed to the server at a time.
SLICE = 64 * 1024


class KvBody:
    """An encoded body, shared by the responses to all equal requests. ``parts`` is None when there is no such key.

    *hold* is given back when the last response has let go of the body, or when a feed needs the bytes: then the
    clients that are still being sent the body are cut off.
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
        """The body, in pieces small enough for the server to copy."""
        for part in self.parts or ():
            view = memoryview(part)
            for start in range(0, len(view), SLICE):
                yield view[start : start + SLICE]

    def revoke(self) -> None:
        """Keep nothing of the body, and cut off every client that is being sent it."""
        self.revoked = True
        self.parts = None
        for connection in self._senders:
            connection.drop()

    def sent_on(self, connection: Connection) -> None:
        """The body is being sent over *connection*."""
        self._senders.add(connection)

    def sent(self, connection: Connection) -> None:
        """It is no longer being sent there."""
        self._senders.discard(connection)


def _revoke(body: KvBody | None) -> None:
    if body is not None:
        body.revoke()


class KvResponse(Response):
    """A response of known length; a client that takes nothing for *send_timeout* is cut off."""

    def __init__(self, body: KvBody, headers: dict[str, str], media_type: str, *, send_timeout: float) -> None:
        super().__init__(None, headers={**headers, "Content-Length": str(body.size)}, media_type=media_type)
        self._body: KvBody | None = body
        self._send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        body, self._body = self._body, None
        assert body is not None, "a response is sent once"
        connection = Connection(scope, receive, send, self._send_timeout)
        body.sent_on(connection)
        try:
            await connection.start(self.status_code, self.raw_headers)
            for data in body.slices():
                if body.revoked:
                    await connection.cut_off()  # the body is shorter than the length that was announced
                    return
                await connection.send(data)
            await connection.send(b"", more=False)
        except StuckError:
            pass  # the connection is aborted; there is nobody to tell
        finally:
            body.sent(connection)
            del body  # an error of this request, if it is kept, does not keep the body
