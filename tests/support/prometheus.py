"""A real Prometheus, and promtool: Debian's package ``prometheus`` has both."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.dev.etcd import free_ports
from tests.support.waiting import HANG, eventually

# The address to scrape, and the labels for this target's series.
Target = tuple[str, Mapping[str, str]]


def tool(name: str) -> Path:
    """``prometheus`` or ``promtool``; without it the test is skipped, with a message."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"NOT RUN: rules and dashboard: {name} is not installed")
    return Path(found)


def promtool(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool; *text* is its standard input."""
    return subprocess.run(
        [tool("promtool"), *arguments], check=False, capture_output=True, text=True, timeout=HANG, input=text
    )


class Prometheus:
    """A running Prometheus."""

    def __init__(self, base: str, client: httpx.AsyncClient) -> None:
        self._base = base
        self._client = client

    async def ready(self) -> bool:
        """Whether Prometheus is ready."""
        try:
            return (await self._client.get(f"{self._base}/-/ready")).status_code == 200
        except httpx.TransportError:
            return False

    async def ask(self, path: str, **parameters: str) -> Any:
        """``data`` of an API answer; an error answer fails the test."""
        answer = (await self._client.get(f"{self._base}/api/v1/{path}", params=parameters)).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The current series of an expression."""
        found = await self.ask("query", query=expression)
        assert found["resultType"] == "vector", expression
        return list(found["result"])

    async def targets(self) -> dict[str, str]:
        """The health of each target, by its URL."""
        return {target["scrapeUrl"]: target["health"] for target in (await self.ask("targets"))["activeTargets"]}

    async def rules(self) -> list[dict[str, Any]]:
        """All rules, with their health and their alerts."""
        return [rule for group in (await self.ask("rules"))["groups"] for rule in group["rules"]]

    async def alerts(self, state: str = "firing") -> list[dict[str, Any]]:
        """The alerts in *state*."""
        return [alert for alert in (await self.ask("alerts"))["alerts"] if alert["state"] == state]


@contextlib.asynccontextmanager
async def prometheus(
    folder: Path, jobs: Mapping[str, Sequence[Target]], rules: Mapping[str, Any], *, interval: str
) -> AsyncIterator[Prometheus]:
    """A Prometheus that scrapes *jobs* and evaluates *rules* (``groups:``) every *interval*, on a loopback port, with
    its data in *folder*.

    Its configuration must pass ``promtool check config`` first.
    """
    (folder / "rules.yaml").write_text(json.dumps(dict(rules)), encoding="utf-8")
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [{"targets": [address], "labels": dict(labels)} for address, labels in targets],
            }
            for job, targets in jobs.items()
        ],
    }
    (folder / "prometheus.yaml").write_text(json.dumps(config), encoding="utf-8")
    checked = promtool("check", "config", folder / "prometheus.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (port,) = free_ports(1)
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            tool("prometheus"),
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
            stdout=log,
            stderr=log,
        )
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=HANG) as client:
            running = Prometheus(f"http://127.0.0.1:{port}", client)

            async def answers() -> bool:
                assert process.returncode is None, (folder / "log").read_text(encoding="utf-8")
                return await running.ready()

            await eventually(answers)
            yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
