"""Runs the tests of those parts of the page that need no browser, tests/page/**/*.test.mjs, in Node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.waiting import HANG

FOLDER = Path(__file__).parent


def test_the_model() -> None:
    """Every test passes, and there are some."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("NOT RUN: node is not installed (apt-get install -y --no-install-recommends nodejs)")
    tests = sorted(FOLDER.rglob("*.test.mjs"))
    done = subprocess.run([node, "--test", *tests], check=False, capture_output=True, text=True, timeout=HANG)

    assert done.returncode == 0, done.stdout
    assert len(tests) >= 10
