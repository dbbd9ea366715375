"""The wall clock of a process, stepped while it runs: Debian's package ``faketime``. Its monotonic clock goes on."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from pathlib import Path

HOUR = 3600
# Seconds between two steps of a clock that steps by itself.
PACE = 2.0


def library() -> Path | None:
    """What is loaded into a process whose clock is to be stepped; None where the package is not installed."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


class WallClock:
    """A wall clock, *file* says how far it is off. A process has it that is started with ``environment``."""

    def __init__(self, file: Path) -> None:
        found = library()
        assert found is not None, "faketime is not installed"
        self._file = file
        self.environment = {
            "LD_PRELOAD": str(found),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # the same, as it was called before 0.9.9
        }
        self.step(0)

    def step(self, seconds: int) -> None:
        """From now on it is so many seconds ahead of this machine's."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+}\n")
        new.replace(self._file)  # never half written

    def keep_stepping(self) -> None:
        """To and fro by an hour, for as long as this process lives."""

        def step() -> None:
            with contextlib.suppress(FileNotFoundError):  # the tests are over, and the folder is gone
                for seconds in itertools.cycle((0, HOUR, 0, -HOUR)):
                    self.step(seconds)
                    time.sleep(PACE)

        # Looked at once a second: reading the file at every look at the clock makes a gateway several times slower.
        del self.environment["FAKETIME_NO_CACHE"]
        self.environment["FAKETIME_CACHE_DURATION"] = "1"
        threading.Thread(target=step, name="wall clock", daemon=True).start()


def of_this_process() -> dict[str, str]:
    """The environment by which this process has a stepped clock, for what it starts."""
    return {name: text for name, text in os.environ.items() if "FAKE" in name or name == "LD_PRELOAD"}
