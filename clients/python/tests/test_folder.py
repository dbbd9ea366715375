"""Keys as files: inside of the folder, and all of one revision."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from etcd_watch_client.cli.folder import Folder, layout, path_of
from etcd_watch_client.cli.statuses import LOCAL, CommandError
from etcd_watch_client.events import Entry
from hypothesis import example, given
from hypothesis import strategies as st

names = st.lists(st.sampled_from([b"", b".", b"..", b"a", b"b", b"\xff", b"...", b"a\0"]), max_size=5).map(b"/".join)


def entries(**values: str) -> dict[bytes, Entry]:
    """Entries under /c/; write ``__`` for a slash."""
    found = {f"/c/{name.replace('__', '/')}".encode(): value.encode() for name, value in values.items()}
    return {key: Entry(key, value, 1, 1, 1) for key, value in found.items()}


def read(folder: Path) -> dict[str, str]:
    """The files that a reader finds."""
    root = folder / "current"
    return {str(file.relative_to(root)): file.read_text() for file in root.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("key", "path"),
    [
        (b"/c/a", b"c/a"), (b"a", b"a"), (b"/c/..a", b"c/..a"), (b"/\xff", b"\xff"),
        (b"/../etc/passwd", None), (b"/c/../../x", None), (b"..", None), (b"/c/./a", None), (b"//etc/passwd", None),
        (b"/c//a", None), (b"/c/", None), (b"", None), (b"/", None), (b"/a\0b", None),
        (b"/" + b"x" * 255, b"x" * 255), (b"/" + b"x" * 256, None), (b"/x" * 1025, None),
    ],
)  # fmt: skip
def test_a_key_is_a_path_inside_of_the_folder(key: bytes, path: bytes | None) -> None:
    """Or it is refused."""
    assert path_of(key) == path


def test_a_beginning_is_removed() -> None:
    """What is left must still be a path inside."""
    assert path_of(b"/config/a", b"/config/") == b"a"
    assert path_of(b"/config/../a", b"/config/") is None
    assert path_of(b"/config/", b"/config/") is None


@example({b"//a", b"a/a"}, b"/")  # keys of one length, paths of two
@given(st.sets(names), st.sampled_from([b"", b"/a", b"a/", b"/"]))
def test_no_key_climbs_out(keys: set[bytes], strip: bytes) -> None:
    """Whatever the names: each path stays inside, is one file, and is not also a folder."""
    paths, refused = layout(keys, strip)
    assert paths.keys() | set(refused) == keys
    assert not paths.keys() & set(refused)
    assert len(set(paths.values())) == len(paths)
    for path in paths.values():
        assert os.path.normpath(b"/root/" + path) == b"/root/" + path
        assert not any(other.startswith(path + b"/") for other in paths.values())


def test_the_files_are_swapped_at_once(tmp_path: Path) -> None:
    """Whoever has resolved the symlink keeps a whole state; what did not change is the same file."""
    with Folder(tmp_path, "/c/") as folder:
        assert folder.write(entries(a="1", d__b="2")) == (True, [])
        before = (tmp_path / "current").resolve()
        assert read(tmp_path) == {"a": "1", "d/b": "2"}
        assert folder.write(entries(a="one", d__b="2")) == (True, [])
        assert read(tmp_path) == {"a": "one", "d/b": "2"}
        assert (before / "a").read_text() == "1"
        assert (before / "d/b").samefile(tmp_path / "current/d/b")
        assert stat.S_IMODE((tmp_path / "current/a").stat().st_mode) == 0o444
        assert folder.write({}) == (True, [])
        assert (read(tmp_path), before.exists()) == ({}, False)
    assert sorted(one.name for one in (tmp_path / ".versions").iterdir()) == ["2", "3"]


def test_nothing_is_swapped_if_nothing_changed(tmp_path: Path) -> None:
    """Also after a restart, so that no command runs in vain."""
    state = entries(a="1", d__b="2")
    with Folder(tmp_path) as folder:
        folder.write(state)
        assert folder.write(dict(state)) == (False, [])
    with Folder(tmp_path) as folder:
        assert folder.write(state) == (False, [])
        assert folder.write(entries(a="1", d__b="3")) == (True, [])
    with Folder(tmp_path) as folder:
        assert folder.write(entries(a="1")) == (True, [])
    assert read(tmp_path) == {"c/a": "1"}


def test_refused_keys_do_not_keep_the_others_away(tmp_path: Path) -> None:
    """They are named. A key that would be a file and a folder is the folder."""
    keys = [b"/../x", b"/a", b"/a/b", b"/ok"]
    with Folder(tmp_path / "deep" / "er") as folder:
        assert folder.write({key: Entry(key, b"v", 1, 1, 1) for key in keys}) == (True, [b"/../x", b"/a"])
    assert read(tmp_path / "deep" / "er") == {"a/b": "v", "ok": "v"}
    assert not (tmp_path / "deep" / "x").exists()


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    """A half-written version is never shown."""
    with Folder(tmp_path) as folder:
        folder.write(entries(a="1"))
    (tmp_path / ".versions" / "7").mkdir()
    (tmp_path / ".current.new").symlink_to("nowhere")
    with Folder(tmp_path) as folder:
        folder.write(entries(a="2"))
    assert read(tmp_path) == {"c/a": "2"}
    assert sorted(one.name for one in (tmp_path / ".versions").iterdir()) == ["1", "8"]


def test_files_are_on_the_disk_before_they_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or after a loss of power the symlink may show empty files. What the version before has is there already."""
    on_disk, swap = [], Folder._swap

    def sync(descriptor: int) -> None:
        on_disk.append((os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))

    def look_and_swap(folder: Folder, fresh: Path) -> None:
        files = [file.stat() for file in fresh.rglob("*") if file.is_file()]
        assert {(one.st_ino, one.st_size) for one in files} <= set(on_disk)
        swap(folder, fresh)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Folder, "_swap", look_and_swap)
    with Folder(tmp_path) as folder:
        folder.write(entries(a="1", d__b="22"))
        folder.write(entries(a="333", d__b="22"))
    assert sorted(size for _, size in on_disk) == [1, 2, 3]


def test_one_process_has_the_folder(tmp_path: Path) -> None:
    """Two would swap each other's files away."""
    with Folder(tmp_path), pytest.raises(CommandError, match="another process") as failed, Folder(tmp_path):
        pass
    assert failed.value.status == LOCAL
    with Folder(tmp_path):
        pass


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    """A `current` that is a folder of the user is an error, and stays."""
    (tmp_path / "current").mkdir()
    (tmp_path / "current" / "mine").write_text("x")
    with Folder(tmp_path) as folder, pytest.raises(OSError, match="current"):
        folder.write(entries(a="1"))
    assert read(tmp_path) == {"mine": "x"}
    assert list((tmp_path / ".versions").iterdir()) == []
