"""The Helm chart, rendered."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import helm
from tests.support.waiting import HANG

TOP = Path(__file__).parents[2]
CHART = TOP / "helm" / "etcd-watch-gateway"
CHOICE = ("--set", "allowPrefixes={/svc/}")

Manifest = dict[str, Any]


def get_helm(major: int) -> Path:
    """The Helm of that major version; without it the test is skipped, with a message."""
    try:
        return helm.ensure(major)
    except helm.NotToBeHadError as error:
        pytest.skip(f"NOT RUN: {error}")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command at the top of the checkout."""
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG, cwd=TOP)


def template(tool: Path, *arguments: str) -> str:
    """The output of `helm template` for a release named demo."""
    done = run(tool, "template", "demo", CHART, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifests(text: str) -> dict[str, Manifest]:
    """The manifests by kind; the chart has one manifest of each kind."""
    documents = [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]  # in C: a tenth of the CPU
    found = {document["kind"]: document for document in documents}
    assert len(found) == len(documents)
    return found
