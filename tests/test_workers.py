"""The workers that run the tests (tests/support/workers.py): nothing that a test has to say is lost.

And the fork server (tests/support/forkserver.py), which starts what they test.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from app import __version__
from tests.support import forkserver
from tests.support.workers import FORKS

# No other plugin: each takes its time to be imported.
ALONE = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
TOP = Path(__file__).parents[1]
TESTS = """
import os, signal, time, warnings
import pytest

@pytest.fixture(scope="module")
def shared():
    yield
    raise OSError("a teardown of the module")

@pytest.fixture
def broken():
    yield
    raise OSError("a teardown")

@pytest.mark.parametrize("number", range(30))
def test_passes(number, tmp_path):
    assert tmp_path.exists()

def test_fails():
    print("said before")
    assert [1, 2] == [1, 3]

def test_skips():
    pytest.skip("NOT RUN: a reason")

def test_dies():
    os.kill(os.getpid(), signal.SIGKILL)

def test_after():
    pass

def test_teardown(broken):
    pass

def test_module(shared):
    pass

def test_unknown(nothing):
    pass

@pytest.mark.filterwarnings("default")
def test_warns():
    warnings.warn("a warning")
"""
SLEEPS = """
import time

def test_fails():
    assert False

def test_sleeps():
    time.sleep(600)
"""


def command(folder: Path, source: str, *options: str) -> list[str]:
    """pytest with two workers on these tests."""
    (folder / "test_it.py").write_text(source, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = process: starts a process\n", encoding="utf-8")
    plugins = ("-p", "xdist", "-p", "tests.support.workers", "-p", "no:cacheprovider")
    return [sys.executable, "-m", "pytest", "-n", "2", *plugins, f"--rootdir={folder}", *options, str(folder)]


@pytest.mark.process
@pytest.mark.skipif(not FORKS, reason="NOT RUN: outside Linux pytest-xdist runs the tests")
def test_every_result_arrives(tmp_path: Path) -> None:
    """What passes, fails, skips, warns, or ends its process is counted once, and said."""
    report = tmp_path / "report.xml"
    done = subprocess.run(
        command(tmp_path, TESTS, "-ra", f"--junitxml={report}"),
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
        env=ALONE,
    )

    assert done.returncode == 1
    assert "2 workers\n" in done.stdout
    assert "2 failed, 34 passed, 1 skipped, 1 warning, 3 errors" in done.stdout
    for words in (
        "the worker died with -9 while it ran this test",
        "assert [1, 2] == [1, 3]\n",
        "said before",
        "E       OSError: a teardown\n",
        "E       OSError: a teardown of the module\n",
        "fixture 'nothing' not found",
        "Warning: a warning",
        "NOT RUN: a reason\n",
    ):
        assert words in done.stdout
    [skipped] = ET.parse(report).getroot().iter("skipped")  # noqa: S314  # written by pytest a moment ago
    assert skipped.get("message") == "NOT RUN: a reason"  # what tools/tests.py looks for


@pytest.mark.process
@pytest.mark.skipif(not FORKS, reason="NOT RUN: outside Linux pytest-xdist runs the tests")
def test_the_first_failure_ends_the_run(tmp_path: Path) -> None:
    """With ``-x`` no worker goes on, not even with a test that has begun."""
    (tmp_path / "test_other.py").write_text(SLEEPS.replace("assert False", "pass"), encoding="utf-8")
    done = subprocess.run(
        command(tmp_path, SLEEPS, "-x"), cwd=TOP, capture_output=True, text=True, check=False, env=ALONE
    )

    assert done.returncode == 1
    assert "1 failed" in done.stdout
    assert "stopping after 1 failures" in done.stdout


@pytest.mark.process
@pytest.mark.wall_clock
@pytest.mark.skipif(not FORKS, reason="NOT RUN: outside Linux the tests fork nothing")
async def test_the_fork_server_outlives_who_has_asked_it() -> None:
    """A hub that is killed while it asks for a worker reads no pid; all later tests need the server."""
    output, output_in = os.pipe()
    unread, status_in = os.pipe()
    os.close(unread)
    order = json.dumps([["app", "version"], dict(os.environ), True])
    forkserver._server(False).send(order.encode(), output_in, status_in)
    for descriptor in (output_in, status_in):
        os.close(descriptor)
    with os.fdopen(output, "rb") as said:
        assert await asyncio.to_thread(said.read) == f"{__version__}\n".encode()
    process = await forkserver.spawn("app", "version", env=os.environ, merged=True)

    assert await process.wait() == 0
