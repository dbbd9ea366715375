"""The connections that the hub itself serves while no worker can start.

Otherwise every request would wait, a probe's too, until a worker serves. The hub has read none of the connections that
it passes to workers, so it does not know which one is a probe's: all get the same answer (``app.api.no_worker``).
"""

from __future__ import annotations

import socket

from ..gateway import Gateway
from ..main import create_refusing_app
from ..server.admission import Admission
from ..server.passed import PassedServer
from ..server.run import make_config, secured
from ..settings import Settings
from ..tls import Tls
from .descriptor_passing import Port


class NoWorker:
    """Serves the connections that no worker takes.

    Args:
        settings: of the operator.
        gateway: the hub's.
        tls: of the operator's certificate.
    """

    def __init__(self, settings: Settings, gateway: Gateway, admission: Admission, tls: Tls | None) -> None:
        app = create_refusing_app(settings)
        # Each answer ends its connection: the client's next one may reach a worker.
        last = settings.model_copy(update={"keep_alive": 0.0})
        self._servers: dict[Port, PassedServer] = {}
        ports: tuple[Port, ...] = ("clients", "operators")
        for port in ports:
            config = make_config(app, last, admission, secured(tls, admin=port == "operators"))
            config.load()
            self._servers[port] = PassedServer(config, gateway)

    def take(self, connection: socket.socket, port: Port) -> None:
        """Answer whatever is asked on a connection, which is closed at its end."""
        self._servers[port].take(connection)

    def close(self) -> None:
        """Abort the connections that are left."""
        for server in self._servers.values():
            server.cut_off()
