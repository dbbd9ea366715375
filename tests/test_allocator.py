"""The allocator's settings: applied with glibc, and skipped elsewhere."""

from __future__ import annotations

import ctypes
import gc
import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest

from app.allocator import freeze_objects, importing, return_large_blocks

PROGRAM = "import sys; from app.allocator import return_large_blocks; sys.exit(not return_large_blocks())"


@pytest.mark.process
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="NOT RUN: this machine has no glibc")
def test_with_glibc() -> None:
    """The settings last for the life of a process, so they are applied in a separate process."""
    assert subprocess.run([sys.executable, "-c", PROGRAM], check=False).returncode == 0


@pytest.mark.parametrize("error", [OSError, AttributeError])
def test_without_glibc(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS and musl, nothing happens."""

    def refuse(_name: None) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refuse)

    assert not return_large_blocks()


@pytest.fixture(name="kept")
def _kept() -> Iterator[None]:
    """A process that is ready to serve.

    What is frozen stays so: tests/conftest.py has frozen the modules and the tests, a million objects, and each later
    collection in this worker would visit them.
    """
    before = gc.get_threshold()
    freeze_objects()
    yield
    gc.set_threshold(*before)


@pytest.mark.usefixtures("kept")
def test_what_stays_is_not_collected_again() -> None:
    """What exists is exempt; what is made afterwards is still collected."""
    assert gc.get_freeze_count() > 0
    cycle: list[object] = []
    cycle.append(cycle)
    del cycle

    assert gc.collect() > 0


@pytest.mark.usefixtures("kept")
def test_a_herd_brings_no_full_collection() -> None:
    """20,000 clients make 500,000 objects that stay. A full collection visits them all, and the loop stands still."""
    collections: list[int] = []

    def collected(phase: str, about: dict[str, int]) -> None:
        if phase == "start":
            collections.append(about["generation"])

    gc.callbacks.append(collected)
    try:
        objects = [[number] for number in range(500_000)]
    finally:
        gc.callbacks.remove(collected)

    assert len(objects) == 500_000
    assert 1 in collections
    assert 2 not in collections


def test_nothing_is_collected_while_modules_are_imported() -> None:
    """Also after an import that fails, the collector works again."""

    @importing()
    def fail() -> None:
        assert not gc.isenabled()
        raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert gc.isenabled()
