"""The benchmarks run: everything once, too small for meaningful figures."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import benchmarks.load
from benchmarks.__main__ import measure
from benchmarks.load import DeliveryError, build, load
from benchmarks.measure import Figures
from benchmarks.peers.etcd import gateway
from benchmarks.peers.hubs import missing
from benchmarks.suite import GATEWAY, PUSHPIN, SMALL, Comparison, comparisons


@pytest.mark.etcd
@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=f"NOT RUN: the benchmarks: not installed: {' '.join(missing())}")
async def test_everything_is_measured_and_reported(tmp_path: Path) -> None:
    """Every side of every comparison is measured, every delivery is checked, and the page has a plot for each."""
    command = [sys.executable, "-m", "benchmarks", "--small", "--rounds=1", f"--report={tmp_path}"]
    # A JWT expires by the clock of the process that has made it: a gateway whose clock steps would end the streams.
    environment = {name: value for name, value in os.environ.items() if name != "STEP_CLOCK"}
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment
    )
    output, _ = await process.communicate()

    assert process.returncode == 0, output.decode()
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    for comparison in comparisons(SMALL):
        assert f"\n## {comparison.title}\n" in page
        assert (tmp_path / "benchmarks" / f"{comparison.name}.svg").stat().st_size > 1000
        for side in comparison.sides:
            assert f"\n| {side} |" in page


@pytest.mark.etcd
async def test_what_did_not_arrive_is_no_figure() -> None:
    """The load generator reports an unexpected event: it treats a gap and a duplicate alike."""
    async with gateway() as peer, load(peer, 5) as readers:
        await readers.expect(await peer.next_number() + 1, 2)
        await peer.publish()
        with pytest.raises(DeliveryError, match="came after"):
            await readers.arrivals()


def test_the_load_generator_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes may need it at once. One that ran what another was still writing: "Permission denied"."""
    compiled: list[str] = []

    def compile_it(command: list[str], *, check: bool) -> None:
        assert check
        compiled.append(command[-1])
        time.sleep(0.05)  # the others find no binary meanwhile
        Path(command[-2]).touch()

    monkeypatch.setattr(benchmarks.load, "BINARY", tmp_path / "load")
    monkeypatch.setattr(subprocess, "run", compile_it)
    with ThreadPoolExecutor(8) as threads:
        assert {future.result() for future in [threads.submit(build) for _ in range(8)]} == {tmp_path / "load"}
    assert compiled == [str(benchmarks.load.SOURCE)]


@pytest.mark.parametrize(("side", "tries"), [(PUSHPIN, 3), (GATEWAY, 1)])
async def test_only_other_products_are_measured_again(side: str, tries: int) -> None:
    """Pushpin closes a client now and then. If the gateway does not deliver, that is a defect."""
    measured = []

    async def fails() -> Figures:
        measured.append(side)
        raise DeliveryError("closed by the server")

    with pytest.raises(DeliveryError):
        await measure(Comparison("burst", "", "", {side: fails}), side)
    assert len(measured) == tries
