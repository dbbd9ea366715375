"""Two gateways that a test kills and starts again."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from app.dev.etcd import free_ports
from tests.support.gateway import QUICK, GatewayProcess, start
from tests.support.held_ports import HeldPorts


class Gateways:
    """Two gateways on fixed ports, which a test kills and starts again: ``async with Gateways(url) as gateways``."""

    def __init__(self, etcd: str, settings: Mapping[str, str] | None = None) -> None:
        self._etcd = etcd
        self._settings = settings or {}
        self.ports = free_ports(2)
        self.running: dict[int, GatewayProcess] = {}
        self._held = HeldPorts()

    async def __aenter__(self) -> Self:
        self._held.hold(*self.ports)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for at in list(self.running):
            await self.kill(at)
        self._held.close()

    @property
    def urls(self) -> list[str]:
        """Their URLs, also while they are away."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    async def start(self, at: int, port: int | None = None) -> None:
        """Start one, on its port or on another one."""
        chosen = self.ports[at] if port is None else port
        running = await start(
            settings={**QUICK, **self._settings, "GATEWAY_PORT": str(chosen), "GATEWAY_ETCD": self._etcd}
        )
        await running.listening()
        self.running[at] = running

    async def kill(self, at: int) -> None:
        """Kill one, as a crash does."""
        await self.running.pop(at).stop(signal.SIGKILL)
