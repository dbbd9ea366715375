"""TLS between a client's TCP connection and the HTTP protocol above.

To the TCP transport below, a ``TlsConnection`` is the protocol. To the HTTP protocol above, it is the transport. The
standard library encrypts (``ssl.SSLObject``); nothing here waits. asyncio and uvloop have TLS transports of their own,
which would not do (docs/decisions/0019):

- The HTTP protocol begins when the connection arrives, not after the handshake. So a connection that never finishes its
  handshake is counted, gives way to others, and ends when the server stops, as any idle connection.
- Everything that is encrypted goes to the TCP transport at once. So the TCP transport's buffer is all that the kernel
  has not taken: ``ClientTransport`` and the fast sink see the truth.
- The bytes that are not TLS can still be answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, cast

from ..core.errors import BadRequestError
from .answers import closing_answer

# Seconds from the connection to the end of its handshake. A handshake takes two round trips; the slowest networks that
# browsers still use need 3 s for one.
HANDSHAKE_TIMEOUT = 15.0
# Bytes that are decrypted, or encrypted, at a time.
PIECE = 64 * 1024
# Bytes that TLS itself may send after the handshake. A client can request new keys in 22 bytes, and each request is
# answered with as many: without a limit, a client that does not read would fill the process.
MAX_UNASKED = 64 * 1024
# The first byte of a record with a handshake, and so of each connection that speaks TLS.
HANDSHAKE = 0x16

UNSUPPORTED = ("UNSUPPORTED_PROTOCOL", "NO_SHARED_CIPHER", "NO_SUITABLE", "VERSION_TOO_LOW", "WRONG_VERSION")


class TlsConnection(asyncio.Transport, asyncio.Protocol):
    """See the module.

    Args:
        http: the protocol above.
        context: the context of this connection.
        failed: called with the reason (``app.tls.FAILURES``), a detail and the client, if the handshake fails.
    """

    __slots__ = (
        "_began", "_closing", "_context", "_failed", "_handshake_done", "_http", "_incoming", "_loop", "_outgoing",
        "_paused", "_tcp", "_timer", "_tls", "_unasked", "_write_side_only",
    )  # fmt: skip

    def __init__(
        self, http: asyncio.Protocol, context: ssl.SSLContext, failed: Callable[[str, str, str], None]
    ) -> None:
        super().__init__()
        self._http = http
        self._context = context
        self._failed = failed
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._tcp: asyncio.Transport
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._began = False  # the first byte has come
        self._handshake_done = False
        self._closing = False  # nothing more is read or written
        self._paused = False  # the HTTP protocol wants no bytes now
        self._write_side_only = False  # the client has sent its last bytes, and still gets its answer
        self._unasked = 0  # bytes that TLS itself has sent: see MAX_UNASKED

    # --- the protocol of the TCP transport ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the HTTP protocol, and wait for the handshake."""
        self._tcp = cast("asyncio.Transport", transport)
        self._timer = self._loop.call_later(HANDSHAKE_TIMEOUT, self._fail, "timeout")
        self._http.connection_made(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client: a handshake, requests, or something that is not TLS."""
        if self._closing or self._write_side_only:
            return
        if not self._began and data[0] != HANDSHAKE:
            self._refuse(data)
            return
        self._began = True
        self._incoming.write(data)
        if self._handshake_done or self._continue_handshake():
            self._read()

    def eof_received(self) -> bool:
        """Handle the client's half-close. Returns True to keep the connection until the answer is sent."""
        return not self._closing and self._handshake_done and (self._write_side_only or self._half_close())

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything: the client left, or one side closed the connection."""
        if not (self._handshake_done or self._closing):
            self._failed("left", "", self._address())
        self._end()
        http, self._http = self._http, asyncio.Protocol()  # the two refer to each other
        http.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass the news on: the kernel has not taken all bytes."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Pass the news on: the kernel has taken all bytes."""
        self._http.resume_writing()

    # --- the handshake ------------------------------------------------------------------------------------------------

    def _continue_handshake(self) -> bool:
        """Continue the handshake. Returns whether it is finished."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._flush()  # the alert that tells the client why
            self._fail(_reason(error), _detail(error))
            return False
        self._handshake_done = True
        self._stop_timer()
        self._flush()
        return True

    def _fail(self, reason: str, detail: str = "") -> None:
        self._failed(reason, detail, self._address())
        self._end()
        self._tcp.close()

    def _refuse(self, data: bytes) -> None:
        """Answer a request in plain HTTP, so that its sender learns what is wrong; otherwise close the connection."""
        if not data[:1].isupper():  # no method of HTTP
            self._fail("not-tls")
            return
        error = BadRequestError("this port speaks HTTPS; use https:// in the URL", code="https-required")
        self._tcp.write(closing_answer(error))
        self._fail("plain-http")

    def _address(self) -> str:
        peer = self._tcp.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) else ""

    # --- records ------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Decrypt what has come, and pass it on."""
        try:
            while not (self._paused or self._closing):
                data = self._tls.read(PIECE)
                if not data:  # the client's close_notify
                    self._half_close()
                    break
                self._http.data_received(data)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.abort()
            return
        if not self._closing and self._outgoing.pending:
            self._unasked += self._outgoing.pending
            if self._unasked > MAX_UNASKED:
                self.abort()
            else:
                self._flush()

    def _half_close(self) -> bool:
        """End the reading side. Returns whether the HTTP protocol keeps the writing side, to finish an answer."""
        self._write_side_only = bool(self._http.eof_received())
        if not self._write_side_only:
            self.close()
        return self._write_side_only

    def _flush(self) -> None:
        if self._outgoing.pending and not self._tcp.is_closing():
            self._tcp.write(self._outgoing.read())

    # --- the transport of the HTTP protocol ---------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt *data*, and write it to the TCP transport."""
        if self._closing or not self._handshake_done:
            return
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._tls.write(rest[:PIECE]) :]
                self._tcp.write(self._outgoing.read())
        except ssl.SSLError:
            self.abort()

    def close(self) -> None:
        """Close the connection in order: TLS close_notify, then TCP FIN, after the bytes that are written."""
        if self._closing:
            return
        if self._handshake_done:
            with contextlib.suppress(ssl.SSLError):  # SSLWantReadError: the client's own close_notify is not awaited
                self._tls.unwrap()
            self._flush()
        self._end()
        self._tcp.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._end()
        self._tcp.abort()

    def _end(self) -> None:
        self._closing = True
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def is_closing(self) -> bool:
        """Whether the connection is closed, or about to be."""
        return self._closing or self._tcp.is_closing()

    def pause_reading(self) -> None:
        """Stop calling the HTTP protocol's ``data_received``."""
        if not (self._paused or self.is_closing()):
            self._paused = True
            self._tcp.pause_reading()

    def resume_reading(self) -> None:
        """Continue, with what came before the pause."""
        if self._paused and not self.is_closing():
            self._paused = False
            self._tcp.resume_reading()
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self._closing:
            self._read()

    def is_reading(self) -> bool:
        """Whether the HTTP protocol gets what the client sends."""
        return not (self._paused or self.is_closing())

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the connection. ``sslcontext`` makes uvicorn see https."""
        if name == "sslcontext":
            return self._context
        if name == "ssl_object":
            return self._tls
        return self._tcp.get_extra_info(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See ``asyncio.WriteTransport``. Counts encrypted bytes: all that are written and not in the kernel."""
        self._tcp.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """See ``asyncio.WriteTransport``."""
        return self._tcp.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        """See ``asyncio.WriteTransport``."""
        return self._tcp.get_write_buffer_size()

    def can_write_eof(self) -> bool:
        """Whether half of the connection can be closed. The gateway closes both halves."""
        return False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Replace the HTTP protocol."""
        self._http = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the HTTP protocol."""
        return self._http


def _reason(error: ssl.SSLError) -> str:
    """Return the reason of ``app.tls.FAILURES`` for which a handshake failed."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError) or reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "client-certificate"
    if "_ALERT_" in reason:
        return "refused-by-client"
    if reason.startswith(UNSUPPORTED):
        return "unsupported"
    return "protocol"


def _detail(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or "").lower().replace("_", " ")
