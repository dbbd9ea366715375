"""Builds the docs site from docs/, as HTML that needs no network: ``python -m tools.site [OUTPUT]``, or ``make docs``.

The pages are written for a forge, too: README.md is the index of its folder, and links lead out of docs/. Sphinx wants
neither. So this tool copies docs/ to .cache/docs, renames each README.md to index.md, adds the pages outside docs/ that
are linked, and points the links at them. Each warning of Sphinx, such as a broken link, ends the build with status 1.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from posixpath import relpath

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
STAGE = ROOT / ".cache" / "docs"
OUTPUT = ROOT / "dist" / "docs"

_FENCE = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_ENTRY = re.compile(r"^(?:- |\| )\[[^\]]+\]\(([^)#\s]+\.md)\)", re.MULTILINE)


def place_of(page: Path) -> str:
    """Where a page is on the site: docs/README.md is index.md, and CONTRIBUTING.md is project/contributing.md."""
    if page == ROOT / "README.md":  # a forge's front page; the site has its own
        return "index.md"
    if page.is_relative_to(DOCS):
        name = page.relative_to(DOCS).as_posix()
        return re.sub(r"(^|/)README\.md$", r"\1index.md", name)
    name = page.relative_to(ROOT).as_posix().removesuffix("/README.md").removesuffix(".md")
    return f"project/{name.replace('/', '-').lower()}.md"


def prose(text: str) -> Iterator[tuple[bool, str]]:
    """The parts of a page, in order: whether it is prose, and the part. The others are blocks of code."""
    end = 0
    for fence in _FENCE.finditer(text):
        yield True, text[end : fence.start()]
        yield False, fence[0]
        end = fence.end()
    yield True, text[end:]


def targets(page: Path, text: str) -> Iterator[Path]:
    """The files of the checkout that a page links."""
    for is_prose, part in prose(text):
        for match in _LINK.finditer(part) if is_prose else ():
            target = match[3].partition("#")[0]
            if target and "://" not in target:
                yield (page.parent / target).resolve()


def pages() -> dict[Path, str]:
    """Every page of the site and its text: those of docs/, and those that they link, directly or not."""
    found: dict[Path, str] = {}
    waiting = sorted(DOCS.rglob("*.md"))
    while waiting:
        page = waiting.pop()
        if page in found or page == ROOT / "README.md":
            continue
        found[page] = page.read_text(encoding="utf-8")
        waiting += [to for to in targets(page, found[page]) if to.suffix == ".md" and to.is_file()]
    return found


def moved(page: Path, text: str) -> str:
    """The text of a page with its links as they are on the site."""
    here = Path(place_of(page)).parent.as_posix()

    def move(match: re.Match[str]) -> str:
        target, mark, anchor = match[3].partition("#")
        to = (page.parent / target).resolve()
        if not target or "://" in target:
            return match[0]
        if to.suffix == ".md":
            place = place_of(to)
        elif to.is_relative_to(DOCS) and to.is_file():
            place = to.relative_to(DOCS).as_posix()
        else:  # a folder or a source file: the site does not have it
            return match[2]
        return f"{match[1]}[{match[2]}]({relpath(place, here)}{mark}{anchor})"

    return "".join(_LINK.sub(move, part) if is_prose else part for is_prose, part in prose(text))


def contents(index: Path, text: str) -> str:
    """The hidden tables of contents of an index: under each heading, the pages that its list or table begins with."""
    here = Path(place_of(index)).parent.as_posix()
    blocks = []
    for number, section in enumerate(re.split(r"^## ", text, flags=re.MULTILINE)):
        entries = [place_of((index.parent / entry).resolve()) for entry in _ENTRY.findall(section)]
        if entries:
            caption = [f":caption: {section.splitlines()[0]}"] if number else []
            lines = [":hidden:", *caption, "", *(relpath(entry, here) for entry in entries)]
            blocks.append("\n".join(["```{toctree}", *lines, "```"]))
    return "\n\n".join(["", *blocks, ""])


def stage(folder: Path) -> None:
    """Write the copy that Sphinx reads."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("*.md", "__pycache__"))
    for page, text in pages().items():
        target = folder / place_of(page)
        target.parent.mkdir(parents=True, exist_ok=True)
        is_index = page.name == "README.md" and page.is_relative_to(DOCS)
        target.write_text(moved(page, text) + (contents(page, text) if is_index else ""), encoding="utf-8")


def build(output: Path, folder: Path = STAGE) -> subprocess.CompletedProcess[str]:
    """Build the site. Sphinx is a process of its own, because it changes the whole interpreter."""
    stage(folder)
    shutil.rmtree(output, ignore_errors=True)
    options = ["--quiet", "--fail-on-warning", "--builder", "html", "--doctree-dir", f"{folder}.doctrees"]
    command = [sys.executable, "-m", "sphinx", *options, str(folder), str(output)]
    return subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603  # of this tool alone


def main() -> int:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    done = build(output)
    sys.stderr.write(done.stdout + done.stderr)
    if done.returncode == 0:
        sys.stdout.write(f"{output / 'index.html'}\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
