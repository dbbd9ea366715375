"""A mirror on disk."""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from etcd_watch_client.checkpoint import Checkpoint, load, save
from etcd_watch_client.events import Entry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playing import HANG

numbers = st.integers(0, 2**63)
entries = st.builds(Entry, st.binary(), st.none() | st.binary(), numbers, numbers, numbers, st.none() | st.just("7f"))


@given(st.lists(entries), numbers, st.lists(st.text()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_it_comes_back_as_it_was(tmp_path: Path, kept: list[Entry], revision: int, ranges: list[str]) -> None:
    """Every byte and every number."""
    checkpoint = Checkpoint({one.key: one for one in kept}, revision, "e-7", tuple(ranges))
    save(tmp_path / "mirror", "prefix=%2F", checkpoint)
    assert load(tmp_path / "mirror", "prefix=%2F") == checkpoint
    assert load(tmp_path / "mirror", "prefix=%2Fother") is None


def test_a_file_of_an_older_version(tmp_path: Path) -> None:
    """It has no ranges."""
    (tmp_path / "mirror").write_text('{"format":1,"query":"","revision":7,"cursor":"e-7","entries":[]}')
    assert load(tmp_path / "mirror", "") == Checkpoint({}, 7, "e-7")


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    """Values may be secret. Nothing else is left in the folder."""
    save(tmp_path / "mirror", "", Checkpoint({}, 1, "e-1"))
    assert stat.S_IMODE((tmp_path / "mirror").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["mirror"]


def test_two_mirrors_with_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one writes a file of its own, and the last one stays."""
    both_have_written = threading.Barrier(2, timeout=HANG)
    monkeypatch.setattr(os, "fsync", lambda _: both_have_written.wait())
    kept = [Checkpoint({}, revision, f"e-{revision}") for revision in (7, 8)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda one: save(tmp_path / "mirror", "", one), kept))
    assert load(tmp_path / "mirror", "") in kept
    assert [path.name for path in tmp_path.iterdir()] == ["mirror"]


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is as large as the state: a process that is killed again and again would fill the disk.

    What another mirror is writing at that moment stays.
    """
    for name in ("mirror.7-140737", "mirror.8-140737", "other.7-140737", "mirror"):
        (tmp_path / f"{name}.tmp").write_text("half of a st")
    started = []

    def start_another(_: int) -> None:
        started.append(load(tmp_path / "mirror", ""))

    monkeypatch.setattr(os, "fsync", start_another)
    save(tmp_path / "mirror", "", Checkpoint({}, 1, "e-1"))
    assert started == [None]
    assert load(tmp_path / "mirror", "") == Checkpoint({}, 1, "e-1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mirror", "mirror.tmp", "other.7-140737.tmp"]


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", '{"format":2}', '{"format":1,"query":""}', "[" * 100_000),
        '{"format":1,"query":"","revision":Infinity,"cursor":"","entries":[]}',
    ],
)
def test_a_file_that_cannot_be_used_is_ignored(tmp_path: Path, content: str) -> None:
    """Then the gateway sends the state."""
    (tmp_path / "mirror").write_text(content)
    assert load(tmp_path / "mirror", "") is None
    assert load(tmp_path / "none", "") is None
