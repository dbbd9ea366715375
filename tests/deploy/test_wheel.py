"""The wheel, installed beside somebody else's ``app/``: the command and the module run, and ``app`` stays theirs."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import httpx
import pytest

import app
from tests.support.fake_etcd import FakeEtcd
from tests.support.gateway import GatewayProcess, environment
from tests.support.waiting import HANG

TOP = Path(app.__file__).parents[1]
PACKAGE = "etcd_watch_gateway"


class Installed:
    """A venv that has the wheel, and a working directory with somebody else's ``app/``."""

    def __init__(self, root: Path) -> None:
        self.work = root / "work"
        (self.work / "app").mkdir(parents=True)
        (self.work / "app" / "__init__.py").write_text("NAME = 'theirs'\n")
        self.venv = root / "venv"
        venv.create(self.venv, symlinks=True)
        self.site = Path(sysconfig.get_path("purelib", "venv", {"base": str(self.venv), "platbase": str(self.venv)}))
        # Dependencies without .pth files, so without the checkout: only what the wheel asks for.
        dependencies = sysconfig.get_path("purelib")
        path = os.pathsep.join([str(self.work), dependencies])
        self.environment = environment({"PYTHONPATH": path, "PYTHONWARNINGS": "error"})

    def command(self, *arguments: str) -> list[str]:
        return [str(self.venv / "bin" / "etcd-watch-gateway"), *arguments]

    def module(self, *arguments: str) -> list[str]:
        return [str(self.venv / "bin" / "python"), "-m", PACKAGE, *arguments]

    def run(self, command: list[str]) -> str:
        """Run a command; return its standard output."""
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=HANG, cwd=self.work, env=self.environment
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


@pytest.fixture(name="installed", scope="module")
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    found = Installed(tmp_path_factory.mktemp("wheel"))
    wheels = found.work.parent / "wheels"
    for command in (
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)],
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(found.venv / "bin" / "python"),
         "install", "--quiet", "--no-deps", "--no-index", "--find-links", str(wheels), "etcd-watch-gateway"],
    ):  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG, cwd=TOP)
        assert done.returncode == 0, done.stderr
    return found


def test_it_brings_one_name(installed: Installed) -> None:
    (metadata,) = (path.name for path in installed.site.glob("*.dist-info"))
    assert {path.name for path in installed.site.iterdir()} == {PACKAGE, metadata}


def test_it_brings_every_file(installed: Installed) -> None:
    """The wheel brings every file, also data such as the page."""

    def files(folder: Path) -> dict[str, bytes]:
        found = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}

    assert {"page/index.html", "page/model/tree.js"} <= set(files(TOP / "app"))
    assert files(installed.site / PACKAGE) == files(TOP / "app")


def test_the_command_runs(installed: Installed) -> None:
    assert installed.run(installed.command("--version")) == f"{app.__version__}\n"
    assert installed.run(installed.module("--version")) == f"{app.__version__}\n"
    for word in ("serve", "check", "dev"):
        text = installed.run(installed.command(word, "--help"))
        assert text.startswith(f"usage: etcd-watch-gateway {word} ")
        assert text == installed.run(installed.module(word, "--help"))


def test_it_leaves_the_other_app_alone(installed: Installed) -> None:
    """Every module of ours can be imported, and none of them uses the name ``app``."""
    code = (
        f"import pkgutil, sys, {PACKAGE}, app\n"
        f"names = [found.name for found in pkgutil.walk_packages({PACKAGE}.__path__, '{PACKAGE}.')]\n"
        "for name in names:\n"
        "    if not name.endswith('.__main__'): __import__(name)\n"
        "assert len(names) > 50\n"
        "assert not [name for name in sys.modules if name.startswith('app.')]\n"
        "print(app.NAME)\n"
    )
    assert installed.run([str(installed.venv / "bin" / "python"), "-c", code]) == "theirs\n"


@pytest.mark.parametrize("how", ["command", "module"])
async def test_it_serves(installed: Installed, how: str) -> None:
    """The gateway serves items of etcd, the page, and the API's page with its files."""
    start = {"command": installed.command, "module": installed.module}[how]
    async with FakeEtcd() as etcd:
        etcd.put(b"/svc/a", b"1")
        arguments = ("serve", "--port=0", f"--etcd={etcd.endpoint}", "--log-format=json")
        process = await asyncio.create_subprocess_exec(
            *start(*arguments), cwd=installed.work, env=installed.environment, stderr=asyncio.subprocess.PIPE
        )
        running = GatewayProcess(process)
        try:
            await running.listening()
            async with httpx.AsyncClient(base_url=running.base, trust_env=False) as client:
                item = await client.get("/v1/kv?key=/svc/a")
                pages = [(await client.get(path)).status_code for path in ("/", "/docs", "/openapi.json", "/metrics")]
        finally:
            status = await running.stop()
    assert item.json()["kv"]["value"] == "1"
    assert pages == [200] * 4
    assert (status, running.other) == (0, [])


def test_a_checkout_runs_beside_another_app(installed: Installed) -> None:
    """The command that ``make install`` writes runs this checkout's ``app`` from any folder."""
    command = shutil.which("etcd-watch-gateway", path=str(Path(sys.executable).parent))
    assert command is not None, "make install"
    done = subprocess.run(
        [command, "--version"], check=False, capture_output=True, text=True, timeout=HANG, cwd=installed.work
    )
    assert (done.returncode, done.stdout) == (0, f"{app.__version__}\n"), done.stderr
