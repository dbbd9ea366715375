"""Runs the tests of the page's model, tests/page/model/*.test.mjs, in Node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.waiting import HANG

FOLDER = Path(__file__).parent / "model"


def test_the_model() -> None:
    """Every test passes, and there are some."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("NOT RUN: node is not installed (apt-get install -y --no-install-recommends nodejs)")
    tests = sorted(FOLDER.glob("*.test.mjs"))
    done = subprocess.run([node, "--test", *tests], check=False, capture_output=True, text=True, timeout=HANG)

    assert done.returncode == 0, done.stdout
    assert len(tests) >= 10
