"""uvicorn's HTTP/1.1 protocol, with one thing offered to the app: ``scope["extensions"]["etcd_watch_gateway"]``.

ASGI has no word for "this connection is stuck, drop it": ``abort`` is that word. Closing would wait for ever for a
peer that does not read. On another server the extension is absent and the stream ends by an exception instead.
"""

from __future__ import annotations

from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.stream import EXTENSION


class GatewayProtocol(HttpToolsProtocol):
    """Named in the server's configuration (``http=``)."""

    def on_message_begin(self) -> None:
        """A request begins: its scope is made here."""
        super().on_message_begin()
        extensions = {EXTENSION: {"abort": self.transport.abort}}
        cast("dict[str, Any]", self.scope)["extensions"] = extensions
