"""What each signal does to servers that run: the first, the second, the third, and SIGHUP."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from app.server import stop
from app.server.stop import Stop
from app.signals import Signals
from tests.support.waiting import eventually


class Server:
    """Of uvicorn's, what is set."""

    def __init__(self) -> None:
        self.should_exit = self.force_exit = False


class Gateway:
    """Of ours, what is called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def hurry(self) -> None:
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
        self.stop = Stop(servers, gateway, reloads=reloads)

    @property
    def exits(self) -> list[bool]:
        """Whether each is told to end in order."""
        return [server.should_exit for server in self.servers]

    async def forced(self) -> bool:
        """Whether all are told to end at once."""
        return all(server.force_exit for server in self.servers)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would come a second later."""
    monkeypatch.setattr(stop, "HURRY", 0.01)
    monkeypatch.setattr(stop, "HANGUP", 0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_stops_in_order(number: int) -> None:
    """The first server only: the admin port goes last."""
    running = Running()
    running.stop.told(number)

    assert (running.exits, running.gateway.called, await running.forced()) == ([True, False], [], False)


async def test_the_second_closes_all_streams_and_soon_cuts_off() -> None:
    """Whoever has not taken the last bytes by then."""
    running = Running()
    running.stop.told(signal.SIGTERM)
    running.stop.told(signal.SIGTERM)
    assert (running.gateway.called, await running.forced()) == (["hurry"], False)

    await eventually(running.forced)


async def test_the_third_does_not_wait() -> None:
    """For nothing."""
    running = Running()
    for _ in range(3):
        running.stop.told(signal.SIGINT)

    assert await running.forced()


async def test_sighup_reloads() -> None:
    """And stops nothing, but where there is nothing to reload."""
    running, guest = Running(), Running(reloads=False)
    running.stop.told(signal.SIGHUP)
    guest.stop.told(signal.SIGHUP)

    assert (running.gateway.called, running.exits) == (["reload"], [False, False])
    assert (guest.gateway.called, guest.exits) == ([], [True, False])


async def test_sighup_after_a_stop_changes_nothing() -> None:
    """It is neither a reload nor a second stop."""
    running = Running()
    running.stop.told(signal.SIGTERM)
    running.stop.told(signal.SIGHUP)

    assert (running.gateway.called, running.exits) == ([], [True, False])


@pytest.mark.parametrize("gone", ["before", "after"])
async def test_a_terminal_that_goes_away(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the signal, or after it, as with a shell that passes the signal on before it ends."""
    terminal = [gone == "after"]
    monkeypatch.setattr(Signals, "terminal_gone", property(lambda _self: not terminal[0]))
    running = Running()
    running.stop.told(signal.SIGHUP)
    assert running.exits[0] is (gone == "before")
    terminal[0] = False

    async def stopped() -> bool:
        return running.servers[0].should_exit

    await eventually(stopped)
    await asyncio.sleep(0)
    assert running.gateway.called == (["reload"] if gone == "after" else [])
