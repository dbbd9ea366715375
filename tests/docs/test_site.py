"""The docs site: ``make docs``, strictly."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tools import command_line, site


def test_the_command_line_is_written_from_the_parser() -> None:
    """docs/command-line.md is what the parser of the command line says."""
    assert command_line.PAGE.read_text(encoding="utf-8") == command_line.page(), "make reference"


def test_a_link_is_moved_with_its_page() -> None:
    """A link between pages, out of docs/, or to a file of docs/ leads to the same on the site; a source has no page."""
    page = site.DOCS / "how-to" / "shell.md"
    text = (
        "[a](../faq.md#x) [b](../README.md) [c](../../CONTRIBUTING.md) [d](../examples/mirror.py) [e](../../Makefile)"
    )
    assert site.moved(page, text) == (
        "[a](../faq.md#x) [b](../index.md) [c](../project/contributing.md) [d](../examples/mirror.py) e"
    )
    assert site.moved(page, "[a](https://a.example/b.md) [b](#c)\n```sh\n[d](../README.md)\n```") == (
        "[a](https://a.example/b.md) [b](#c)\n```sh\n[d](../README.md)\n```"
    )


def test_the_index_is_the_table_of_contents() -> None:
    """Each heading of docs/README.md is a caption, with the pages that its list begins with."""
    text = "- [q](quickstart.md)\n\n## How to\n\n- [s](how-to/shell.md): [f](faq.md)\n- [c](../CONTRIBUTING.md)\n"
    assert site.contents(site.DOCS / "README.md", text) == (
        "\n\n```{toctree}\n:hidden:\n\nquickstart.md\n```\n\n"
        "```{toctree}\n:hidden:\n:caption: How to\n\nhow-to/shell.md\nproject/contributing.md\n```\n\n"
    )


class Loaded(HTMLParser):
    """What a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the addresses; a link (``a``) loads nothing before somebody follows it."""
        wanted = {"link": "href"}.get(tag, "src")
        self.addresses += [value for name, value in attrs if tag != "a" and name == wanted and value]


@pytest.mark.process
def test_the_site_is_built_strictly_and_needs_no_network(tmp_path: Path) -> None:
    """No broken link, every page is in the contents, and no page or style loads anything from another host."""
    done = site.build(tmp_path / "site", tmp_path / "stage")
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert loaded.addresses
        assert [address for address in loaded.addresses if "//" in address] == [], page
    text = {page.stem: page.read_text(encoding="utf-8") for page in (tmp_path / "site").glob("*.html")}
    assert re.findall(r"[–—]\w+", text["command-line"]) == [], "two hyphens stay two hyphens"  # noqa: RUF001
    titles = re.findall(r"toctree-l1\"><a class=\"reference internal\" href=\"[^\"]*\">(.*?)</a>", text["faq"])
    assert len(titles) > 40
    assert len(titles) == len(set(titles)), "the sidebar tells pages apart"
    for style in (tmp_path / "site").rglob("*.css"):
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")) == []


@pytest.mark.process
def test_a_broken_link_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to a page or to a heading that does not exist is an error, with the page and the line."""
    docs = tmp_path / "docs"
    (docs / "static").mkdir(parents=True)
    (docs / "conf.py").write_bytes((site.DOCS / "conf.py").read_bytes())
    (docs / "README.md").write_text(
        "# A\n\n- [q](faq.md)\n\n[b](nowhere.md)\n\n[c](faq.md#nowhere)\n", encoding="utf-8"
    )
    (docs / "faq.md").write_text("# Q\n", encoding="utf-8")
    monkeypatch.setattr(site, "DOCS", docs)
    monkeypatch.setattr(site, "ROOT", tmp_path)
    done = site.build(tmp_path / "site", tmp_path / "stage")
    assert done.returncode != 0
    assert "index.md:5" in done.stderr
    assert "index.md:7" in done.stderr
