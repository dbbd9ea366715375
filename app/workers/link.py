"""The link between the hub and one worker: messages in both directions, in order, over a pair of sockets.

A message is a JSON object in a line. Its member ``do`` names it:

from the worker
    ``ready``        it can serve;
    ``load``         how many connections it has ``taken``, and how many are ``open``;
    ``admit``        a stream asks to be counted; answered by ``admitted`` or ``refused``, with the same ``id``;
    ``check``        what would ``admit`` answer? Answered in the same way, and nothing is counted;
    ``read``         a read asks to be counted for its caller's quotas; answered in the same way;
    ``release``      the stream or the read with this ``id`` has ended;
    ``failed``       an address has sent wrong credentials;
    ``ended``        a browser's session has ended;
    ``bookmarks_due``  an edge asks for bookmarks on its streams;
    ``report``       the answer to the hub's ``report``; with LAST_REPORT as its ``id``, what it has counted to its end;
    ``draining``     it has been told to stop, not by the hub;
from the hub
    ``settings``     the first message, which has also the ``contents`` of files, and the sessions that have ``ended``;
    ``admitted``, ``refused``
    ``close``        the stream with this ``id`` must end;
    ``failed``, ``ended``, ``bookmarks_due``  what another worker has said;
    ``expire``       what lingers must end, because another stream needs the room;
    ``report``       what does it hold?
    ``reload``, ``stop``, ``hurry``, ``force``: what the signals say (``app.server.signal_handler``);
    ``ping``         says that the hub is alive, and asks for a ``load``: every second.
"""

from __future__ import annotations

import asyncio
import json
import socket
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from typing import Any, cast

from ..core.keys import KeyRange, Kind
from ..core.selection import Ranges

Message = dict[str, Any]
LAST_REPORT = 0  # the ``id`` of a report for which the hub has not asked


class Link(asyncio.Protocol):
    """One end.

    Args:
        take: called with each message.
        lost: called once, when the other end has gone.
    """

    def __init__(self, take: Callable[[Message], None], lost: Callable[[], None]) -> None:
        self.take = take  # may be replaced
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._rest = b""

    @classmethod
    async def open(cls, sock: socket.socket, take: Callable[[Message], None], lost: Callable[[], None]) -> Link:
        """Return the open link over one socket of the pair."""
        loop = asyncio.get_running_loop()
        _transport, link = await loop.create_unix_connection(lambda: cls(take, lost), sock=sock)
        return link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.take(json.loads(line))

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        del exc
        self._transport = None
        self._lost()

    def send(self, do: str, **members: Any) -> None:
        """Send a message. Without effect when the other end has gone."""
        if self._transport is not None:
            self._transport.write(json.dumps({"do": do, **members}).encode() + b"\n")

    def close(self) -> None:
        """Close this end. Idempotent."""
        if self._transport is not None:
            self._transport.close()


def encode_ranges(ranges: Ranges) -> list[list[str]]:
    """Return ranges as a message has them."""
    return [[one.kind, one.name.decode("latin-1")] for one in ranges]


def decode_ranges(found: list[list[str]]) -> Ranges:
    """Return the ranges of a message."""
    return tuple(KeyRange(cast("Kind", kind), name.encode("latin-1")) for kind, name in found)


def encode_contents(contents: Mapping[str, bytes]) -> dict[str, str]:
    """Return the contents of files as a message has them."""
    return {setting: b64encode(data).decode() for setting, data in contents.items()}


def decode_contents(found: Mapping[str, str]) -> dict[str, bytes]:
    """Return the contents of files in a message."""
    return {setting: b64decode(text) for setting, text in found.items()}
