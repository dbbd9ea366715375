"""The memory limit: of both versions of control groups, and of the groups around; and the warning at the start."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

import pytest

from app import memory_limit
from app.memory_limit import MIB, needed, warn_of_small_limit
from app.settings import load

pytestmark = pytest.mark.usefixtures("clean_environment")

# What version 1 reports without a limit.
NO_LIMIT = "9223372036854771712\n"


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "268435456\n"}, 256 * MIB),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "1048576\n"}, MIB),
        ("0::/a/b\n", {"a/b/memory.max": "4096\n", "a/memory.max": "1048576\n"}, 4096),
        ("1:name=systemd:/x\n4:cpu,memory:/p/q\n", {"memory/p/q/memory.limit_in_bytes": "8192\n"}, 8192),
        ("4:memory:/docker/1\n", {"memory/memory.limit_in_bytes": "8192\n"}, 8192),  # the host's name in a container
        ("4:memory:/p\n0::/\n", {"memory/p/memory.limit_in_bytes": NO_LIMIT, "memory.max": "9\n"}, 9),
        ("0::/a\xff\x85b\n", {"memory.max": "5\n"}, 5),  # a group's name may have any bytes but a line end
        ("0::/\n", {}, None),
        ("", {}, None),
        (None, {}, None),
    ],
)
def test_the_limit_of_the_control_groups(
    own: str | None, files: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    """The smallest limit counts, whichever group has it. Without control groups there is none."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("NOT RUN: limits of control groups: this process has a limit of its own (ulimit -v)")
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if own is not None:
        (tmp_path / "own").write_bytes(own.encode("latin-1"))

    assert memory_limit.memory_limit(tmp_path / "own", tmp_path / "groups") == limit


def test_what_is_needed() -> None:
    """As docs/sizing.md calculates: 425 MiB with the default; with workers the hub counts as well."""
    assert needed(256 * MIB, 1) == 425 * MIB
    assert needed(256 * MIB, 2) == 3 * 425 * MIB


@pytest.mark.parametrize(("limit", "workers", "warned"), [(424, 1, True), (425, 1, False), (425, 2, True)])
def test_a_warning_at_the_start(
    limit: int, workers: int, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning has both figures, and says what to do."""
    monkeypatch.setattr(memory_limit, "memory_limit", lambda: limit * MIB)
    with caplog.at_level(logging.WARNING, "gateway"):
        warn_of_small_limit(load({}), workers)

    said = (
        f"the memory limit is {limit} MiB, and the gateway may use {425 if workers == 1 else 1275} MiB: "
        "lower GATEWAY_MAX_FEED_BYTES, or raise the limit"
    )
    assert caplog.messages == ([said] if warned else [])
