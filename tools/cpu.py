"""A plugin of pytest that prints how much CPU each test file and each test takes, with all processes that they start.

Usage: ``python -m pytest -p tools.cpu [pytest arguments]``, or ``make test ARGS='-p tools.cpu'``; as root on Linux.
Each worker (tests/support/workers.py) is a control group with all that it starts: the kernel adds up their CPU, also
that of a process whose parent has ended. What a shared fixture takes counts for the test that starts or ends it.
"""

from __future__ import annotations

import atexit
import collections
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Version 1 of control groups, and version 2.
ROOTS = (Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup"))
PARENT = "TESTS_CPU_GROUP"
LABEL = "cpu"
SHOWN = 40


class Group:
    """A control group with this process and all that it starts from now on."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        roots = (Path(os.environ[PARENT]),) if PARENT in os.environ else ROOTS
        self._root = next(root for root in roots if (root / "cgroup.procs").exists())
        self._folder = self._root / f"tests-{self.pid}"
        self._folder.mkdir()
        (self._folder / "cgroup.procs").write_text(str(self.pid))
        os.environ.setdefault(PARENT, str(self._folder))  # the workers' groups are inside this one

    def seconds(self) -> float:
        """The CPU seconds of the group since it was made, with those of the groups inside."""
        nanoseconds = self._folder / "cpuacct.usage"
        if nanoseconds.exists():
            return int(nanoseconds.read_text()) / 1e9
        words = (self._folder / "cpu.stat").read_text().split()
        return int(words[words.index("usage_usec") + 1]) / 1e6

    def leave(self) -> None:
        """Move what still runs to the group above, and remove the group."""
        for process in (self._folder / "cgroup.procs").read_text().split():
            (self._root / "cgroup.procs").write_text(process)
        self._folder.rmdir()


GROUP = pytest.StashKey[Group]()


def pytest_configure(config: pytest.Config) -> None:
    """Count from here: the collection and the workers' start are in the sum, too."""
    config.stash[GROUP] = group = Group()
    config.add_cleanup(group.leave)


def group_of(config: pytest.Config) -> Group:
    """This process's group; a worker makes its own at its first test."""
    if config.stash[GROUP].pid != os.getpid():
        config.stash[GROUP] = group = Group()
        atexit.register(group.leave)
    return config.stash[GROUP]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Note what the group has taken before the test."""
    item.user_properties.append((LABEL, group_of(item.config).seconds()))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Let the report say what the test has taken so far. It carries that from the worker to the terminal."""
    report: pytest.TestReport = yield  # type: ignore[assignment]  # pytest sends the report
    before = next(value for name, value in item.user_properties if name == LABEL)
    report.user_properties = [(LABEL, group_of(item.config).seconds() - float(str(before)))]
    return report  # type: ignore[return-value]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the sum, and the files and the tests that take most."""
    tests: dict[str, float] = collections.defaultdict(float)
    files: dict[str, float] = collections.defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds = next((float(str(value)) for name, value in report.user_properties if name == LABEL), 0.0)
                tests[report.nodeid] = max(tests[report.nodeid], seconds)
    for name, seconds in tests.items():
        files[name.partition("::")[0]] += seconds
    whole = config.stash[GROUP].seconds()
    terminalreporter.section(f"CPU: {whole:.0f} s, of which tests take {sum(tests.values()):.0f} s")
    for table in (files, tests):
        for name, seconds in sorted(table.items(), key=lambda pair: -pair[1])[:SHOWN]:
            terminalreporter.write_line(f"{seconds:8.2f}  {name}")
        terminalreporter.write_line("")
