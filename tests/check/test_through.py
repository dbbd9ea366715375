"""``etcd-watch-gateway check --through``: a real nginx in front of a real gateway, configured well and badly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.check import findings as conclusions
from app.check import through as module
from app.check.findings import Finding, Level, findings, status_of
from app.check.options import Options
from app.check.through import Through, check_through
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess
from tests.support.nginx import Nginx, nginx, recipe
from tests.support.waiting import HANG

pytestmark = [pytest.mark.etcd, pytest.mark.one_etcd]

# Beside the recipe: an nginx that ignores the gateway's header, one that is impatient, one that changes what passes.
BAD = """
server {
    listen 80;
    location /buffering/ { proxy_pass http://gateways/; proxy_ignore_headers X-Accel-Buffering; }
    location /short/ { proxy_pass http://gateways/; proxy_http_version 1.1; proxy_read_timeout 1s; }
    location /changing/ {
        proxy_pass http://gateways/;
        proxy_http_version 1.1;
        proxy_set_header Last-Event-ID "";
        proxy_set_header X-Forwarded-For 192.0.2.7;
        gzip on;
        gzip_http_version 1.0;
        gzip_proxied any;
        gzip_types text/event-stream;
        gzip_min_length 0;
    }
    location /away/ { proxy_pass http://127.0.0.1:1/; }
}
"""
UPSTREAM = "upstream gateways { server gateway-0:8080; }"


def options(server: str, through: str, **changed: object) -> Options:
    """The flags, with few streams."""
    given = {
        "prefix": b"/svc/",
        "url": server,
        "admin_url": server,
        "etcd_metrics": (),
        "token": "",
        "streams": 4,
        "rounds": 1,
        "timeout": 60.0,
        "through": through,
        **changed,
    }
    return Options(**given)  # type: ignore[arg-type]


async def found(given: Options) -> dict[str, Finding]:
    """The findings of a run, by their subjects."""
    measured = await Through(given).run()
    return {each.subject: each for each in findings(measured)}


def faults(found: dict[str, Finding]) -> set[str]:
    """The subjects of the faults."""
    return {each.subject for each in found.values() if each.level is Level.FAULT}


@pytest.fixture(name="bad")
async def _bad(server: GatewayProcess, tmp_path: Path) -> AsyncIterator[Nginx]:
    async with nginx(tmp_path / "bad", [server.base], UPSTREAM + BAD) as front:
        yield front


async def test_what_each_configuration_does(
    server: GatewayProcess,
    kv: EtcdClient,
    bad: Nginx,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recipe of docs/operations.md has no fault. Each other configuration has its own, and no more."""
    # A slow machine may need longer than a proxy may.
    for name in ("DELAY", "GRACE", "PROMPT"):
        monkeypatch.setattr(conclusions, name, HANG)
    for name in ("NOTICING", "OPENING"):
        monkeypatch.setattr(module, name, HANG)
    writing = asyncio.create_task(_write(kv))
    async with nginx(tmp_path / "good", [server.base, server.base], recipe("streams")) as good:
        well, short, changing = await asyncio.gather(
            found(options(server.base, good.base, lasting=5.0)),
            found(options(server.base, f"{bad.base}/short")),
            found(options(server.base, f"{bad.base}/changing")),
        )
        # A stream that nginx buffers does not open, however long the check waits.
        monkeypatch.setattr(module, "OPENING", 1.0)
        buffering = await found(options(server.base, f"{bad.base}/buffering"))
    writing.cancel()

    assert faults(well) == set(), well
    assert {name for name, each in well.items() if each.level is Level.UNKNOWN} == {"while one drains"}
    assert well["event latency"].figures["events"] >= 1
    assert well["a client that left"].figures["streams"] == 4
    assert faults(buffering) >= {"first byte", "buffering"}
    assert faults(short) == {"idle time"}, short
    assert faults(changing) == {"Last-Event-ID"}, changing
    assert changing["transformation"].level is Level.NOTE
    assert "gzip" in changing["transformation"].text


async def _write(kv: EtcdClient) -> None:
    while True:
        await kv.put("/svc/a", "1")
        await asyncio.sleep(0.5)


async def test_what_stands_for_nothing_is_said(bad: Nginx) -> None:
    """Without a gateway of its own, and without a gateway behind the proxy."""
    nowhere, away = await asyncio.gather(
        found(options("http://127.0.0.1:1", f"{bad.base}/short", lasting=0.1)),
        Through(options("http://127.0.0.1:1", f"{bad.base}/away")).run(),
    )

    assert nowhere["event latency"].text.startswith("needs a stream without the proxy: http://127.0.0.1:1/v1/watch")
    assert nowhere["a client that left"].level is Level.UNKNOWN
    assert status_of(findings(away), away) == 2
    assert away.requests.failed.keys() == {"502"}


async def test_the_command_prints_findings(
    server: GatewayProcess, bad: Nginx, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a table with advice, and as JSON; the exit status says whether there is a fault."""
    url = f"{bad.base}/short"
    assert await check_through(options(server.base, url, put="echo no etcd >&2; exit 3")) == 1
    table = capsys.readouterr().out
    assert await check_through(options(server.base, url, json=True)) == 1
    report = json.loads(capsys.readouterr().out)

    assert table.startswith(f"prefix=/svc/ through {url}, and directly at {server.base}\n\nwell     first byte ")
    assert "--put failed: status 3: no etcd\n" in table
    assert "→ set the proxy's read and idle timeouts above the heartbeat of 1 s" in table
    assert table.splitlines()[-1] == "1 fault, 2 not known"
    assert (report["status"], report["through"]) == (1, url)
    assert {each["subject"] for each in report["findings"] if each["level"] == "fault"} == {"idle time"}


async def test_nothing_listens_at_the_proxy(capsys: pytest.CaptureFixture[str]) -> None:
    """The check cannot tell anything, and says why."""
    assert await check_through(options("http://127.0.0.1:1", "http://127.0.0.1:1", json=True)) == 2
    assert "Connection refused" in json.loads(capsys.readouterr().out)["error"]
