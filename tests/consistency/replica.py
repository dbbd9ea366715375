"""One gateway process of several, always at the same URL, with its own proxies to all that it follows.

A root follows the members of etcd. An edge follows other gateways.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

from app.dev.etcd import free_ports
from tests.consistency.writer import PREFIXES
from tests.support.gateway import GatewayProcess, start
from tests.support.held_ports import HeldPorts
from tests.support.proxy import Proxy

# Small bounds, so that readers fall behind and history ends within seconds. Who asks for gzip gets it.
SETTINGS = {
    "GATEWAY_HEARTBEAT": "1s",
    "GATEWAY_STALE_AFTER": "2s",
    "GATEWAY_SYNC_TIMEOUT": "1s",
    "GATEWAY_LINGER": "0.5s",
    "GATEWAY_LOG_BATCHES": "400",
    "GATEWAY_REACH_BACK": "2000",
    "GATEWAY_SEND_TIMEOUT": "5s",
    "GATEWAY_DRAIN_TIMEOUT": "2s",
    "GATEWAY_GZIP_PREFIXES": ",".join(map(quote, PREFIXES)),
}


def _is_a_fault(line: Mapping[str, Any]) -> bool:
    """Whether the log reports what the nemesis has done: it has killed a worker, or the hub."""
    message: str = line["message"]
    return message.startswith("the hub has ended") or (message == "worker end" and line["status"] == -signal.SIGKILL)


class Replica:
    """A gateway that is started, killed and started again; ``troubles`` are the errors that it logged."""

    def __init__(
        self,
        name: str,
        settings: Mapping[str, str],
        program: Sequence[str] = ("app",),
        follows: Literal["GATEWAY_ETCD", "GATEWAY_UPSTREAM"] = "GATEWAY_ETCD",
    ) -> None:
        self.name = name
        self.proxies: list[Proxy] = []
        self.troubles: list[dict[str, Any]] = []
        self.words: list[str] = []
        self.lock = asyncio.Lock()  # whoever signals, ends or starts it holds this
        self._program = program
        self._follows = follows
        self._port = free_ports(1)[0]
        self._ports = HeldPorts()
        self._settings = {**SETTINGS, **settings, "GATEWAY_PORT": str(self._port), "GATEWAY_INSTANCE": name}
        self._process: GatewayProcess | None = None
        self.starts = 0

    async def connect(self, endpoints: Sequence[str]) -> None:
        """Set up the proxies; call this before the first start."""
        for endpoint in endpoints:
            proxy = Proxy(endpoint)
            await proxy.start()
            self.proxies.append(proxy)

    async def __aenter__(self) -> Self:
        self._ports.hold(self._port)
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(signal.SIGTERM)
        for proxy in self.proxies:
            await proxy.stop()
        self._ports.close()

    @property
    def base(self) -> str:
        """The replica's URL."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def process(self) -> GatewayProcess:
        """The process that runs now."""
        assert self._process is not None
        return self._process

    async def start(self) -> None:
        """Start the gateway, and return when it listens."""
        self.starts += 1
        endpoints = ",".join(proxy.endpoint for proxy in self.proxies)
        self._process = await start(settings={**self._settings, self._follows: endpoints}, program=self._program)
        await self._process.listening()

    async def stop(self, number: int) -> None:
        """End the gateway by a signal; keep the errors that it logged."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.process.send_signal(signal.SIGCONT)
        status = await process.stop(number)
        if number == signal.SIGTERM and status != 0:
            self.troubles.append({"message": f"status {status} after SIGTERM", "said": process.other})
        self.troubles += [line for line in process.lines if line["level"] == "error" and not _is_a_fault(line)]
        # Half a line of the log: of a process that the nemesis has killed.
        self.words += [text for text in process.other if not text.startswith("{")]

    @property
    def has_workers(self) -> bool:
        """Whether the gateway is a hub with workers."""
        return self._settings.get("GATEWAY_WORKERS", "1") != "1"

    @property
    def workers(self) -> list[int]:
        """The process ids of its workers that run now; none if it is a single process, or does not run."""
        if self._process is None:
            return []
        lines = self._process.lines_so_far
        newest = {line["worker"]: line["pid"] for line in lines if line["message"] == "worker start"}
        ended = {line["pid"] for line in lines if line["message"] == "worker end"}
        return [pid for pid in newest.values() if pid not in ended]

    def signal(self, number: int) -> None:
        """Send the gateway a signal, and do not wait."""
        self.process.process.send_signal(number)
