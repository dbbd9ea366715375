"""uvicorn's HTTP/1.1 protocol, with the parts that uvicorn lacks for the gateway.

- ``scope["extensions"]["etcd_watch_gateway"]["client"]``: ASGI has no message for "this connection is stuck, abort it",
  nor for "write these bytes of the body now, if the kernel takes them" (``app.stream.sink``). Another server does not
  offer the extension; there, everything goes through ASGI.
- On one connection, no request is accepted after a request for a stream, or for an answer that may be held. uvicorn
  would queue a pipelined request and stop reading. Then uvicorn would not detect that the client has disconnected (a
  watch was held for up to 45 s, an answer for 60 s). The connection ends with the stream, or with the answer.
- If the client disconnects, all requests of the connection learn it. uvicorn tells it only to the last one.
- A client may half-close its connection and still gets its answer. A half-close ends a stream, though: for a stream it
  counts as a disconnect.
- Bytes that are not HTTP are answered with a problem, as every other error is. If they come after a whole request, that
  request gets its answer, and then the connection ends. uvicorn would close it without any answer.
- The ``Host`` header must be as RFC 9112, section 3.2, demands. uvicorn accepts a request with none, or with any.
- A connection whose client has already reset it is dropped. Its requests would have no address: no quota of an address
  would count them, and the audit log could not say where they came from.
- An HTTP/1.0 client gets no chunks, because it does not know them (RFC 9112, section 6.1). uvicorn sends chunks to all
  clients.
- The head of a request is bounded, in bytes and in time. uvicorn never times out an unfinished head, nor stray bytes
  after a request.
- The body of a request that asks for another protocol (``Upgrade``) is never taken for a request. The parser does not
  read such a body, and uvicorn goes on after the head: behind a proxy that passes the header on, a client could send a
  request inside another one, in the name of any user. Nothing is lost that a client sends after such a request.
- A client that does not take an answer is disconnected (``send_watch``). uvicorn waits for ever.
- The number of connections is bounded. When the process has no descriptors left, ``accept`` fails, for probes too, and
  so do connections to etcd.
- The gateway does not close a connection on which a request is arriving. The client would get a reset, and would not
  know whether the request was served. The gateway tells clients how long it keeps a connection, so that the clients
  close it first.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import Any, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ..core.capacity import Capacity
from ..core.errors import BadRequestError, HeadTimeoutError, HeadTooLargeError
from ..stream.transport import EXTENSION, HTTP_1_0, ClientTransport
from .admission import Admission
from .answers import closing_answer
from .send_watch import SendWatch

# Bytes of a request's line and headers. The parser itself would accept, and keep, any number of bytes. A key of
# MAX_KEY_BYTES is 12 KiB when it is percent-encoded.
MAX_HEAD = 64 * 1024
# Seconds for a request's line and headers, from the first byte after the last answer, or from the start of the
# connection; the same as nginx (client_header_timeout).
HEAD_TIMEOUT = 60.0
# `Keep-Alive` announces this many seconds less than the gateway waits: a request takes a while to arrive.
EARLIER = 1
# Seconds to wait, when the server stops, for a request that is arriving.
LAST_REQUEST = 1.0


# The names in uvicorn's classes that this file uses. uvicorn documents none of them: another version may lack a name,
# or give the name another meaning. So pyproject.toml bounds the version, and tests/server/test_protocol.py compares
# this list with the code below and with the installed uvicorn.
UVICORN = {
    "HttpToolsProtocol": {
        "app", "client", "config", "connections", "cycle", "flow", "headers", "loop", "parser", "pipeline", "scheme",
        "scope", "server", "server_state",
        "timeout_keep_alive", "timeout_keep_alive_task", "transport", "url",
        "connection_lost", "connection_made", "data_received", "eof_received", "on_body", "on_header",
        "on_headers_complete",
        "on_message_begin", "on_message_complete", "on_response_complete", "pause_writing", "resume_writing",
        "send_400_response", "shutdown", "timeout_keep_alive_handler",
    },
    "RequestResponseCycle": {
        "chunked_encoding", "default_headers", "disconnected", "expected_content_length", "keep_alive",
        "message_event", "more_body", "response_complete", "response_started", "scope",
    },
    "Config": {"loaded_app"},
    "ServerState": {"default_headers"},
}  # fmt: skip

# The versions of HTTP that are served. The parser takes a request without a version for one of HTTP/0.9.
VERSIONS = ("1.1", HTTP_1_0)
# The value of a Host header (RFC 9110, section 7.2): a name or an address, perhaps with a port. It may be empty. A
# comma would be valid, but is what a proxy makes of two such headers.
HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]*|\[[0-9A-Za-z.:%_~-]+\])(?::[0-9]*)?")
# The begin of an absolute target without a path, which means "/" (RFC 9110, section 4.2.3). uvicorn accepts none.
NO_PATH = re.compile(rb"\Ahttps?://[^/?]+(?=\?|\Z)", re.IGNORECASE)
# The path that answers a GET with a stream.
STREAMS = "/v1/watch"
# The path, and the header of a request, whose answer may be held.
HELD, WAIT = "/v1/kv", b"prefer"


# What clients get wrong most often: the parser's words, and what to do about it.
TO_DO = {
    "Invalid char in url": "percent-encode all bytes of the target that are not ASCII",
    "Invalid target": "percent-encode it, and begin its path with a slash",
    "Expected HTTP/": "percent-encode spaces in the target, and write HTTP/1.1 after it",
    "Invalid method": "methods are written in upper case, and a port that speaks plain HTTP takes no TLS",
}


def _parsers_words(msg: str) -> str:
    """Return what the parser says about the bytes that it refuses now, with advice if there is any; else *msg*."""
    error = sys.exc_info()[1]
    if not isinstance(error, HttpParserError):
        return msg
    # Of what uvicorn and this module do in a callback, only the parsing of the target fails.
    words = "Invalid target" if isinstance(error, HttpParserCallbackError) else str(error) or msg
    return next((f"{words}; {advice}" for begin, advice in TO_DO.items() if words.startswith(begin)), words)


async def unchunked(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Call *app* for an HTTP/1.0 client: an answer without a length ends with its connection."""
    cycle: RequestResponseCycle = cast("Any", send).__self__
    sized = True

    async def send_unchunked(message: Message) -> None:
        nonlocal sized
        if message["type"] == "http.response.start":
            sized = any(name.lower() == b"content-length" for name, _ in message["headers"])
            if not sized:
                cycle.chunked_encoding = False
        elif message["type"] == "http.response.body" and not sized:
            # uvicorn compares the body with a Content-Length, although none was sent.
            cycle.expected_content_length = len(message["body"])
        await send(message)

    await app(scope, receive, send_unchunked)


def address(transport: asyncio.Transport, name: str) -> tuple[str, int] | str | None:
    """Return host and port: ``sockname`` is the gateway's own, ``peername`` the client's.

    Of a Unix socket it is a path, or empty. None if the client has gone.
    """
    try:
        found = transport.get_extra_info(name)
    except OSError:
        return None
    return (found[0], found[1]) if isinstance(found, tuple) else found  # of IPv6, there are two numbers more


def fault_of_host(headers: Iterable[tuple[bytes, bytes]], version: str) -> str:
    """Return what is wrong with the Host header; empty if nothing is. Only HTTP/1.0 does without it."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1:
        return "it has two Host headers"
    if not hosts:
        return "" if version == HTTP_1_0 else "it has no Host header"
    return "" if HOST.fullmatch(hosts[0]) else "its Host header is not a host"


def has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request has a body, or may have one (RFC 9112, section 6.3)."""
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)


def unmapped(client: tuple[str, int] | str | None) -> tuple[str, int] | None:
    """Return an IPv4 client of a dual-stack socket under its IPv4 address, which GATEWAY_TRUSTED_PROXIES names."""
    if not isinstance(client, tuple):
        return None
    if not client[0].startswith("::ffff:") or "." not in client[0]:
        return client
    return client[0].removeprefix("::ffff:"), client[1]


class GatewayProtocol(HttpToolsProtocol):
    """The protocol class that the server's configuration names (``http=``)."""

    _head_complete = False
    _head_bytes = 0
    _passed = False  # the parser has passed something on of the bytes that were received last
    _head_timer: asyncio.TimerHandle | None = None
    _client_transport: ClientTransport
    _taken = False  # a stream has taken over the connection
    _discarding = False  # received bytes
    _stopping = False  # the next answer is the last
    _running: RequestResponseCycle | None = None  # the request that is being answered, if others wait for its end
    _send_watch: SendWatch | None = None  # of a client that has not taken all bytes at once

    def __init__(self, *args: Any, admission: Admission | None = None, send_timeout: float = 30.0, **more: Any) -> None:
        super().__init__(*args, **more)
        self._admission = admission or Admission(Capacity(sys.maxsize, 0))
        self._send_timeout = send_timeout

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Start the timer for the first head, and admit the connection.

        uvicorn's own method asks the kernel seven times for the two addresses. That took 7 us of a join.
        """
        self.connections.add(self)
        self.transport, self.flow = transport, FlowControl(transport)
        peer = address(transport, "peername")
        self.server, self.client = unmapped(address(transport, "sockname")), unmapped(peer)
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._client_transport = ClientTransport(transport, self)
        self._await_head()
        self._admission.let_in(self)
        if peer is None:
            self._discarding = True
            transport.abort()

    def give_way(self) -> None:
        """Close this idle connection: another connection is admitted instead.

        A close would keep the descriptor for as long as the client does not take its last answer.
        """
        self._discarding = True
        if self._client_transport.buffered:
            self._client_transport.abort()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything: the client disconnected, or the gateway closed the connection."""
        super().connection_lost(exc)
        for cycle in (self._running, *(waiting for waiting, _app in self.pipeline)):
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()
        self._running = None
        self.pipeline.clear()
        if self.timeout_keep_alive_task is not None:  # uvicorn leaves the timer running if the client sent a reset
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        self._admission.capacity.leave(self)
        self._head_ended()
        self._stop_watching()
        self._client_transport.lose()

    def _watch_client(self) -> None:
        """Look after a client that has not taken all bytes, until it has."""
        if not self._client_transport.buffered:
            return
        if self._send_watch is None:
            self._send_watch = SendWatch(self._client_transport, self._send_timeout)
        if not self._send_watch.running:
            self._send_watch.begin()

    def _stop_watching(self) -> None:
        if self._send_watch is not None:
            self._send_watch.stop()
            self._send_watch = None

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
            return  # a head that began during an answer waits for the answer's end; then uvicorn's own timer runs
        self._discarding = True
        if not self._head_begun:
            # A browser opens connections ahead of need. It would take a 408 for the answer to its next request.
            self.transport.close()
            return
        self._refuse(HeadTimeoutError(f"a request's line and headers must end within {HEAD_TIMEOUT:g} s"))

    @property
    def _head_begun(self) -> bool:
        """Whether a part of a request's head has been read, and not the whole of it."""
        return self._head_bytes > 0 and not self._head_complete

    def _answering(self) -> bool:
        return self._taken or (self.cycle is not None and not self.cycle.response_complete)

    def _streaming(self) -> bool:
        """Whether the unfinished request asks for a stream. The answer to a HEAD, or to a POST, ends by itself."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        return bool(cycle.scope["path"] == STREAMS and cycle.scope["method"] == "GET")

    def _is_last(self) -> bool:
        """Whether no further request is accepted, because the answer to the unfinished one may last."""
        if self._streaming():
            return True
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        return cycle.scope["path"] == HELD and any(name == WAIT for name, _ in cycle.scope["headers"])

    def head_of(self, lines: bytes) -> bytes:
        """Return the head of a stream with these header lines, as uvicorn would send it."""
        cycle = self.cycle
        parts = [STATUS_LINE[200], *(b"%b: %b\r\n" % header for header in cycle.default_headers), lines]
        parts.append(b"connection: close\r\n")
        if cycle.scope["http_version"] != HTTP_1_0:
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)

    def take_over(self) -> None:
        """See ``Server``. This protocol ends with the request's task.

        For uvicorn the client has disconnected: only then may the application return before the response is complete.
        """
        self._taken = self._discarding = True
        self._head_ended()
        self._stop_watching()
        self.cycle.disconnected = True
        # Each of these refers to this protocol, which refers to them.
        self.cycle = self.parser = None  # type: ignore[assignment]
        self.connections.discard(self)
        self._client_transport.take_from_server(self.connections, self._admission.capacity)

    def shutdown(self) -> None:
        """Close the connection because the server stops. An unfinished answer ends first, and so does a request that
        is arriving.

        This does not concern a stream: its connection has left this protocol.
        """
        self._stopping = True
        if self._answering() or not (self._head_begun or self._client_transport.unread):
            super().shutdown()
        else:
            self.loop.call_later(LAST_REQUEST, self._close_idle)

    def _close_idle(self) -> None:
        if self._answering():
            return
        if self._head_begun:
            self._discarding = True
            self._refuse(HeadTimeoutError(f"the gateway stops: a head must end within {LAST_REQUEST:g} s"))
        else:
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection after GATEWAY_KEEP_ALIVE.

        The event loop runs timers before it reads sockets, so bytes may have arrived just now. Under TLS they may be
        no part of a request, so the time for a head starts with them.
        """
        if self._client_transport.unread:
            self._await_head()
        else:
            super().timeout_keep_alive_handler()

    def on_response_complete(self) -> None:
        """Discard the request after its answer is sent: it is half of the memory that an idle connection holds."""
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        self._running = following if self.pipeline else None
        self._watch_client()
        if self._answering() or self.transport.is_closing():
            return
        self._admission.capacity.mark_idle(self)
        if not self.cycle.more_body:
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment]  # as at the beginning

    def pause_writing(self) -> None:
        """Record that the kernel has not taken all written bytes."""
        super().pause_writing()
        self._client_transport.pause_writing()
        self._watch_client()

    def resume_writing(self) -> None:
        """Record that the kernel has taken all written bytes."""
        super().resume_writing()
        self._client_transport.resume_writing()
        if self._send_watch is not None and self._send_watch.running:
            self._send_watch.begin()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and count the bytes of an unfinished head, which the parser keeps."""
        if self._discarding or self.transport.is_closing():
            return
        self._passed = False
        self._feed(data)
        if not self._answering() and self.timeout_keep_alive_task is None:
            self._await_head()  # also after a line end, or the rest of a body: both stop uvicorn's timer
        if self._head_complete and self._passed:
            return
        self._head_bytes += len(data)  # of a head, or of what the parser keeps after it: a trailer, a chunk's extension
        if self._head_bytes > MAX_HEAD:
            self._refuse_head()

    def _feed(self, data: bytes) -> None:
        """Parse *data*. uvicorn's own method drops what follows a request that asks for another protocol."""
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        rest = memoryview(data)
        while rest and not self._discarding:
            try:
                self.parser.feed_data(rest)
            except HttpParserUpgrade as upgrade:  # the request is served as if it did not ask
                rest = rest[upgrade.args[0] :]
            except HttpParserError:
                self.send_400_response("it cannot be parsed")
                return
            else:
                return

    def eof_received(self) -> bool | None:  # type: ignore[override]  # uvicorn declares None, asyncio bool or None
        """Handle the client's half-close. Returns True to keep the connection until the answer is sent."""
        cycle = self.cycle
        client = self._client_transport
        client.half_closed = True
        if cycle is None or cycle.response_complete or self._streaming() or client.held:
            return None
        cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        """Begin a request. Its scope is made here, so the extension is added here."""
        super().on_message_begin()
        self._head_complete, self._head_bytes = False, 0
        self._await_head()
        extensions = {EXTENSION: {"client": self._client_transport, "peer": self.client}}
        cast("dict[str, Any]", self.scope)["extensions"] = extensions

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, and drop a trailer (RFC 9110, section 6.5.1): it could name a user behind the proxy's back."""
        if not self._head_complete:
            super().on_header(name, value.rstrip(b" \t"))  # the parser strips the beginning alone

    def on_headers_complete(self) -> None:
        """Refuse a head that is too large; otherwise call the app, unless the connection has a stream."""
        self._head_complete = self._passed = True
        self._head_bytes = 0
        self._head_ended()
        if self._discarding:
            return
        if len(self.url) + sum(map(len, chain.from_iterable(self.headers))) + 4 * len(self.headers) > MAX_HEAD:
            self._refuse_head()
            return
        version = self.parser.get_http_version()
        wrong = fault_of_host(self.headers, version) if version in VERSIONS else f"its version is {version}"
        if wrong:
            self._discarding = True
            self.send_400_response(wrong)
            return
        self.url = NO_PATH.sub(rb"\g<0>/", self.url)
        if self._is_last():
            self.cycle.keep_alive = False
            self._discarding = True
            return
        app = self.config.loaded_app
        self.app = partial(unchunked, app) if version == HTTP_1_0 else app
        earlier = self.cycle
        super().on_headers_complete()
        if self.pipeline and self._running is None:
            self._running = earlier
        self._admission.capacity.mark_busy(self)
        if self.parser.should_upgrade() and has_body(self.headers):
            # What follows cannot be told from a request, so the answer is the last of the connection.
            self.cycle.keep_alive = self.cycle.more_body = False
            self._discarding = True
        self._keep_alive()

    def _keep_alive(self) -> None:
        cycle = self.cycle
        if self._stopping or not self.timeout_keep_alive:
            cycle.keep_alive = False
        elif cycle.keep_alive and self.timeout_keep_alive > EARLIER and cycle.scope["path"] != STREAMS:
            hint = (b"keep-alive", b"timeout=%d" % (self.timeout_keep_alive - EARLIER))
            cycle.default_headers = [*cycle.default_headers, hint]

    def on_body(self, body: bytes) -> None:
        """Discard the body of a request for a stream.

        After 64 KiB of unread body, uvicorn would stop reading, and would not detect a disconnect.
        """
        self._passed, self._head_bytes = True, 0
        if not self._discarding and not self._streaming():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        self._passed = True
        if not self._discarding:
            super().on_message_complete()

    def _refuse_head(self) -> None:
        self._discarding = True
        self._refuse(HeadTooLargeError(f"a request's line and headers may have at most {MAX_HEAD} bytes"))

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that the parser refuses."""
        what = f"this is not an HTTP/1.1 request: {_parsers_words(msg)}"
        self._refuse(BadRequestError(what, code="malformed-request"))

    def _refuse(self, error: BadRequestError) -> None:
        if self.transport.is_closing():
            return
        if self._answering():
            cycle = self.cycle
            if not cycle.more_body or cycle.response_started or self.pipeline:
                # What is wrong comes after a whole request, or after the head of its answer: that answer is the last.
                self._discarding = True
                cycle.keep_alive = False
                return
            # The body is wrong, and with it the request. The application learns that the client has gone.
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(closing_answer(error, self.server_state.default_headers))
        self._watch_client()
        self.transport.close()
