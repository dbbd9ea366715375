"""The allocator's settings: applied with glibc, and skipped elsewhere."""

from __future__ import annotations

import ctypes
import gc
import platform
import subprocess
import sys

import pytest

from app.allocator import keep_for_good, return_large_blocks

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


def test_what_stays_is_not_collected_again() -> None:
    """What exists is exempt; what is made afterwards is still collected."""
    keep_for_good()
    try:
        assert gc.get_freeze_count() > 0
        cycle: list[object] = []
        cycle.append(cycle)
        del cycle

        assert gc.collect() > 0
    finally:
        gc.unfreeze()
