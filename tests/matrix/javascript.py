"""The JavaScript programs of docs/clients.md, and how a test runs them: in Node, and in Chromium."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
import shutil
import subprocess
import tarfile
import threading
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.async_api import ConsoleMessage, Page, Route

from app import __version__
from tests.matrix.programs import ADDRESS, PAGE, TOKEN, TOP
from tests.support.firefox import Firefox
from tests.support.waiting import eventually
from tools.release import Release

SOURCE = Path(__file__).with_name("javascript")
MODULES = TOP / ".cache" / "npm"  # the packages of javascript/package-lock.json, and the package of clients/js
PROGRAM = re.compile(r"```js\n(.*?)```", re.DOTALL)


def install() -> Path:
    """Install the packages, if their lock has changed, and the package of this checkout. Return their folder."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("NOT RUN: node or npm is not installed")
    MODULES.mkdir(parents=True, exist_ok=True)
    lock, installed = SOURCE / "package-lock.json", MODULES / "package-lock.json"
    if not installed.exists() or installed.read_bytes() != lock.read_bytes():
        shutil.copy(SOURCE / "package.json", MODULES)
        shutil.copy(lock, installed)
        try:
            npm("ci", "--ignore-scripts", "--no-audit", "--no-fund")
        except BaseException:
            installed.unlink()
            raise
    ours = MODULES / "node_modules" / "etcd-watch-client"
    shutil.rmtree(ours, ignore_errors=True)
    Release(MODULES, __version__, 0).build_javascript_client()
    with tarfile.open(next(MODULES.glob("etcd-watch-client-*.tgz"))) as package:
        package.extractall(MODULES, filter="data")
    (MODULES / "package").rename(ours)
    for path in SOURCE.iterdir():
        shutil.copy(path, MODULES)
    shutil.copy(TOP / "clients" / "js" / "test" / "playing.js", MODULES)
    (MODULES / "follow.js").write_text(program("The loop"), encoding="utf-8")
    return MODULES


def npm(*words: str) -> str:
    """Run npm in the folder of the packages."""
    done = subprocess.run(["npm", *words], cwd=MODULES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def program(heading: str) -> str:
    """The program below a heading of the page."""
    _, _, rest = PAGE.partition(f"\n### {heading}\n")
    found = PROGRAM.search(rest)
    assert found is not None, heading
    return found[1]


def write(heading: str, url: str, token: str = TOKEN) -> Path:
    """Write a program, for this gateway, beside the packages that it imports."""
    text = program(heading).replace(ADDRESS, url).replace("${process.env.TOKEN}", token)
    path = MODULES / f"{re.sub('[^a-z]', '-', heading)}.mjs"
    path.write_text(text, encoding="utf-8")
    return path


async def bundle(path: Path) -> str:
    """The program and all that it imports, as one script."""
    tool = MODULES / "node_modules" / ".bin" / "esbuild"
    done = await asyncio.create_subprocess_exec(tool, path, "--bundle", "--format=esm", stdout=PIPE)
    out, _ = await done.communicate()
    assert done.returncode == 0
    return out.decode()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_words: object) -> None:
        pass


@contextlib.contextmanager
def served() -> Iterator[str]:
    """Serve the folder of the packages, at an origin of its own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(MODULES))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class InChromium:
    """A program in a tab, whose console is kept."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.lines: list[str] = []
        page.on("console", self._hear)

    def _hear(self, message: ConsoleMessage) -> None:
        self.lines.append(message.text[:200])

    @staticmethod
    def answer(kind: str, body: str) -> Callable[[Route], Awaitable[None]]:
        """A file of the page."""

        async def fulfil(route: Route) -> None:
            await route.fulfill(content_type=kind, body=body)

        return fulfil

    async def run(self, script: str, url: str) -> None:
        """Open a page of the gateway's origin that has this script."""
        files = {"text/html": "<!doctype html><script type=module src=matrix.js></script>", "text/javascript": script}
        for (kind, body), name in zip(files.items(), ("matrix.html", "matrix.js"), strict=True):
            await self._page.route(f"{url}/{name}", self.answer(kind, body))
        await self._page.goto(f"{url}/matrix.html")

    async def shows(self, text: str) -> str:
        """Wait for a line that has this text."""

        async def seen() -> bool:
            return any(text in line for line in self.lines)

        await eventually(seen)
        return next(line for line in self.lines if text in line)


class InFirefox:
    """A program in Firefox's tab, on an origin of its own. The page keeps what the program prints."""

    HEAD = """<!doctype html><script>
    window.lines = [];
    console.log = (...words) => lines.push(words.join(' ').slice(0, 200));
    </script><script type=module src=matrix.js></script>"""

    def __init__(self, browser: Firefox) -> None:
        self._browser = browser
        self.lines: list[str] = []

    async def run(self, script: str, origin: str) -> None:
        """Open a page of *origin*, which serves the folder of the packages, that has this script."""
        (MODULES / "matrix.html").write_text(self.HEAD, encoding="utf-8")
        (MODULES / "matrix.js").write_text(script, encoding="utf-8")
        await self._browser.goto(f"{origin}/matrix.html")

    async def shows(self, text: str) -> str:
        """Wait for a line that has this text."""

        async def seen() -> bool:
            self.lines = await self._browser.evaluate("lines")
            return any(text in line for line in self.lines)

        await eventually(seen)
        return next(line for line in self.lines if text in line)


def versions() -> dict[str, str]:
    """The releases that the lock names."""
    lock = json.loads((SOURCE / "package-lock.json").read_text(encoding="utf-8"))
    return {
        name.removeprefix("node_modules/"): entry["version"]
        for name, entry in lock["packages"].items()
        if name.startswith("node_modules/") and name.count("node_modules/") == 1
    }
