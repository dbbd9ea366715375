"""Java's own HTTP client, as docs/clients.md shows it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.clients.gateways import Gateways
from tests.matrix.programs import ADDRESS, Running, java_program, loses_nothing, needs
from tests.support.etcd import EtcdClient

pytestmark = [pytest.mark.etcd, pytest.mark.one_etcd]


def write(folder: Path, url: str, silence: int = 45) -> str:
    """Write the program for this gateway, and return its path."""
    text = java_program().replace(ADDRESS, url)
    assert text.count("45, TimeUnit.SECONDS") == 1
    path = folder / "Follow.java"
    path.write_text(text.replace("45, TimeUnit.SECONDS", f"{silence}, TimeUnit.SECONDS"), encoding="utf-8")
    return str(path)


async def test_it_loses_nothing(kv: EtcdClient, gateways: Gateways, tmp_path: Path) -> None:
    """With the lines of the page."""
    needs("javac")
    await kv.put("/svc/a", "1")
    async with Running(needs("java"), write(tmp_path, gateways.urls[0]), url="") as program:
        await loses_nothing(program, kv, gateways)


async def test_a_refusal_ends_it(gateways: Gateways, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that is wrong is not tried again."""
    needs("javac")
    monkeypatch.setattr("tests.matrix.programs.TOKEN", "wrong-token-0123456789")
    async with Running(needs("java"), write(tmp_path, gateways.urls[0]), url="") as program:
        status, said = await program.ends()

    assert status == 1
    assert "refused: " in said
    assert "unauthorized" in said


async def test_a_silence_is_noticed(kv: EtcdClient, gateways: Gateways, tmp_path: Path) -> None:
    """A gateway that is stopped, as one that a firewall cuts off, says nothing. The stream resumes."""
    needs("javac")
    await kv.put("/svc/a", "1")
    async with Running(needs("java"), write(tmp_path, gateways.urls[0], silence=5), url="") as program:
        await program.shows("synced")
        stopped = gateways.running[0].process
        stopped.send_signal(signal.SIGSTOP)
        try:
            await program.shows("disconnected")
        finally:
            stopped.send_signal(signal.SIGCONT)
        await kv.put("/svc/b", "2")
        await program.shows("put /svc/b")

    assert program.lines.count("reset ") == 1
