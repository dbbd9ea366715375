"""What the tests themselves keep to: they are a map of the source, and none depends on how fast the machine is."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

import app
from tests.support.schedule import FIRST, TOGETHER

TESTS = Path(__file__).parent
APP = Path(app.__file__).parent
# Files of app/ without a test file of their own name, and where their tests are instead. It only gets shorter.
TESTED_ELSEWHERE = {
    "__init__.py": "it sets what gRPC reads, before gRPC: etcd/test_endpoints.py, integration/test_addresses.py",
    "core/timestamps.py": "one format: api/test_feeds.py",
    "etcd/statistics.py": "only values",
    "ports.py": "protocols; `spawn` in test_supervision.py",
    "watch/limits.py": "only values",
    "watch/statistics.py": "only values",
}
# Seconds: HANG is the time-out to use, and what is above this does no harm.
LEAST = 30
CLOCKS = {"monotonic", "perf_counter", "time", "process_time"}
# A clock may be read to bound what is measured from below, or to say for how long something goes on. Each with why a
# slow machine does not fail there.
CLOCKS_ALLOWED = {
    "server/test_protocol.py": "a connection is kept no shorter than it is said to be",
    "access/test_access.py": "no less than the time that a client is told to stay away",
    "watch/world.py": "the clock of what is under test, handed on",
    "cases/test_ahead.py": "no more Ranges than one a second of the time that passed",
    "consistency": "the torture is about time: it runs for a while, and says in the report how late anything was",
    "examples/fake_gateway.py": "when a client came, for what is bounded from below",
    "examples/test_mirrors.py": "no earlier than it was told to come back",
    "integration/test_cut_off.py": "how long it goes on, and a time-out that only a hang reaches",
    "integration/test_rollout.py": "no faster than the drain's pace",
    "etcd/test_quorum.py": "the clock of what is under test, handed on",
    "etcd/test_users.py": "no more logins than tokens that have had their time",
    "slow_readers/test_lag.py": "no earlier than the reader fell behind",
    "slow_readers/clients.py": "a client that is to be slow sleeps",
    "soak/soak.py": "how long a soak goes on",
    "support/embedded.py": "a time-out that only a hang reaches",
    "support/secure.py": "a time-out that only a hang reaches",
    "deploy/test_image.py": "a time-out that only a hang reaches",
}
# A time-out below HANG may only be of what must not happen, or of one try of several.
TIMEOUTS_ALLOWED = {
    "consistency": "an operation under faults is given up, and tried again",
    "soak/soak.py": "a client that leaves",
    "examples/test_mirrors.py": "nothing must come within it",
    "integration/test_rollout.py": "the pace of a loop",
    "support/embedded.py": "one try of several",
    "support/secure.py": "one try of several",
    "dev/test_embedded.py": "a frozen etcd answers nobody, however long one waits",
}


@functools.cache
def sources() -> tuple[tuple[str, ast.Module], ...]:
    """Every file here but this one."""
    return tuple(
        (path.relative_to(TESTS).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted(TESTS.rglob("*.py"))
        if path != Path(__file__)
    )


def reads_a_clock(node: ast.AST) -> bool:
    """``time.monotonic()``, ``loop.time()`` and the like, called or handed on."""
    return isinstance(node, ast.Attribute) and node.attr in CLOCKS and isinstance(node.ctx, ast.Load)


def short_timeout(node: ast.AST) -> bool:
    """A number below LEAST that is given as a time-out, by name or to ``asyncio.timeout`` and ``wait_for``."""
    if isinstance(node, ast.keyword):
        given = node.value if node.arg in ("timeout", "within") else None
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        at = {"timeout": 0, "wait_for": 1, "next_event": 0, "eventually": 1}.get(name)
        given = node.args[at] if at is not None and len(node.args) > at else None
    else:
        return False
    return isinstance(given, ast.Constant) and isinstance(given.value, int | float) and given.value < LEAST


def found(kind: str) -> set[str]:
    """Where it is: ``file``, each once."""
    check = {"clocks": reads_a_clock, "timeouts": short_timeout}[kind]
    return {name for name, tree in sources() if any(check(node) for node in ast.walk(tree))}


@pytest.mark.parametrize(("kind", "allowed"), [("clocks", CLOCKS_ALLOWED), ("timeouts", TIMEOUTS_ALLOWED)])
def test_no_test_depends_on_how_fast_the_machine_is(kind: str, allowed: dict[str, str]) -> None:
    """Decide what is about time in the core, with a given clock; wait for conditions, with HANG; or say why not."""
    files = found(kind)
    named = {
        name: next((entry for entry in allowed if name == entry or name.startswith(f"{entry}/")), "") for name in files
    }

    assert {name for name, entry in named.items() if not entry} == set()
    assert set(allowed) == set(named.values()), "what is not there any more needs no reason"


def mirror_of(source: Path) -> Path:
    """Where the tests of a file of ``app/`` stand: ``app/core/log.py`` has tests/core/test_log.py."""
    return TESTS / source.parent.relative_to(APP) / f"test_{source.stem.strip('_')}.py"


def holds_code(source: Path) -> bool:
    """Whether it has more than a docstring, as most ``__init__.py`` do not."""
    return len(ast.parse(source.read_text(encoding="utf-8")).body) > 1


def test_every_source_file_has_a_test_file() -> None:
    """Found by its name; the table has the exceptions, and none that is not needed."""
    sources = [path for path in APP.rglob("*.py") if holds_code(path)]
    without = {path.relative_to(APP).as_posix() for path in sources if not mirror_of(path).exists()}

    assert without == set(TESTED_ELSEWHERE)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("assert time.monotonic() - started < 4", "clock"),
        ("took = loop.time() - began", "clock"),
        ("await eventually(done, timeout=5)", "timeout"),
        ("await eventually(done, 5)", "timeout"),
        ("asyncio.timeout(10)", "timeout"),
        ("await asyncio.wait_for(x, 3)", "timeout"),
        ("await stream.next_event(2.5)", "timeout"),
        ("await eventually(done)", ""),
        ("asyncio.timeout(HANG)", ""),
        ("run(timeout=600)", ""),
    ],
)
def test_they_are_found(line: str, kind: str) -> None:
    """Each of the kinds, in a line of its own."""
    nodes = list(ast.walk(ast.parse(f"async def test():\n    {line}")))
    assert any(map(reads_a_clock, nodes)) == (kind == "clock")
    assert any(map(short_timeout, nodes)) == (kind == "timeout")


@pytest.mark.parametrize("prefix", sorted({*FIRST, *TOGETHER}))
def test_what_is_scheduled_is_there(prefix: str) -> None:
    """A file that is renamed would lose its place without a word."""
    path, _, name = prefix.partition("::")
    found = TESTS.parent / path

    assert found.exists()
    assert not name or f"def {name}(" in found.read_text(encoding="utf-8")
