"""uvicorn's HTTP/1.1 protocol, with what it lacks for us.

- ``scope["extensions"]["etcd_watch_gateway"]["abort"]``: ASGI has no word for "this connection is stuck, drop it".
  Closing would wait for ever for a peer that does not read. On another server the extension is absent and the stream
  ends by an exception instead.
- What is no HTTP is answered by a problem, as everything else is; never inside an answer that is under way.
- The head of a request is bounded.
"""

from __future__ import annotations

from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.api.problems import problem
from app.api.stream import EXTENSION
from app.core.errors import BadRequestError, HeadTooLargeError

# Bytes of a request's line and headers; the parser itself would take, and keep, any number. A key of MAX_KEY_BYTES,
# percent-encoded, is 12 KiB.
MAX_HEAD = 64 * 1024


class GatewayProtocol(HttpToolsProtocol):
    """Named in the server's configuration (``http=``)."""

    _head_complete = False
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what it keeps of a head that does not end is counted."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._head_complete:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD:
            self._refuse(HeadTooLargeError(f"a request's line and headers may have {MAX_HEAD} bytes"))

    def on_message_begin(self) -> None:
        """A request begins: its scope is made here."""
        super().on_message_begin()
        self._head_complete, self._head_bytes = False, 0
        extensions = {EXTENSION: {"abort": self.transport.abort}}
        cast("dict[str, Any]", self.scope)["extensions"] = extensions

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._head_complete = True
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """The parser's refusal."""
        self._refuse(BadRequestError(f"this is no HTTP/1.1 request: {msg}", code="malformed-request"))

    def _refuse(self, error: BadRequestError) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            answer = problem(error)
            headers = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
            head = b"".join(b"%b: %b\r\n" % header for header in headers)
            status = STATUS_LINE[error.status]
            self.transport.write(b"".join((status, head, b"\r\n", answer.body)))
        self.transport.close()
