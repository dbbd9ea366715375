"""Fixtures for more than one folder of tests, and the settings of the whole suite."""

from __future__ import annotations

import functools
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import pytest_asyncio
from httpx._transports import default as transports
from hypothesis import strategies as st

from app.dev import etcd as embedded
from app.settings import PREFIX
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, EtcdClient, etcd_client
from tests.support.forkserver import keep_time
from tests.support.gateway import GatewayProcess, gateway
from tests.support.schedule import turn
from tests.support.size import size
from tests.support.spawning import starts_a_process
from tests.support.versions import is_spare
from tests.support.waiting import HANG

pytest_plugins = ["tests.support.measured", "tests.support.workers"]

# A signal that is ignored stays ignored in all children. A shell's background job ignores Ctrl-C, and nohup's command
# ignores SIGHUP: `nohup make test &` must test the same.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# With this variable each worker would rewrite the assertions of all tests anew, for 5 s of CPU, whatever this machine's
# shell sets.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# etcd lives for seconds in most tests: its garbage may wait, which saves a tenth of its CPU.
os.environ.setdefault("GOGC", "400")

# Collecting makes a million objects, and next to no garbage.
gc.disable()

# Libraries have timeouts that a slow machine exceeds: an example of Hypothesis after 0.2 s, an answer to httpx after 5
# s, an etcd that starts after 30 s. gRPC gives a connection 20 s: tests' own channels have LOOPBACK_OPTIONS.
hypothesis.settings.register_profile(
    "suite",
    max_examples=size(40, long=2000),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
)
hypothesis.settings.load_profile("suite")
# For `make check`, which must end in a minute; `make test` tries more.
FEW = 15
hypothesis.settings.register_profile("check", hypothesis.settings.get_profile("suite"), max_examples=FEW)
(httpx.AsyncClient.__init__.__kwdefaults__ or {})["timeout"] = httpx.Timeout(HANG)
embedded.START_TIMEOUT = HANG
# Each of httpx's clients would read the certificates that it trusts, for 19 ms of CPU.
transports.create_ssl_context = functools.cache(transports.create_ssl_context)  # type: ignore[attr-defined]


SPAWNING = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"}


class Guard:
    """Fails a test that starts a process without the marker `process`: otherwise `make check` would be slow."""

    def __init__(self) -> None:
        self.quiet: str | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, _arguments: tuple[Any, ...]) -> None:
        if self.quiet is not None and event in SPAWNING:
            pytest.fail(f"{self.quiet} starts a process: mark it with pytest.mark.process")


GUARD = Guard()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep one variant of each test that needs only one etcd. Put the longest tests first. Mark the tests that start a
    process; the contract's tests, which also run on a fake, mark themselves.
    """
    spare = [item for item in items if is_spare(item)]
    if spare:
        config.hook.pytest_deselected(items=spare)
        items[:] = [item for item in items if not is_spare(item)]
    items.sort(key=lambda item: turn(item.nodeid))
    for item in items:
        derived = "contract" not in item.path.parts and starts_a_process(item)
        if derived or item.get_closest_marker("etcd") or item.get_closest_marker("slow"):
            item.add_marker("process")


def pytest_collection_finish() -> None:
    """From here on the collector need not look at the modules and the tests, which stay."""
    # In a fresh checkout hypothesis computes for 1.2 s of CPU which characters UTF-8 has: once, and not in each fork.
    st.text().validate()
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Guard each test."""
    GUARD.quiet = None if item.get_closest_marker("process") else item.nodeid
    keep_time(kept=item.get_closest_marker("wall_clock") is not None)
    try:
        return (yield)
    finally:
        GUARD.quiet = None


@pytest.fixture(name="etcd")
async def _etcd() -> AsyncIterator[EmbeddedEtcd]:
    """A fresh etcd for each test."""
    async with EmbeddedEtcd(args=ALONE) as etcd:
        yield etcd


@pytest.fixture(name="kv")
async def _kv(etcd: EmbeddedEtcd) -> AsyncIterator[EtcdClient]:
    """A plain client of ``etcd``."""
    async with etcd_client(etcd.endpoint) as client:
        yield client


@pytest_asyncio.fixture(name="etcd_kv", scope="module", loop_scope="module")
async def _etcd_kv(etcd: EmbeddedEtcd) -> AsyncIterator[EtcdClient]:
    """A plain client of an ``etcd`` that all tests of a module share."""
    async with etcd_client(etcd.endpoint) as client:
        yield client


@pytest.fixture(name="clean_environment")
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every setting from the environment of the tests."""
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture(name="taken")
def _taken() -> Iterator[int]:
    """A port that is already in use."""
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        yield owner.getsockname()[1]


@pytest.fixture(name="server")
async def _server(etcd: EmbeddedEtcd) -> AsyncIterator[GatewayProcess]:
    """A gateway in front of ``etcd``, with quick settings."""
    async with gateway(etcd.endpoint) as running:
        yield running
