"""The response of ``/v1/kv``, which may be large. All equal requests share one body. The body is sent in slices,
and its bytes count against the memory budget while it exists.

uvicorn would take a whole body into its buffer and keep it for as long as the client likes: 30 clients that did not
read held 22 MB each, for ever.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..core.budget import Hold
from ..core.deflate import Checksum, DeflatedPart, end_member
from ..core.encoding import item_body, page_tail
from ..core.errors import AnswerRevokedError
from ..core.etag import ETag
from ..core.events import KeyValue
from ..core.page_token import PageToken
from ..core.selection import Selection
from ..stream.connection import Connection, StuckError
from ..stream.transport import ClientTransport, client_of
from .kv_gzip import coded, deflate

# Bytes handed to the server at a time.
SLICE = 64 * 1024


class KvBody:
    """An encoded body, shared by the responses to all equal requests. ``parts`` is None if the key does not exist.

    ``tag`` is None if the body is a part of a list, or only a count.

    *page*: the next page of a list. Its token is not in ``parts``, because the token differs from reader to reader.

    ``gzip``: the body is sent with gzip, because some of the *parts* are deflated, and the body is smaller that way.

    *hold* is released after the last response has released the body, or when a feed needs the bytes. In the second
    case the clients that are still receiving the body are disconnected.

    Raises:
        AnswerRevokedError: *hold* was revoked while the body was made, so that nothing would count the body.
    """

    __slots__ = ("__weakref__", "_checksum", "_page", "_senders", "parts", "revision", "revoked", "tag")

    def __init__(
        self,
        revision: int,
        parts: Sequence[bytes | DeflatedPart] | None,
        hold: Hold,
        tag: ETag | None = None,
        page: PageToken | None = None,
    ) -> None:
        if hold.released:
            raise revoked()
        self.revision = revision
        self.tag = tag
        self.parts: Sequence[bytes] | None = None
        self._checksum: Checksum | None = None  # of a body with gzip
        if parts is not None:
            self.parts, self._checksum = coded(parts)
        self.revoked = False
        self._page = page
        self._senders: set[Connection] = set()
        hold.set(self.size)
        ours = weakref.ref(self)
        hold.on_revoked = lambda: _revoke(ours())
        weakref.finalize(self, hold.release).atexit = False

    @property
    def gzip(self) -> bool:
        """See the class."""
        return self._checksum is not None

    @property
    def size(self) -> int:
        """The number of bytes in ``parts``."""
        return sum(map(len, self.parts or ()))

    def tail(self, reader: str) -> bytes:
        """Return what follows after ``parts`` in the answer to *reader*."""
        tail = page_tail(self._page.token(reader)) if self._page is not None else b""
        return tail if self._checksum is None else end_member(tail, self._checksum)

    def slices(self) -> Iterator[bytes | memoryview]:
        """Yield the body in pieces that are small enough for the server to copy. Small parts are joined."""
        small: list[bytes] = []
        room = SLICE
        for part in self.parts or ():
            if len(part) > room and small:
                yield b"".join(small)
                small, room = [], SLICE
            if len(part) > SLICE:
                view = memoryview(part)
                for start in range(0, len(view), SLICE):
                    yield view[start : start + SLICE]
            else:
                small.append(part)
                room -= len(part)
        if small:
            yield b"".join(small)

    def revoke(self) -> None:
        """Discard the body, and disconnect every client that is receiving it."""
        self.revoked = True
        self.parts = None
        for connection in self._senders:
            connection.drop()

    def sent_on(self, connection: Connection) -> None:
        """Record that *connection* is receiving the body."""
        self._senders.add(connection)

    def sent(self, connection: Connection) -> None:
        """Record that *connection* no longer receives the body."""
        self._senders.discard(connection)


async def key_body(
    item: KeyValue | None, revision: int, epoch: str, selection: Selection, hold: Hold, *, gzip: bool
) -> KvBody:
    """Return the answer for a single key. *item*: None if the key does not exist."""
    if item is None:
        return KvBody(revision, None, hold, ETag(epoch, 0, 0))
    encoded = item_body(revision, f"{epoch}-{revision}", item, selection.encoding)
    parts = await deflate(encoded) if gzip else [encoded]
    return KvBody(revision, parts, hold, ETag(epoch, item.mod_revision, 1))


def revoked() -> AnswerRevokedError:
    """Return the error of an answer whose memory was needed for something that could not wait."""
    return AnswerRevokedError()


def _nothing() -> None:
    """Do nothing: the default callback."""


def _revoke(body: KvBody | None) -> None:
    if body is not None:
        body.revoke()


class KvResponse(Response):
    """A response of known length. A client that takes nothing for *send_timeout* seconds is disconnected.

    The response lasts until the kernel has all bytes: a connection with bytes in the process cannot be closed. Unlike a
    stream, it does not wait until the client has them. Its connection stays open for the next request, and after that
    the kernel gives up the rest of one send buffer within minutes. A wait would delay the next request.

    *reader*: see ``app.core.page_token.reader_of``.
    """

    def __init__(self, body: KvBody, headers: dict[str, str], reader: str, *, send_timeout: float) -> None:
        self._tail = body.tail(reader)
        length = {"Content-Length": str(body.size + len(self._tail))}
        coding = {"Content-Encoding": "gzip"} if body.gzip else {}
        super().__init__(None, headers={**headers, **length, **coding}, media_type="application/json")
        self._body: KvBody | None = body
        self._send_timeout = send_timeout
        # Called once the response needs nothing any more, however it has ended.
        self.on_sent: Callable[[], None] = _nothing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await self._send(scope, receive, send)
        finally:
            self.on_sent()

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, self._body = self._body, None
        assert body is not None, "a response is sent only once"
        client = client_of(scope)
        if body.size <= SLICE and client.empty:
            await self._send_at_once(body, client, send)
            return
        connection = Connection(scope, receive, send, self._send_timeout)
        body.sent_on(connection)
        try:
            await connection.start(self.status_code, self.raw_headers)
            data: bytes | memoryview = b""
            for following in chain(body.slices(), (self._tail,) if self._tail else ()):
                if data:
                    await connection.send(data)
                data = following
                if body.revoked:
                    break
            if body.revoked:
                await connection.cut_off()  # the body is shorter than its Content-Length
            else:
                await connection.send(data, more=False)
                if client.buffered:
                    await client.until_acked(self._send_timeout)
        except StuckError:
            pass  # the connection is aborted, so no answer can be sent
        finally:
            body.sent(connection)
            del body  # so that the traceback of an error of this request does not keep the body

    async def _send_at_once(self, body: KvBody, client: ClientTransport, send: Send) -> None:
        """Send a small body without waiting, and without the timers of a wait. The transport has room for all of it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        whole = b"".join((*(body.parts or ()), self._tail))
        await send({"type": "http.response.body", "body": whole, "more_body": False})
        if client.buffered:  # the client does not read: count the body, and do not wait for ever
            await client.until_acked(self._send_timeout)
