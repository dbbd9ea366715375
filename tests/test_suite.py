"""Rules that the tests follow: they are a map of the source, and none depends on how fast the machine is."""

from __future__ import annotations

import ast
import asyncio
import gc
import re
import socket
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import pytest

import app
from app.dev.etcd import PortTakenError, free_ports
from tests.support.connections import TURNS, serving
from tests.support.held_ports import HeldPorts
from tests.support.measured import REPEATING
from tests.support.schedule import FIRST, SOURCES, TOGETHER
from tools.sources import parse, tree_of
from tools.tests import MARK, compare_with_floors

TESTS = Path(__file__).parent
APP = Path(app.__file__).parent
# Files of app/ without a test file of their own name, and where their tests are instead. The table may only get
# shorter.
TESTED_ELSEWHERE = {
    "__init__.py": "it sets variables before gRPC reads them: etcd/test_endpoints.py, integration/test_addresses.py",
    "core/readable_history.py": "a protocol",
    "core/timestamps.py": "a single format: api/test_feeds.py",
    "ports.py": "protocols; `spawn` in test_supervision.py",
    "watch/limits.py": "values without logic",
    "watch/statistics.py": "values without logic",
}
# Seconds: HANG is the timeout to use; a literal timeout of at least LEAST does no harm.
LEAST = 30
CLOCKS = {"monotonic", "perf_counter", "time", "process_time"}
# A test may read a clock for a lower bound of a measured time, or for how long something continues. Each entry states
# why a slow machine does not fail there.
CLOCKS_ALLOWED = {
    "server/test_protocol.py": "a lower bound: a connection is kept as long as the client was told",
    "access/test_access.py": "a lower bound: the stream is held for its retry delay",
    "access/test_living.py": "the time at which a token is made, and an expiry that lies ahead or has passed",
    "access/test_modes.py": "the time at which a token is made; the tokens live for ten minutes",
    "clients/test_access.py": "an expiry that lies ahead",
    "test_tls.py": "the time at which certificates are made; they live for a day",
    "tier/test_hub.py": "the clock of the code under test, passed on",
    "tier/scripted.py": "the clock of the code under test, passed on",
    "watch/world.py": "the clock of the code under test, passed on",
    "workers/test_files.py": "the time at which certificates and a token are made",
    "cases/test_ahead.py": "an upper bound of Ranges that grows with the time that passed",
    "consistency": "the torture runs for a given time, and its report states delays",
    "examples/fake_gateway.py": "the time of a client's request, for a lower bound",
    "examples/test_mirrors.py": "a lower bound: a client comes back after its retry delay",
    "integration/test_cut_off.py": "how long it continues, and a timeout that only a hang reaches",
    "integration/test_rollout.py": "a lower bound: the streams come no faster than the drain's pace",
    "etcd/test_quorum.py": "the clock of the code under test, passed on",
    "etcd/test_stream.py": "the clock of the code under test, passed on",
    "etcd/test_users.py": "an upper bound of logins that grows with the time that passed",
    "slow_readers/test_lag.py": "a lower bound: the time at which the reader fell behind",
    "slow_readers/clients.py": "a slow client sleeps",
    "soak/soak.py": "how long a soak continues",
    "support/embedded.py": "a timeout that only a hang reaches",
    "support/secure.py": "a timeout that only a hang reaches",
    "support/upstream.py": "the clock of the code under test, passed on",
    "deploy/test_image.py": "a timeout that only a hang reaches",
}
# A timeout below HANG may only be for an event that must not happen, or for one try of several.
TIMEOUTS_ALLOWED = {
    "access/test_fetch.py": "a server that never answers, however long a client waits",
    "clients/test_mirror.py": "a write under faults is aborted and retried",
    "consistency": "an operation under faults is aborted and retried",
    "matrix/test_requests.py": "for how long a stream without `synced` is followed",
    "matrix/test_shell.py": "no byte may come within this time",
    "soak/soak.py": "a client that leaves",
    "examples/test_mirrors.py": "no request may come within this time",
    "workers/test_team.py": "a stopped process never answers, however long a client waits",
    "integration/test_rollout.py": "the pace of a loop",
    "test_memory.py": "seconds of a virtual clock",
    "test_dial.py": "the time of a connection, which does not count during the lookup",
    "support/embedded.py": "one try of several",
    "support/secure.py": "one try of several",
    "dev/test_embedded.py": "a frozen etcd never answers, however long a client waits",
}


# Tests that skip themselves because there is nothing to test.
NOT_FOR_ALL = {
    "contract/test_etcd.py",  # a flag that etcd 3.4 does not have
    "dev/test_embedded.py",  # where setpriv is missing, the watchdog does what the test is about
    "etcd/test_users.py",  # another one
}


# What a file must contain to be worth parsing, which takes most of the time.
WORDS = {
    "clocks": [re.compile(rf"\.({'|'.join(CLOCKS)})\b")],
    "timeouts": [
        re.compile(r"[(,=]\s*\d+(\.\d+)?\s*[,)]|^[A-Z_]+ = \d+(\.\d+)?$", re.MULTILINE),
        re.compile(
            r"\b(timeout|within)\s*=\s*[(.\dA-Z]|\b(timeout|next_event)\(\s*[(.\dA-Z]|\b(wait_for|eventually)\("
        ),
    ],
}


def reads_a_clock(node: ast.AST) -> bool:
    """Whether *node* is ``time.monotonic()``, ``loop.time()`` or the like, called or passed on."""
    return isinstance(node, ast.Attribute) and node.attr in CLOCKS and isinstance(node.ctx, ast.Load)


def short_timeout(node: ast.AST, constants: Mapping[str, object] = MappingProxyType({})) -> bool:
    """Whether *node* gives a number below LEAST as a timeout, by name or to ``asyncio.timeout`` and ``wait_for``.

    The number may also be one of the module's *constants*.
    """
    if isinstance(node, ast.keyword):
        given = node.value if node.arg in ("timeout", "within") else None
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        at = {"timeout": 0, "wait_for": 1, "next_event": 0, "eventually": 1}.get(name)
        given = node.args[at] if at is not None and len(node.args) > at else None
    else:
        return False
    value = constants.get(given.id) if isinstance(given, ast.Name) else getattr(given, "value", None)
    return isinstance(value, int | float) and value < LEAST


def constants_of(module: ast.Module) -> dict[str, object]:
    """The names that a module gives to a constant."""
    return {
        target.id: node.value.value
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


@cache
def found() -> dict[str, set[str]]:
    """The files of the tests, except this one, that contain each kind of node."""
    files: dict[str, set[str]] = {kind: set() for kind in WORDS}
    for path in TESTS.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        kinds = {kind for kind, words in WORDS.items() if all(one.search(text) for one in words)}
        if path == Path(__file__) or not kinds:
            continue
        module = parse(path)
        constants = constants_of(module)
        for node in ast.walk(module):
            if "clocks" in kinds and reads_a_clock(node):
                files["clocks"].add(path.relative_to(TESTS).as_posix())
            if "timeouts" in kinds and short_timeout(node, constants):
                files["timeouts"].add(path.relative_to(TESTS).as_posix())
    return files


@pytest.mark.parametrize(("kind", "allowed"), [("clocks", CLOCKS_ALLOWED), ("timeouts", TIMEOUTS_ALLOWED)])
def test_no_test_depends_on_how_fast_the_machine_is(kind: str, allowed: dict[str, str]) -> None:
    """Decide questions of time in the core, with a given clock; wait for conditions, with HANG; or give the reason."""
    files = found()[kind]
    named = {
        name: next((entry for entry in allowed if name == entry or name.startswith(f"{entry}/")), "") for name in files
    }

    assert {name for name, entry in named.items() if not entry} == set()
    assert set(allowed) == set(named.values()), "the table has an entry that no file needs any more"


def test_no_property_has_a_number_of_examples_of_its_own() -> None:
    """``make test`` tries few examples of each property, and ``make long`` many (tests/support/size.py)."""
    number = re.compile(r"max_examples=\d")

    assert [path.name for path in TESTS.rglob("*.py") if number.search(path.read_text(encoding="utf-8"))] == []


def test_no_test_unfreezes() -> None:
    """tests/conftest.py freezes a million objects. After ``gc.unfreeze`` each collection visits them, for 0.3 s."""
    unfreezes = re.compile(r"\bgc\.unfreeze\(")

    assert [path.name for path in TESTS.rglob("*.py") if unfreezes.search(path.read_text(encoding="utf-8"))] == []


def skips(module: ast.Module) -> Iterator[str]:
    """The reasons of ``pytest.skip`` and ``skipif``, as they are written there: of an f-string, its beginning."""
    for node in ast.walk(module):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        given = node.args[0] if node.func.attr == "skip" and node.args else None
        if node.func.attr == "skipif":
            given = next(keyword.value for keyword in node.keywords if keyword.arg == "reason")
        if isinstance(given, ast.JoinedStr):
            given = given.values[0]
        if isinstance(given, ast.Constant):
            yield str(given.value)


def test_no_test_skips_silently() -> None:
    """``make test`` ends with the reasons that begin with MARK. The others do not apply to an etcd, or elsewhere."""
    silent = {
        path.relative_to(TESTS).as_posix(): reason
        for path in TESTS.rglob("*.py")
        if "pytest.skip(" in (text := path.read_text(encoding="utf-8")) or "skipif(" in text
        for reason in skips(parse(path))
        if not reason.startswith(MARK)
    }

    assert set(silent) == NOT_FOR_ALL, silent


def cannot_fail(node: ast.Assert) -> bool:
    """Whether an assertion is always true: of a constant, or of one that ``or`` adds after a comparison."""
    found = node.test.values if isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.Or) else [node.test]
    return any(
        (isinstance(one, ast.List | ast.Tuple | ast.Set) and bool(one.elts))
        or (isinstance(one, ast.Dict) and bool(one.keys))
        or (isinstance(one, ast.Constant) and bool(one.value))
        or isinstance(one, ast.GeneratorExp | ast.Lambda)
        for one in found
    )


@pytest.mark.parametrize(
    ("line", "always"),
    [
        ("assert a == b or [0, 0]", True),
        ("assert (a, b)", True),
        ("assert (x for x in y)", True),
        ("assert a == (b or [0, 0])", False),
        ("assert a or b", False),
        ("assert []", False),
    ],
)
def test_an_assertion_that_cannot_fail_is_found(line: str, always: bool) -> None:
    """An ``or`` binds more loosely than a comparison."""
    (node,) = ast.parse(line).body
    assert isinstance(node, ast.Assert)
    assert cannot_fail(node) == always


def test_every_assertion_can_fail() -> None:
    """A property of merged metrics was compared with nothing for as long as it was there."""
    # Ruff finds an assertion of a tuple.
    worth_parsing = re.compile(r"\bor\s+[\[{]|^ +assert .*\bor [\"'\d]", re.MULTILINE)
    found = [
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path in TESTS.rglob("*.py")
        if worth_parsing.search(path.read_text(encoding="utf-8"))
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Assert) and cannot_fail(node)
    ]

    assert found == []


def mirror_of(source: Path) -> Path:
    """The test file of a file of ``app/``: ``app/core/log.py`` has tests/core/test_log.py."""
    return TESTS / source.parent.relative_to(APP) / f"test_{source.stem.strip('_')}.py"


def holds_code(source: Path) -> bool:
    """Whether *source* has more than a docstring; most ``__init__.py`` do not."""
    return len(tree_of(source).body) > 1


def test_every_source_file_has_a_test_file() -> None:
    """A test file is found by the name of its source file; the table has exactly the exceptions."""
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
        ("asyncio.timeout(SOON)", "timeout"),
        ("await eventually(done)", ""),
        ("asyncio.timeout(HANG)", ""),
        ("run(timeout=600)", ""),
    ],
)
def test_they_are_found(line: str, kind: str) -> None:
    """Each kind is found in a line of code."""
    text = f"SOON = 5\nasync def test():\n    {line}"
    module = ast.parse(text)
    nodes = list(ast.walk(module))
    assert kind == "" or all(one.search(text) for one in WORDS[f"{kind}s"])
    assert any(map(reads_a_clock, nodes)) == (kind == "clock")
    assert any(short_timeout(node, constants_of(module)) for node in nodes) == (kind == "timeout")


@pytest.mark.parametrize("prefix", sorted({*FIRST, *SOURCES, *TOGETHER, *(f"tests/{name}" for name in REPEATING)}))
def test_what_is_named_is_there(prefix: str) -> None:
    """A renamed file would silently lose its place in the schedule, or be measured."""
    path, _, name = prefix.partition("::")
    files = list(TESTS.parent.glob(f"{path.rstrip('/')}*"))

    assert files
    assert not name or f"def {name}(" in files[0].read_text(encoding="utf-8")


def counted(branches: int, statements: int = 100) -> dict[str, object]:
    """A file of coverage.py's report, with these branches and statements reached, of 100 each."""
    counts = {"covered_branches": branches, "num_branches": 100, "covered_lines": statements, "num_statements": 100}
    return {"summary": counts}


@pytest.mark.parametrize(
    ("core", "other", "below"),
    [
        (counted(98), counted(88), []),
        (counted(97), counted(100), ["app/core/ branches"]),
        (counted(98), counted(87), ["app/ branches"]),
        (counted(100, 97), counted(100), ["app/core/ statements"]),
    ],
)
def test_a_floor_holds_branches_alone(core: dict[str, object], other: dict[str, object], below: list[str]) -> None:
    """All statements reached do not make up for a branch that is not: coverage.py's own total counts both together."""
    found = list(compare_with_floors({"app/core/a.py": core, "app/b.py": other}))

    assert len(found) == 4
    failed = [re.sub(r": \d+ of \d+ (\w+), .*", r" \1", line) for reached, line in found if not reached]
    assert failed == below


async def _read_all(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.mark.parametrize("turns", range(2 * TURNS))
async def test_a_server_leaves_no_connection(turns: int) -> None:
    """Whenever it ends: before, while and after a connection is accepted. A warning of the collector fails this."""
    async with serving(_read_all) as port:
        with socket.create_connection(("127.0.0.1", port)):
            for _ in range(turns):
                await asyncio.sleep(0)
    gc.collect()


def test_every_server_leaves_no_connection() -> None:
    """asyncio's ``start_server`` and ``start_unix_server`` get their connections from ``Connections``."""
    starts = re.compile(r"asyncio\.start_(unix_)?server\(\s*(\S+)")
    found = [starts.findall(path.read_text(encoding="utf-8")) for path in TESTS.rglob("*.py")]
    assert {taken for starts in found for _, taken in starts} == {"connections.accept,", "self._connections.accept,"}


def test_a_port_is_held_for_a_server_that_is_down() -> None:
    """Nobody else is given it, and the server may come back."""
    held = HeldPorts()
    (port,) = free_ports(1)
    held.hold(port)
    try:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):  # as ``free_ports`` looks
            other.bind(("127.0.0.1", port))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        for _ in range(2):
            with socket.create_server(("127.0.0.1", port)) as server:  # sets SO_REUSEADDR
                with socket.create_connection(("127.0.0.1", port)):
                    server.accept()[0].close()
                with pytest.raises(PortTakenError):
                    HeldPorts().hold(port)
    finally:
        held.close()
