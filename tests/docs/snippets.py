"""The blocks of code in the documentation, with the mark that says how each is tested.

A mark is a comment above the block, ``<!-- KIND: TEXT -->``. KINDS says what it means.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# docs/operations.md has its own marks, and tests: tests/integration/test_operations.py and test_nginx.py. tests/matrix
# runs docs/clients.md. Decisions are not changed any more.
PAGES = sorted(
    path
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if path.parent.name != "decisions" and path.name not in ("operations.md", "clients.md")
)
# Languages that a reader may copy. Others are output, and diagrams.
COPIED = {"apache", "caddy", "haproxy", "html", "js", "json", "jsx", "nginx", "python", "sh", "vcl", "vue", "yaml"}
KINDS = {
    "run": "a shell runs the block against a gateway; TEXT is in the output",
    "guarded": "the same, against a gateway with the page's tokens.yaml and policy.yaml",
    "file": "the block is the file TEXT for the page's further blocks",
    "flags": "the command line takes the flags of each etcd-watch-gateway in the block",
    "settings": "the gateway takes the settings",
    "etcd-watch": "the command line of etcd-watch takes each line",
    "helm": "the chart takes the values of each helm in the block",
    "values": "the chart takes the values, after those of the page's blocks before",
    "python": "Python runs the block against a gateway; TEXT is in the output",
    "fastapi": "the application answers with TEXT",
    "node": "Node runs the block against a gateway; TEXT is in the output",
    "module": "the same, with the JavaScript client installed",
    "console": "a browser runs the block in the gateway's page; TEXT is in its console",
    "page": "a browser opens the block, with the JavaScript client beside it, and shows TEXT",
    "react": "React renders the block; TEXT is in the output",
    "vue": "Vue renders the block; TEXT is in the output",
    "session": "tests/examples/test_session.py runs the block in Chromium",
    "proxy": "the block is a file of a proxy's configuration; tests/matrix/test_proxies.py runs the proxy",
    "not run": "TEXT is one of REASONS",
}
REASONS = {
    "it does not end",  # `make run` and the like; tests/dev and tests/test_make.py run them
    "it installs packages",
    "it needs a cluster",
    "it needs a registry",
}


@dataclass(frozen=True, slots=True)
class Snippet:
    """A block of code."""

    page: Path
    line: int
    language: str
    kind: str
    text: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


_BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<kind>[a-z -]+): (?P<text>[^\n]+) -->\n *)?```(?P<language>\w+)\n(?P<code>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)


def snippets_of(page: Path) -> list[Snippet]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Snippet(
            page,
            text.count("\n", 0, found.start("language")) + 1,
            found["language"],
            found["kind"] or "",
            found["text"] or "",
            textwrap.dedent(found["code"]),
        )
        for found in _BLOCK.finditer(text)
    ]


SNIPPETS = [snippet for page in PAGES for snippet in snippets_of(page)]


def of_kind(*kinds: str) -> list[Snippet]:
    """The blocks with one of these marks."""
    return [snippet for snippet in SNIPPETS if snippet.kind in kinds]
