"""The wall clock of a process, stepped while the process runs: Debian's package ``faketime``.

The monotonic clock goes on.
"""

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
    """The library to preload into a process whose clock is stepped; None if the package is not installed."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


class WallClock:
    """A wall clock whose offset is in *file*. A process uses this clock if it starts with ``environment``."""

    def __init__(self, file: Path) -> None:
        found = library()
        assert found is not None, "faketime is not installed"
        self._file = file
        self.environment = {
            "LD_PRELOAD": str(found),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # the name of the same setting before 0.9.9
        }
        self.step(0)

    def step(self, seconds: int) -> None:
        """Set the clock *seconds* ahead of this machine's clock."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+}\n")
        new.replace(self._file)  # atomically: a reader never sees half of the text

    def keep_stepping(self) -> None:
        """Step by an hour, forth and back, for as long as this process lives."""

        def step() -> None:
            with contextlib.suppress(FileNotFoundError):  # the tests have ended, and the folder is gone
                for seconds in itertools.cycle((0, HOUR, 0, -HOUR)):
                    self.step(seconds)
                    time.sleep(PACE)

        # The library reads the file once a second. Reading it at every look at the clock makes a gateway several times
        # slower.
        del self.environment["FAKETIME_NO_CACHE"]
        self.environment["FAKETIME_CACHE_DURATION"] = "1"
        threading.Thread(target=step, name="wall clock", daemon=True).start()


def of_this_process() -> dict[str, str]:
    """This process's stepped clock as environment variables, for the processes that this process starts."""
    return {name: text for name, text in os.environ.items() if "FAKE" in name or name == "LD_PRELOAD"}
