"""The commands and the programs in the documentation, run against a gateway."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import sys
import threading
import urllib.request
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.async_api import async_playwright, expect

from tests.docs import components
from tests.docs.snippets import ROOT, SNIPPETS, Snippet, of_kind
from tests.support.chromium import ARGUMENTS, CHROMIUM
from tests.support.embedded import EmbeddedEtcd
from tests.support.gateway import GatewayProcess, gateway
from tests.support.waiting import HANG

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLACE = "http://127.0.0.1:8080"
CLIENT = ROOT / "clients" / "js"
CLIENT_NAME = "etcd-watch-client"
# These open watches at etcd itself, so they run after the blocks that count etcd's watches.
AT_ETCD = ROOT / "docs" / "how-to" / "migrate-from-etcd.md"
# What the tokens of docs/how-to/tokens.md are the hashes of.
TOKEN = "test"


# --- shells, against a gateway ---------------------------------------------------------------------------------------


@pytest.fixture(name="tools")
def _tools(tmp_path: Path) -> Mapping[str, str]:
    """The environment of the blocks: the command is on the PATH, as after an installation."""
    for tool in ("curl", "jq"):
        if shutil.which(tool) is None:
            pytest.skip(f"NOT RUN: the commands in the documentation: {tool} is not installed")
    command = tmp_path / "bin" / "etcd-watch-gateway"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -P -m app "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "TOKEN": TOKEN}


async def shell(block: Snippet, base: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Run a block, and look for the text of its mark."""
    process = await asyncio.create_subprocess_exec(
        *("sh", "-euc", block.code.replace(PLACE, base)),
        stdin=DEVNULL, stdout=PIPE, stderr=PIPE, cwd=folder, env=environment,
    )  # fmt: skip
    try:
        async with asyncio.timeout(HANG):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 0, (str(block), out, err)
    assert block.text in out.decode(), (str(block), out, err)


def folder_in(parent: Path, name: str) -> Path:
    """A new folder."""
    folder = parent / name
    folder.mkdir()
    return folder


async def follow_the_page(page: Path, base: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Do what a page asks for, in its order."""
    for block in SNIPPETS:
        if block.page != page:
            continue
        if block.kind == "file":
            (folder / block.text).write_text(block.code, encoding="utf-8")
        elif block.kind == "run":
            await shell(block, base, folder, environment)


async def test_shells(server: GatewayProcess, tools: Mapping[str, str], tmp_path: Path) -> None:
    """A reader follows each page from its first to its last block; all readers at once."""
    pages = dict.fromkeys(block.page for block in of_kind("run"))
    async with asyncio.TaskGroup() as readers:
        for page in pages:
            if page != AT_ETCD:
                readers.create_task(follow_the_page(page, server.base, folder_in(tmp_path, page.stem), tools))
    await follow_the_page(AT_ETCD, server.base, folder_in(tmp_path, AT_ETCD.stem), tools)


@pytest.mark.parametrize("block", of_kind("guarded"), ids=str)
async def test_guarded(block: Snippet, etcd: EmbeddedEtcd, tools: Mapping[str, str], tmp_path: Path) -> None:
    """The page's own files guard a gateway, and its commands ask it."""
    for file in of_kind("file"):
        if file.page == block.page:
            (tmp_path / file.text).write_text(file.code, encoding="utf-8")
    names = {"GATEWAY_TOKENS_FILE": "tokens.yaml", "GATEWAY_POLICY_FILE": "policy.yaml"}
    settings = {variable: str(tmp_path / name) for variable, name in names.items()}
    async with gateway(etcd.endpoint, settings=settings) as guarded:
        await shell(block, guarded.base, tmp_path, tools)


# --- programs --------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def running(*command: str | Path, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program, which is ended at the end."""
    sources = ROOT / "clients" / "python" / "src"
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, cwd=folder, env={**os.environ, "PYTHONPATH": str(sources)}
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def prints(text: str, *command: str | Path, folder: Path) -> None:
    """Assert that a program prints a text; then end it."""
    async with running(*command, folder=folder) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        seen = ""
        async with asyncio.timeout(HANG):
            while text not in seen:
                line = await process.stdout.readline()
                assert line, (seen, (await process.stderr.read()).decode())
                seen += line.decode()


@pytest.mark.parametrize("block", of_kind("python"), ids=str)
async def test_python(block: Snippet, server: GatewayProcess, tmp_path: Path) -> None:
    """Python runs the program without a warning."""
    (tmp_path / "main.py").write_text(block.code.replace(PLACE, server.base), encoding="utf-8")
    await prints(block.text, sys.executable, "-u", "-W", "error", "main.py", folder=tmp_path)


async def test_python_reads_a_stream_that_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stream has empty lines while the gateway has no state; the program without a client skips them."""
    (block,) = (one for one in of_kind("python") if "import urllib.request" in one.code)
    lines = b'\n\n{"type":"put","key":"/svc/a","value":"1"}\n\n'
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(lines))
    exec(block.code, {})  # noqa: S102 - a program of the documentation
    assert capsys.readouterr().out == "/svc/a 1\n"


@pytest.mark.parametrize("block", of_kind("fastapi"), ids=str)
async def test_fastapi(block: Snippet, server: GatewayProcess, tmp_path: Path) -> None:
    """The application answers from its mirror."""
    asks = "\n".join([
        "from fastapi.testclient import TestClient",
        "with TestClient(app) as client:",
        "    print(client.get('/where/api/b').json(), client.get('/where/api/nobody').status_code)",
    ])  # fmt: skip
    (tmp_path / "main.py").write_text(f"{block.code.replace(PLACE, server.base)}\n{asks}\n", encoding="utf-8")
    await prints(block.text, sys.executable, "-u", "main.py", folder=tmp_path)


def install_the_client(folder: Path) -> None:
    """Install the JavaScript client into a folder, as ``npm install --install-links`` copies it."""
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    shutil.copytree(CLIENT, folder / "node_modules" / CLIENT_NAME, ignore=shutil.ignore_patterns("test"))


@pytest.mark.parametrize("block", of_kind("node", "module"), ids=str)
async def test_node(block: Snippet, server: GatewayProcess, tmp_path: Path) -> None:
    """Node runs the program."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("NOT RUN: the JavaScript in the documentation: node is not installed")
    (tmp_path / "main.js").write_text(block.code.replace(PLACE, server.base), encoding="utf-8")
    if block.kind == "module":
        install_the_client(tmp_path)
    else:
        (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    await prints(block.text, node, "main.js", folder=tmp_path)


# --- components -------------------------------------------------------------------------------------------------------


def install_the_frameworks(folder: Path) -> None:
    """Put React, Vue and the compiler beside the client, which imports them."""
    try:
        modules = components.ensure()
    except components.NotToBeHadError as error:
        pytest.skip(f"NOT RUN: {error}")
    for package in modules.iterdir():
        (folder / "node_modules" / package.name).symlink_to(package)


async def ends(*command: str | Path, folder: Path) -> str:
    """The output of a program that ends by itself."""
    async with running(*command, folder=folder) as process, asyncio.timeout(HANG):
        out, err = await process.communicate()
    assert process.returncode == 0, (out, err)
    return out.decode()


@pytest.mark.parametrize("kind", ["react", "vue"])
async def test_components(kind: str, server: GatewayProcess, tmp_path: Path) -> None:
    """The component shows that it connects, then the keys; after its end no connection is left."""
    (block,) = of_kind(kind)
    (tmp_path / f"App.{block.language}").write_text(block.code.replace(PLACE, server.base), encoding="utf-8")
    install_the_client(tmp_path)
    install_the_frameworks(tmp_path)
    main = {"react": "react_main.jsx", "vue": "vue_main.js"}[kind]
    shutil.copy(components.SOURCES / main, tmp_path)
    if kind == "react":
        esbuild = ("node_modules/.bin/esbuild", main, "--bundle", "--platform=node", "--log-level=warning")
        await ends(*esbuild, "--jsx=automatic", "--outfile=main.cjs", folder=tmp_path)
        main = "main.cjs"
    first, last = (await ends("node", main, folder=tmp_path)).splitlines()
    assert first == "true"
    assert block.text in last


# --- a browser --------------------------------------------------------------------------------------------------------


class Files(SimpleHTTPRequestHandler):
    """A server of files that says nothing."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder, served as ``python3 -m http.server`` serves it: the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


async def test_a_browser(server: GatewayProcess, tmp_path: Path) -> None:
    """A browser's console runs the blocks for the console, and a browser shows the page to paste."""
    if not await asyncio.to_thread(CHROMIUM.exists):
        pytest.skip(f"NOT RUN: chromium is not at {CHROMIUM}")
    (block,) = of_kind("page")
    (tmp_path / "index.html").write_text(block.code.replace(PLACE, server.base), encoding="utf-8")
    shutil.copy(CLIENT / "etcd-watch-client.js", tmp_path)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = await browser.new_page()
        with served(tmp_path) as url:
            await page.goto(url)
            await expect(page.locator("#state")).to_contain_text("live", timeout=HANG * 1000)
            await expect(page.locator("#keys")).to_contain_text(block.text, timeout=HANG * 1000)
        said: asyncio.Queue[str] = asyncio.Queue()
        page.on("console", lambda message: said.put_nowait(message.text))
        for console in of_kind("console"):
            await page.goto(f"{server.base}/docs")  # a page of the gateway that follows nothing itself
            await page.evaluate(f"() => {{ {console.code.replace(PLACE, server.base)} }}")
            async with asyncio.timeout(HANG):
                while console.text not in await said.get():
                    pass
        await browser.close()
