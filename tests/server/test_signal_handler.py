"""What each signal does to running servers: the first, the second, the third, and SIGHUP."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from app.server import signal_handler
from app.server.signal_handler import ServerSignals
from app.signals import Signals
from tests.support.waiting import eventually


class Server:
    """The attributes of uvicorn's server that a stop sets."""

    def __init__(self) -> None:
        self.should_exit = self.force_exit = False


class Gateway:
    """The methods of the gateway that a stop calls."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def end_streams_now(self) -> None:
        """See ``app.gateway.Gateway``."""
        self.called.append("hurry")

    def reload(self) -> None:
        """See ``app.gateway.Gateway``."""
        self.called.append("reload")


class Running:
    """Two servers of a gateway."""

    def __init__(self, *, reloads: bool = True) -> None:
        self.servers, self.gateway = [Server(), Server()], Gateway()
        servers: Any = self.servers
        gateway: Any = self.gateway
        self.handler = ServerSignals(servers, gateway, reloads=reloads)

    @property
    def exits(self) -> list[bool]:
        """Whether each server is told to end in order."""
        return [server.should_exit for server in self.servers]

    async def forced(self) -> bool:
        """Whether all servers are told to end at once."""
        return all(server.force_exit for server in self.servers)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the delays of about a second."""
    monkeypatch.setattr(signal_handler, "HURRY", 0.01)
    monkeypatch.setattr(signal_handler, "HANGUP", 0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_stops_in_order(number: int) -> None:
    """The first signal stops only the first server in order: the admin port goes last."""
    running = Running()
    running.handler.handle(number)

    assert (running.exits, running.gateway.called, await running.forced()) == ([True, False], [], False)


async def test_the_second_closes_all_streams_and_soon_cuts_off() -> None:
    """The second signal closes all streams, and soon cuts off the clients that have not taken the last bytes."""
    running = Running()
    running.handler.handle(signal.SIGTERM)
    running.handler.handle(signal.SIGTERM)
    assert (running.gateway.called, await running.forced()) == (["hurry"], False)

    await eventually(running.forced)


async def test_the_third_does_not_wait() -> None:
    """The third signal ends all servers without a delay."""
    running = Running()
    for _ in range(3):
        running.handler.handle(signal.SIGINT)

    assert await running.forced()


async def test_sighup_reloads() -> None:
    """SIGHUP reloads and stops nothing; where there is nothing to reload, it stops."""
    running, guest = Running(), Running(reloads=False)
    running.handler.handle(signal.SIGHUP)
    guest.handler.handle(signal.SIGHUP)

    assert (running.gateway.called, running.exits) == (["reload"], [False, False])
    assert (guest.gateway.called, guest.exits) == ([], [True, False])


async def test_sighup_after_a_stop_changes_nothing() -> None:
    """SIGHUP after a stop is neither a reload nor a second stop."""
    running = Running()
    running.handler.handle(signal.SIGTERM)
    running.handler.handle(signal.SIGHUP)

    assert (running.gateway.called, running.exits) == ([], [True, False])


@pytest.mark.parametrize("gone", ["before", "after"])
async def test_a_terminal_that_goes_away(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal may go before the signal, or after it, as when a shell passes the signal on before it ends."""
    terminal = [gone == "after"]
    monkeypatch.setattr(Signals, "terminal_gone", property(lambda _self: not terminal[0]))
    running = Running()
    running.handler.handle(signal.SIGHUP)
    assert running.exits[0] is (gone == "before")
    terminal[0] = False

    async def stopped() -> bool:
        return running.servers[0].should_exit

    await eventually(stopped)
    await asyncio.sleep(0)
    assert running.gateway.called == (["reload"] if gone == "after" else [])
