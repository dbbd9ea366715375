"""Runs pytest with every available etcd, and mypy beside it. Prints at the end what was not run.

Usage: ``python tools/tests.py [pytest arguments]``, from the top of the checkout, or ``make test``.
Without arguments it runs every test, measures the coverage of ``app/``, and fails below the floors.
``BUSY=4`` in the environment runs that many busy loops beside the tests: no test may fail because a machine is slow.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CACHE = Path(".cache")
ETCDS = Path("tools/etcds.py")
MARK = "NOT RUN:"
# The percentage of branches, and of statements, that the tests must reach (see coverage in pyproject.toml), by folder.
FLOORS = {"app/core/": 98, "app/": 93}
COUNTS = {"branches": ("covered_branches", "num_branches"), "statements": ("covered_lines", "num_statements")}


def cores() -> int:
    """Return how many cores this process may use. A container's quota counts, not the number of the host's cores."""
    if sys.platform == "linux":
        number = len(os.sched_getaffinity(0))
        try:
            quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
            number = min(number, max(1, int(quota) // int(period)))
        except (OSError, ValueError):
            pass
        return number
    return os.cpu_count() or 1


def other_etcds() -> tuple[str, list[str]]:
    """Return ``ETCD_BIN_DIRS`` for the tests, and a line for each etcd that is not available."""
    given = os.environ.get("ETCD_BIN_DIRS", "")
    if given or not ETCDS.exists():
        return given, []
    done = subprocess.run(  # noqa: S603  # a script of this folder
        [sys.executable, str(ETCDS), str(CACHE / "etcd")], check=False, capture_output=True, text=True
    )
    sys.stderr.write(done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith(MARK)]
    if done.returncode:
        lines.append(f"{MARK} etcds besides the embedded etcd: {ETCDS} failed with {done.returncode}")
        return "", lines
    return done.stdout.strip(), lines


def skipped(report: Path) -> Iterator[str]:
    """Yield the reasons of the tests that skipped themselves as NOT RUN."""
    if not report.exists():
        return
    for element in ET.parse(report).getroot().iter("skipped"):  # noqa: S314  # written by pytest a moment ago
        reason = element.get("message", "")
        if reason.startswith(MARK):
            yield reason


def coverage(*arguments: str) -> int:
    """Run coverage.py and return its exit status."""
    return subprocess.run([sys.executable, "-m", "coverage", *arguments], check=False).returncode  # noqa: S603  # this interpreter


def compare_with_floors(files: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    """Yield whether each floor is reached, with a line about it. *files*: of coverage.py's JSON report."""
    for folder, floor in FLOORS.items():
        summaries = [file["summary"] for name, file in files.items() if name.startswith(folder)]
        for what, (reached, all_of_them) in COUNTS.items():
            covered, number = (sum(summary[key] for summary in summaries) for key in (reached, all_of_them))
            percentage = 100 * covered / number
            line = f"{folder}: {covered} of {number} {what}, {percentage:.2f} % (must be at least {floor} %)"
            yield percentage >= floor, line


def below_a_floor() -> int:
    """Print the lines and branches that no test reached. Return 0 only if every floor is reached."""
    sys.stdout.write("\nCoverage:\n")
    sys.stdout.flush()
    report = CACHE / "coverage.json"
    for command in (("combine", "--quiet"), ("report",), ("json", "--quiet", "-o", str(report))):
        if status := coverage(*command):
            return status
    failed = 0
    for reached, line in compare_with_floors(json.loads(report.read_text(encoding="utf-8"))["files"]):
        sys.stdout.write(f"{line}\n" if reached else f"{line}: BELOW\n")
        failed |= not reached
    return int(failed)


@contextlib.contextmanager
def types() -> Iterator[Callable[[], int]]:
    """Run `make types` beside the tests, on the CPU that they leave idle. The function prints the result, and returns
    the exit status.
    """
    command = ["make", "--no-print-directory", "--silent", "types"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as mypy:  # noqa: S603

        def result() -> int:
            sys.stdout.write(f"\nmypy: {mypy.communicate()[0]}")
            return mypy.returncode

        try:
            yield result
        finally:
            mypy.terminate()  # make ends mypy as well


# The loop ends when this process ends, however that happens.
LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): sum(range(10_000))"


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """Run *loops* processes that use as much CPU as they get, until the context ends."""
    command = [sys.executable, "-c", LOOP, str(os.getpid())]
    running = [subprocess.Popen(command) for _ in range(loops)]  # noqa: S603  # this interpreter
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def run(arguments: list[str], report: Path, folders: str, *, measured: bool) -> int:
    """Run pytest. Return its exit status."""
    # Four workers for each core: three were busy for 94 % of a run, and the cores for 76 %, because tests wait.
    workers = ("-n", str(min(16, 4 * cores())))
    slowest = ("--durations=20", "--durations-min=1")
    tracing = ("-m", "coverage", "run") if measured else ()
    return subprocess.run(  # noqa: S603  # this interpreter
        [sys.executable, *tracing, "-m", "pytest", *workers, *slowest, f"--junitxml={report}", *arguments],
        check=False, env={**os.environ, "ETCD_BIN_DIRS": folders},
    ).returncode  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run mypy and the tests. Return pytest's exit status or, if the tests pass, that of the coverage check or mypy."""
    CACHE.mkdir(exist_ok=True)
    report = CACHE / "tests.xml"
    report.unlink(missing_ok=True)
    folders, not_run = other_etcds()
    whole = not arguments
    with types() as checked_types:
        if whole:
            coverage("erase")  # remove the data of an interrupted run
        with busy(int(os.environ.get("BUSY") or 0)):
            status = run(arguments, report, folders, measured=whole)
        if whole and not status:
            status = below_a_floor()
        status = checked_types() or status
    system = CACHE / "not-run"
    if system.exists():
        not_run += system.read_text(encoding="utf-8").splitlines()
    for line in dict.fromkeys([*not_run, *skipped(report)]):
        sys.stdout.write(f"{line}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
