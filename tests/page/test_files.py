"""The files of the page: what they may contain, and what their versions depend on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.page import files as served
from app.page.files import FOLDER, INDEX, make_file, read_files

TESTS = Path(__file__).parent / "model"
CLIENT = FOLDER.parents[1] / "clients" / "js"
SCRIPTS = sorted(FOLDER.rglob("*.js"))
# Lines. The Python files have the same limit.
LONGEST_FILE = 540
# What only a document has. The model is the page without a document, so that Node can test it.
DOCUMENT = re.compile(r"\b(document|window|localStorage|sessionStorage|location|history|navigator|fetch|setTimeout)\b")


def code(path: Path) -> str:
    """A script without its comments."""
    return re.sub(r"(?s:/\*.*?\*/)|(?<![:'\"])//.*", "", path.read_text(encoding="utf-8"))


def test_the_version_is_that_of_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another content, another name or another file is another version; the same files are the same version."""
    (tmp_path / "a.js").write_text("1")
    (tmp_path / "b.css").write_text("2")
    (tmp_path / "note.txt").write_text("is not served")
    monkeypatch.setattr(served, "FOLDER", tmp_path)
    versions = [read_files()[0]]
    assert read_files() == read_files()
    assert sorted(read_files()[1]) == ["a.js", "b.css"]
    for change in (
        lambda: (tmp_path / "a.js").write_text("2"),
        lambda: (tmp_path / "a.js").rename(tmp_path / "c.js"),
        lambda: (tmp_path / "d.js").write_text(""),
    ):
        change()
        versions.append(read_files()[0])

    assert len(set(versions)) == len(versions)


def test_an_etag_is_that_of_the_content() -> None:
    """Equal contents have equal ETags, and they are strong ones."""
    assert make_file(b"1", ".js").etag == make_file(b"1", ".css").etag != make_file(b"2", ".js").etag
    assert re.fullmatch('"[0-9a-f]{32}"', make_file(b"1", ".js").etag)


def test_nothing_is_loaded_from_elsewhere() -> None:
    """The page works without internet, and under any path: each address in it is relative."""
    index = (FOLDER / INDEX).read_text(encoding="utf-8")
    style = (FOLDER / "style.css").read_text(encoding="utf-8")

    links = re.findall(r'(?:src|href)="([^"]*)"', index)
    assert [link[:20] for link in links if re.match("[a-z]+:|/", link)] == ["data:image/svg+xml,%"]
    assert re.findall(r"url\(|@import", style) == []
    for path in SCRIPTS:
        imports = re.findall(r"""(?:from|import)\s*\(?['"]([^'"]+)""", code(path))
        assert all(name.startswith(("./", "../")) for name in imports), path
        assert all((path.parent / name).exists() for name in imports), path


def test_nothing_makes_markup_of_a_text() -> None:
    """The policy forbids it, and a browser without trusted types would not notice."""
    for path in SCRIPTS:
        assert (
            re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", code(path))
            == []
        ), path
    index = (FOLDER / INDEX).read_text(encoding="utf-8")
    assert re.findall(r"\sstyle=|\son[a-z]+=|<script>|<style>", index) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_a_script(path: Path) -> None:
    """No script is too long. The model needs no document, and each of its files has a test of its name."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    if path.parent.name == "model":
        assert DOCUMENT.findall(code(path)) == []
        assert (TESTS / f"{path.stem}.test.mjs").exists()


def test_every_script_is_loaded() -> None:
    """No script is left over: each is reached from page.js or from the worker."""
    worker = FOLDER / "client" / "shared-worker.js"
    reached, waiting = set(), {FOLDER / "page.js", worker}
    while waiting:
        path = waiting.pop()
        reached.add(path)
        imports = re.findall(r"""(?:from\s*|import\s*\(?)['"]([^'"]+)""", code(path))
        waiting |= {(path.parent / name).resolve() for name in imports} - reached

    assert [path for path in SCRIPTS if path not in reached] == []
    assert f"client/{worker.name}" in code(FOLDER / "page.js")


def test_the_client_is_a_copy() -> None:
    """The page has the project's own client, byte for byte. After a change of clients/js, copy the files again."""
    copies = {path.name for path in (FOLDER / "client").iterdir()}

    assert copies == {path.name for path in CLIENT.glob("*.js")} - {"gateways.js", "react.js", "snapshots.js", "vue.js"}
    for name in copies:
        assert (FOLDER / "client" / name).read_bytes() == (CLIENT / name).read_bytes(), name
