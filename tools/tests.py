"""Runs pytest with every available etcd, and prints at the end what was not run.

Usage: ``python tools/tests.py [pytest arguments]``, from the top of the checkout, or ``make test``.
Without arguments it runs every test, measures the coverage of ``app/``, and fails below the floors.
``BUSY=4`` in the environment runs that many busy loops beside the tests: no test may fail because a machine is slow.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

CACHE = Path(".cache")
ETCDS = Path("tools/etcds.py")
MARK = "NOT RUN:"
# The percentage of statements and branches that the tests must reach (see coverage in pyproject.toml), by files.
FLOORS = {"app/core/*": 98, "app/*": 93}


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


def below_a_floor() -> int:
    """Print the lines and branches that no test reached. Return 0 only if every floor is reached."""
    failed = coverage("combine", "--quiet")
    for files, floor in FLOORS.items():
        sys.stdout.write(f"\nCoverage of {files} (must be at least {floor} %):\n")
        sys.stdout.flush()
        failed = coverage("report", f"--include={files}", f"--fail-under={floor}") or failed
    return failed


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


def main(arguments: list[str]) -> int:
    """Run the tests. Return pytest's exit status or, if the tests pass, that of the coverage check."""
    CACHE.mkdir(exist_ok=True)
    report = CACHE / "tests.xml"
    report.unlink(missing_ok=True)
    folders, not_run = other_etcds()
    # Three workers for each core: a test waits for more than half of its time.
    workers = ("-n", str(min(12, 3 * cores())))
    slowest = ("--durations=20", "--durations-min=1")
    measured = () if arguments else ("-m", "coverage", "run")
    if measured:
        coverage("erase")  # remove the data of an interrupted run
    with busy(int(os.environ.get("BUSY") or 0)):
        status = subprocess.run(  # noqa: S603  # this interpreter
            [sys.executable, *measured, "-m", "pytest", *workers, *slowest, f"--junitxml={report}", *arguments],
            check=False, env={**os.environ, "ETCD_BIN_DIRS": folders},
        ).returncode  # fmt: skip
    if measured and not status:
        status = below_a_floor()
    system = CACHE / "not-run"
    if system.exists():
        not_run += system.read_text(encoding="utf-8").splitlines()
    for line in dict.fromkeys([*not_run, *skipped(report)]):
        sys.stdout.write(f"{line}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
