"""Aborts the connection of a client that does not take its answers.

A stream, and an answer of ``/v1/kv``, look after their clients themselves (``app.stream.connection``). For every other
answer uvicorn waits for ever. Such a connection counts as busy, so it never gave way to another one: as many as the
limit of open files allows kept everybody out, and needed no credentials. Nor does the close of a connection end it
while there are bytes that its client does not take.
"""

from __future__ import annotations

import asyncio

from ..core.stall_timer import StallTimer
from ..stream.connection import LOOKS
from ..stream.transport import ClientTransport


class SendWatch:
    """See the module. Looks at the client from ``begin`` until it has taken all bytes, or is disconnected.

    Args:
        send_timeout: ``GATEWAY_SEND_TIMEOUT``.
    """

    __slots__ = ("_client", "_send_timeout", "_stall", "_timer")

    def __init__(self, client: ClientTransport, send_timeout: float) -> None:
        self._client = client
        self._send_timeout = send_timeout
        self._stall: StallTimer
        self._timer: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        """Whether the client is being looked at."""
        return self._timer is not None

    def begin(self) -> None:
        """Begin to look, or begin anew, because the client has taken something."""
        self._stall = StallTimer(self._send_timeout, self._client.unacked_bytes)
        if self._timer is None:
            self._look_later()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._send_timeout / LOOKS, self.look)

    def look(self) -> None:
        """Abort the connection if its client has taken nothing for ``GATEWAY_SEND_TIMEOUT``."""
        self._timer = None
        client = self._client
        if client.lost or not client.buffered:
            return
        if client.listener is not None:  # who listens looks after this client, and says why the stream has ended
            self.begin()
        elif self._stall.ends(client.unacked_bytes, self._send_timeout / LOOKS):
            client.abort()
        else:
            self._look_later()
