"""``app.workers.count``: how many workers ``auto`` means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.workers import count as module
from app.workers.count import available_processors, cpu_quota, parse_cpu_quota, worker_count


@pytest.mark.parametrize(
    ("words", "processors"),
    [
        (["150000", "100000"], 1.5),
        (["max", "100000"], None),
        (["-1", "100000"], None),
        (["400000", "100000"], 4.0),
        ([], None),
        (["1", "0"], None),
    ],
)
def test_a_quota_and_its_period(words: list[str], processors: float | None) -> None:
    """Both versions of control groups state microseconds of a period; ``max`` and -1 are no limit."""
    assert parse_cpu_quota(words) == processors


@pytest.mark.parametrize(("text", "workers"), [("150000 100000", 1), ("250000 100000", 2), ("10000 100000", 1)])
def test_auto_is_the_quota_rounded_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, workers: int
) -> None:
    """A part of a processor is no place for a worker; but there is always one."""
    monkeypatch.setattr(module, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(module, "_processors", lambda: 64)
    (tmp_path / "cpu.max").write_text(f"{text}\n")
    assert worker_count("auto") == workers
    assert worker_count(3) == 3


def test_the_older_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 1 has a file for each of the two numbers. Without either there is no limit but the processors."""
    files = (tmp_path / "quota", tmp_path / "period")
    monkeypatch.setattr(module, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(module, "QUOTA_V1", files)
    assert cpu_quota() is None
    assert available_processors() == len(os.sched_getaffinity(0))
    for path, text in zip(files, ("300000\n", "100000\n"), strict=True):
        path.write_text(text)
    assert cpu_quota() == 3.0
