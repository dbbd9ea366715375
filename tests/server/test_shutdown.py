"""The duration of a stop, by a clock that the tests control: clients that take nothing are cut off in time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.gateway import Gateway
from app.main import create_app
from app.server.admission import Admission
from app.server.run import GatewayServer, make_config
from app.settings import load
from tests.support.virtual_time import now, virtually

# Seconds between two checks by uvicorn of what is still open.
POLL = 0.1


class Held:
    """A connection whose client takes nothing, and which ends after *seconds*, or never."""

    def __init__(self, server: GatewayServer, seconds: float | None) -> None:
        self._connections = server.server_state.connections
        self._connections.add(cast("Any", self))
        self.transport = self
        self.aborted_at: float | None = None
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self._connections.discard, self)

    def shutdown(self) -> None:
        """Ignore the shutdown, as a connection with a stream does."""

    def abort(self) -> None:
        """Cut the connection off."""
        self.aborted_at = round(now(), 6)
        self._connections.discard(cast("Any", self))


async def stop(drain: float, drain_timeout: float, *seconds: float | None) -> list[float | None]:
    """Stop a server that has these connections; return when each was cut off."""
    settings = load({"etcd": "http://127.0.0.1:1", "drain_timeout": drain_timeout})
    gateway = Gateway(settings, clock=now)
    config = make_config(create_app(gateway=gateway), settings, Admission(gateway.capacity))
    config.load()
    server = GatewayServer(config, cast("Gateway", SimpleNamespace(drain=lambda: drain, settings=settings)))
    server.lifespan = config.lifespan_class(config)
    server.servers = []
    held = [Held(server, after) for after in seconds]
    await server.shutdown()
    assert not server.server_state.connections
    return [one.aborted_at for one in held]


@pytest.mark.parametrize(("drain", "drain_timeout"), [(0.0, 5.0), (10.0, 5.0), (25.0, 0.5)])
def test_held_clients_are_cut_off_at_the_end_of_the_drain(drain: float, drain_timeout: float) -> None:
    """A stop does not wait for clients that have left; the others delay it by at most the drain and its timeout."""
    aborted, took = virtually(stop(drain, drain_timeout, drain / 2, None, None))
    assert aborted == [None, drain + drain_timeout, drain + drain_timeout]
    assert drain + drain_timeout <= took <= drain + drain_timeout + 2 * POLL


def test_nobody_is_waited_for_who_has_left() -> None:
    """The stop ends with the last client."""
    aborted, took = virtually(stop(10.0, 5.0, 1.0, 3.0))
    assert aborted == [None, None]
    assert 3.0 <= took <= 3.0 + 2 * POLL
