"""Where the hub listens for its workers."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest

from app.settings import SettingsError
from app.workers.hub_socket import check_place, listen_at, private_path, remove_of_dead_hub


@pytest.fixture(name="temporary")
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, as TMPDIR names it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_only_the_user_reaches_the_socket(temporary: Path) -> None:
    """The socket is in a folder of its own, which is removed afterwards."""
    with private_path() as path:
        listen_at(path).close()
        assert path.is_socket()
        assert path.parent.parent == temporary
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_dead_hub(temporary: Path) -> None:
    """A worker removes it. If only the link has broken, the other workers, and the next ones, need the socket."""
    path = temporary / "folder" / "hub"
    path.parent.mkdir()
    with listen_at(path):
        remove_of_dead_hub(path)
        assert path.is_socket()
    remove_of_dead_hub(path)
    remove_of_dead_hub(path)
    assert list(temporary.iterdir()) == []


def test_nothing_but_the_socket_of_a_dead_hub_is_removed(temporary: Path) -> None:
    """Somebody may start a worker with a path of their own."""
    file, path = temporary / "file", temporary / "folder" / "hub"
    path.parent.mkdir()
    (path.parent / "other").touch()
    for one in (file, path):
        one.touch()
        remove_of_dead_hub(one)
        assert one.is_file()


@pytest.mark.parametrize(
    ("folder", "said"), [("x" * 100, "a folder with a shorter path"), ("missing/folder", "mount one at /tmp")]
)
def test_no_place(temporary: Path, monkeypatch: pytest.MonkeyPatch, folder: str, said: str) -> None:
    """The error says what to do, and nothing is left behind."""
    if "/" not in folder:
        (temporary / folder).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / folder))
    with pytest.raises(SettingsError, match=said):
        check_place()
    assert [one for one in temporary.rglob("*") if one.name != folder] == []
