"""uvicorn's HTTP/1.1 protocol, with what it lacks for us.

- ``scope["extensions"]["etcd_watch_gateway"]["client"]``: ASGI has no word for "this connection is stuck, drop it", nor
  for "write these bytes of the body now, if the kernel takes them" (``app.stream.sink``). On another server the
  extension is absent, and all goes by ASGI.
- Nothing is taken in behind a stream: uvicorn would queue a pipelined request, stop reading, and so not notice that
  the client has gone (a watch was held for up to 45 s). The connection ends with the stream.
- A client that is done speaking (half-close) still gets its answer, but no stream: for a stream that is goodbye.
- What is no HTTP is answered by a problem, as everything else is; never inside an answer that is under way.
- Who speaks HTTP/1.0 gets no chunks, which it does not know (RFC 9112, section 6.1): uvicorn sends them to everybody.
- The head of a request is bounded, in bytes and in time: uvicorn waits for ever for the end of one, and for a request
  behind any byte that is none.
- The number of connections is bounded: where descriptors end, ``accept`` fails, for probes and for etcd too.
- A connection is not closed over a request that is on its way: the client would be reset, and not know whether it was
  served. Clients are told how long a connection is kept, so that they leave first.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from functools import partial
from typing import Any, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ..api.problems import problem
from ..core.capacity import Capacity
from ..core.errors import BadRequestError, HeadTimeoutError, HeadTooLargeError
from ..stream.transport import EXTENSION, HTTP_1_0, ClientTransport
from .admission import Admission

# Bytes of a request's line and headers; the parser itself would take, and keep, any number. A key of MAX_KEY_BYTES,
# percent-encoded, is 12 KiB.
MAX_HEAD = 64 * 1024
# Seconds for it, from the first byte behind the last answer, or from the connection; as nginx (client_header_timeout).
HEAD_TIMEOUT = 60.0
# Seconds by which clients are told less than the time that a connection is kept: a request takes a while to come.
EARLIER = 1
# Seconds for a request that was on its way when the server stopped.
LAST_REQUEST = 1.0


# What is used here of uvicorn's classes, none of it documented: another version may lack a name, or mean something else
# by it. So pyproject.toml bounds the version, and tests/server/test_protocol.py compares this list with the code below
# and with the uvicorn that is installed.
UVICORN = {
    "HttpToolsProtocol": {
        "app", "client", "config", "cycle", "flow", "headers", "loop", "parser", "pipeline", "scope", "server_state",
        "timeout_keep_alive", "timeout_keep_alive_task", "transport", "url",
        "connection_lost", "connection_made", "data_received", "eof_received", "on_body", "on_headers_complete",
        "on_message_begin", "on_message_complete", "on_response_complete", "pause_writing", "resume_writing",
        "send_400_response", "shutdown", "timeout_keep_alive_handler",
    },
    "RequestResponseCycle": {
        "chunked_encoding", "default_headers", "disconnected", "expected_content_length", "keep_alive", "more_body",
        "response_complete", "scope",
    },
    "Config": {"loaded_app"},
    "ServerState": {"default_headers"},
}  # fmt: skip

# uvicorn keeps a deque of 624 bytes for each connection.
_NO_PIPELINE: deque[Any] = deque(maxlen=0)
# What answers with a stream, to a GET.
STREAMS = "/v1/watch"


async def unchunked(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """*app* for HTTP/1.0: an answer that does not say its length ends with its connection."""
    cycle: RequestResponseCycle = cast("Any", send).__self__
    sized = True

    async def send_unchunked(message: Message) -> None:
        nonlocal sized
        if message["type"] == "http.response.start":
            sized = any(name.lower() == b"content-length" for name, _ in message["headers"])
            if not sized:
                cycle.chunked_encoding = False
        elif message["type"] == "http.response.body" and not sized:
            cycle.expected_content_length = len(message["body"])  # uvicorn compares with what was not said
        await send(message)

    await app(scope, receive, send_unchunked)


def unmapped(client: tuple[str, int] | None) -> tuple[str, int] | None:
    """An IPv4 client of a socket that takes both families, by its own address: FORWARDED_ALLOW_IPS names it by that."""
    if client is None or not client[0].startswith("::ffff:") or "." not in client[0]:
        return client
    return client[0].removeprefix("::ffff:"), client[1]


class GatewayProtocol(HttpToolsProtocol):
    """Named in the server's configuration (``http=``)."""

    _head_complete = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _client_transport: ClientTransport
    _taken = False  # by a stream
    _deaf = False  # what comes is thrown away
    _stopping = False  # the next answer is the last

    def __init__(self, *args: Any, admission: Admission | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self._admission = admission or Admission(Capacity(sys.maxsize, 0))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """A client has come."""
        super().connection_made(transport)
        self.client = unmapped(self.client)
        self._client_transport = ClientTransport(transport, self._take_over)
        self._await_head()
        self._admission.let_in(self)

    def give_way(self) -> None:
        """Another connection is let in instead of this one, which is idle."""
        self._deaf = True
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone, or was sent away."""
        super().connection_lost(exc)
        self._admission.capacity.leave(self)
        self._head_ended()
        self._client_transport.lose()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._head_is_late)

    def _head_ended(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._answering():
            return  # what has begun behind an answer waits for its end; then uvicorn's own timer runs
        self._deaf = True
        if self._head_complete or not self._head_bytes:
            # A browser's, opened ahead of need: it would take an answer for that to what it asks next.
            self.transport.close()
            return
        self._refuse(HeadTimeoutError(f"a request's line and headers must end within {HEAD_TIMEOUT:g} s"))

    def _answering(self) -> bool:
        return self._taken or (self.cycle is not None and not self.cycle.response_complete)

    def _streaming(self) -> bool:
        """Whether the request under way asks for a stream: the answer to a HEAD, or to a POST, ends by itself."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        return bool(cycle.scope["path"] == STREAMS and cycle.scope["method"] == "GET")

    def _take_over(self) -> None:
        """The rest of this answer is the stream's own, and nothing of its request is kept: it is 20 KiB a subscriber.

        uvicorn is told what it knows of a client that has gone: that the application may return without an end.
        """
        self._taken = self._deaf = True
        self._head_ended()
        self.cycle.disconnected = True
        self.cycle = self.scope = self.headers = self.parser = self.flow = None  # type: ignore[assignment]
        self.pipeline = _NO_PIPELINE

    def shutdown(self) -> None:
        """The server stops: an answer under way ends first, and so does a request; a stream is ended by the gateway."""
        if self._taken:
            return
        self._stopping = True
        if self._answering() or not self._client_transport.unread:
            super().shutdown()
        else:
            self.loop.call_later(LAST_REQUEST, self._close_idle)

    def _close_idle(self) -> None:
        if not self._answering():
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for GATEWAY_KEEP_ALIVE. Timers run before sockets are read: something may have come just now."""
        if not self._client_transport.unread:
            super().timeout_keep_alive_handler()

    def on_response_complete(self) -> None:
        """An answer is out. What is kept of its request is dropped with it: half of what an idle connection holds."""
        super().on_response_complete()
        if self._answering() or self.transport.is_closing():
            return
        self._admission.capacity.rest(self)
        if not self.cycle.more_body:
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment]  # as at the beginning

    def pause_writing(self) -> None:
        """The kernel has not taken all."""
        if not self._taken:
            super().pause_writing()
        self._client_transport.pause()

    def resume_writing(self) -> None:
        """Now it has."""
        if not self._taken:
            super().resume_writing()
        self._client_transport.resume()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what it keeps of a head that does not end is counted."""
        if self._deaf or self.transport.is_closing():
            return
        super().data_received(data)
        if not self._answering() and self.timeout_keep_alive_task is None:
            self._await_head()  # also for a line end, or the rest of a body: they stopped uvicorn's timer
        if self._head_complete:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD:
            self._refuse_head()

    def eof_received(self) -> bool | None:  # type: ignore[override]  # uvicorn's says None, asyncio's bool or None
        """The client is done speaking. True keeps the connection until the answer is out."""
        cycle = self.cycle
        if self._taken or cycle is None or cycle.response_complete or self._streaming():
            return None
        cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        """A request begins: its scope is made here."""
        super().on_message_begin()
        self._head_complete, self._head_bytes = False, 0
        self._await_head()
        extensions = {EXTENSION: {"client": self._client_transport}}
        cast("dict[str, Any]", self.scope)["extensions"] = extensions

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._head_complete = True
        self._head_ended()
        if self._deaf:
            return
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD:
            self._refuse_head()
            return
        if self._streaming():
            self.cycle.keep_alive = False
            self._deaf = True
            return
        app = self.config.loaded_app
        self.app = partial(unchunked, app) if self.parser.get_http_version() == HTTP_1_0 else app
        super().on_headers_complete()
        self._admission.capacity.occupy(self)
        self._keep_alive()

    def _keep_alive(self) -> None:
        cycle = self.cycle
        if self._stopping or not self.timeout_keep_alive:
            cycle.keep_alive = False
        elif cycle.keep_alive and self.timeout_keep_alive > EARLIER and cycle.scope["path"] != STREAMS:
            hint = (b"keep-alive", b"timeout=%d" % (self.timeout_keep_alive - EARLIER))
            cycle.default_headers = [*cycle.default_headers, hint]

    def on_body(self, body: bytes) -> None:
        """Part of a body that nobody asked for: behind 64 KiB of it uvicorn would read no more, nor hear of the end."""
        if not self._deaf and not self._streaming():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has ended."""
        if not self._deaf:
            super().on_message_complete()

    def _refuse_head(self) -> None:
        self._deaf = True
        self._refuse(HeadTooLargeError(f"a request's line and headers may have {MAX_HEAD} bytes"))

    def send_400_response(self, msg: str) -> None:
        """The parser's refusal."""
        self._refuse(BadRequestError(f"this is no HTTP/1.1 request: {msg}", code="malformed-request"))

    def _refuse(self, error: BadRequestError) -> None:
        if self.transport.is_closing():
            return
        if not self._answering():
            answer = problem(error)
            headers = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
            head = b"".join(b"%b: %b\r\n" % header for header in headers)
            status = STATUS_LINE[error.status]
            self.transport.write(b"".join((status, head, b"\r\n", answer.body)))
        self.transport.close()
