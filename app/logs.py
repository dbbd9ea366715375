"""Logs: one line an event of ours, for people or as JSON. Nothing of keys' values, nothing of tokens.

Lines are written by a thread of their own. A reader that stalls (a full pipe: a sidecar that hangs, a stopped pager)
stopped the event loop, and all streams with it, after some 200 lines. Now it stops the thread; beyond MAX_PENDING lines
are dropped, counted, and the log says how many once the reader is back.
"""

from __future__ import annotations

import json
import logging
import queue
import select
import sys
import threading
import time
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from os import write
from typing import Any

logger = logging.getLogger("gateway")

# Bytes of lines that wait to be written; some 5,000 lines.
MAX_PENDING = 1 << 20
# Seconds that the end of the process waits for them.
FLUSH_TIMEOUT = 2.0

# What a LogRecord has by itself; the rest came as ``extra`` and is ours.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OWN}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class HumanFormatter(logging.Formatter):
    """Time, level, message, and what belongs to it as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        extras = " ".join(f"{name}={value}" for name, value in _extras(record).items())
        line = f"{_time(record)[11:]} {record.levelname.lower():7} {record.getMessage()}"
        if extras:
            line = f"{line:48} {extras}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _Writer(QueueListener):
    """Writes lines to a descriptor, in a daemon thread: the end of the process does not wait for a stuck one.

    Not to ``sys.stderr``: the interpreter aborts when a daemon thread holds that one's lock at its end.
    """

    def __init__(self, lines: queue.SimpleQueue[bytes | None], descriptor: int) -> None:
        super().__init__(lines)
        self._lines = lines
        self._descriptor = descriptor
        self.outlet: _Outlet | None = None
        self.taken = 0  # bytes, written or lost
        self.lost = 0  # lines that could not be written
        self._said = 0

    def handle(self, line: bytes) -> None:  # type: ignore[override]  # ``prepare`` has made it of the record
        """See ``QueueListener``."""
        if not self._write(line):
            self.lost += 1
        elif self.outlet is not None and self.outlet.dropped > self._said and self._lines.empty():
            dropped = self.outlet.dropped
            if self._write(self.outlet.tell(dropped - self._said)):
                self._said = dropped
        self.taken += len(line)

    def _write(self, line: bytes) -> bool:
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[write(self._descriptor, rest) :]
            except BlockingIOError:  # whoever started us shares a descriptor that does not block
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError:  # nobody reads, the disk is full, the terminal has gone
                return False
        return True


class _Outlet(QueueHandler):
    """Makes lines of records, for the writer. Never waits."""

    def __init__(self, writer: _Writer, lines: queue.SimpleQueue[bytes | None]) -> None:
        super().__init__(lines)
        self._writer = writer
        self._lines = lines
        self.given = 0  # bytes
        self._refused = 0  # lines
        writer.outlet = self

    @property
    def dropped(self) -> int:
        """Lines that nobody will read."""
        return self._refused + self._writer.lost

    def prepare(self, record: logging.LogRecord) -> bytes:
        """See ``QueueHandler``."""
        return (self.format(record) + "\n").encode(errors="backslashreplace")

    def enqueue(self, line: bytes) -> None:  # type: ignore[override]  # see ``prepare``
        """See ``QueueHandler``."""
        if self.given - self._writer.taken + len(line) > MAX_PENDING:
            self._refused += 1
            return
        self.given += len(line)
        self._lines.put_nowait(line)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # its name in ``logging``
        """A record that could not be made a line of. The default writes to ``sys.stderr``, which may block."""
        del record
        self._refused += 1

    def tell(self, dropped: int) -> bytes:
        """The line that says what is missing before it."""
        message = "log lines were dropped: the reader of the log did not take them in time"
        about = {"name": "gateway.log", "levelno": logging.WARNING, "levelname": "WARNING", "msg": message}
        return self.prepare(logging.makeLogRecord(about | {"lines": dropped}))


_outlets: list[tuple[_Outlet, _Writer]] = []


def dropped() -> int:
    """Lines that could not be logged."""
    return sum(outlet.dropped for outlet, _writer in _outlets)


def flush(timeout: float = FLUSH_TIMEOUT) -> None:
    """Wait until what was logged is written, but no longer than *timeout* seconds."""
    over = time.monotonic() + timeout
    pause = threading.Event()  # time.sleep raises EINVAL beneath libfaketime, when the wall clock steps
    for outlet, writer in _outlets:
        while writer.taken < outlet.given and time.monotonic() < over:
            pause.wait(0.005)


def finish() -> None:
    """The process is about to end: what is logged from now on goes to standard error, as without ``install``."""
    sys.unraisablehook = sys.__unraisablehook__
    flush()


def _log_unraisable(what: sys.UnraisableHookArgs) -> None:
    about = what.err_msg or "exception ignored in"
    error = what.exc_value
    logger.error("%s %r", about, what.object, exc_info=error)


def install(form: str, level: str) -> None:
    """Have everything logged to standard error, uvicorn's lines included (but not its access log)."""
    human = form == "human" or (form == "auto" and sys.stderr.isatty())
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    writer = _Writer(lines, sys.stderr.fileno())
    outlet = _Outlet(writer, lines)
    outlet.setFormatter(HumanFormatter() if human else JsonFormatter())
    _outlets[:] = [(outlet, writer)]
    writer.start()
    root = logging.getLogger()
    root.handlers[:] = [outlet]
    root.setLevel(logging.WARNING)
    # Python's own way is to write these to standard error, at once.
    logging.captureWarnings(capture=True)
    sys.unraisablehook = _log_unraisable
    logging.getLogger("gateway").setLevel(level.upper())
    # Its warnings are about what clients send ("Unsupported upgrade request."), and clients are told themselves.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
