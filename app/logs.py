"""Logs: one line for each of the gateway's events, for people or as JSON. No line holds a key's value or a token.

A separate thread writes the lines. Without that thread, a reader that stalls (a full pipe: a sidecar that hangs, a
stopped pager) blocked the event loop, and all streams with it, after about 200 lines. Now the reader blocks only the
thread. Lines beyond MAX_PENDING are dropped and counted, and the log reports their number once the reader is back.
"""

from __future__ import annotations

import functools
import json
import logging
import queue
import select
import sys
import threading
import time
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from json.encoder import encode_basestring
from logging.handlers import QueueHandler, QueueListener
from os import write
from typing import Any, Literal

logger = logging.getLogger("gateway")

# Bytes of lines that may wait to be written: about 5,000 lines.
MAX_PENDING = 1 << 20
# Seconds in which lines are collected before they are written, and the bytes that are written at once, about. The
# thread needs the interpreter's lock for each write. When it wrote each line as it came, a join with its line in the
# audit log took 70 us more; with 0.01 s, 10 us more. With 0.05 s nothing was left of that, but a SIGKILL loses lines.
PAUSE, MOST_AT_ONCE = 0.01, 256 * 1024
# Characters of one field. Clients choose ranges, and 60 kB of them fit in a request: 17 lines were MAX_PENDING.
MOST_OF_FIELD = 10_000
# Seconds that the process waits at its end until the pending lines are written.
FLUSH_TIMEOUT = 2.0

# The attributes that every LogRecord has. All other attributes come from ``extra`` and belong in the line.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OWN}


def _bounded(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MOST_OF_FIELD:
        return f"{value[:MOST_OF_FIELD]}… ({len(value)} characters)"
    return value


@functools.lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    """Return a second as text. Lines come many in a second: a herd that leaves writes one for each stream."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().removesuffix("+00:00")


def _time(created: float) -> str:
    seconds = int(created)
    return f"{_second(seconds)}.{int((created - seconds) * 1000):03}Z"


_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)


def _json(value: object) -> str:
    if isinstance(value, str) and len(value) <= MOST_OF_FIELD:  # as nearly all are
        return encode_basestring(value)
    return _ENCODER.encode(_bounded(value))


class LineFormatter(logging.Formatter, ABC):
    """Formats a record as a line. *always*: fields that every line has after its own."""

    def __init__(self, **always: object) -> None:
        super().__init__()
        self.always = always

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        exception = self.formatException(record.exc_info) if record.exc_info else ""
        return self.line(
            record.created, record.levelname.lower(), record.name, record.getMessage(), _extras(record), exception
        )

    @abstractmethod
    def line(
        self, created: float, level: str, name: str, message: str, fields: dict[str, object], exception: str = ""
    ) -> str:
        """Return the line of the logger *name*. *created*: seconds since 1970."""


class JsonFormatter(LineFormatter):
    """A line is a JSON object."""

    def line(
        self, created: float, level: str, name: str, message: str, fields: dict[str, object], exception: str = ""
    ) -> str:
        """See ``LineFormatter``."""
        # Member by member: ``JSONEncoder`` makes an encoder for each call. That was half the time of a line, and there
        # is a line for each join.
        line = f'{{"time": "{_time(created)}", "level": "{level}", "logger": {encode_basestring(name)}, '
        line += f'"message": {encode_basestring(message)}'
        for field, value in (fields | self.always).items():
            line += f", {encode_basestring(field)}: {_json(value)}"
        return f'{line}, "exception": {encode_basestring(exception)}}}' if exception else f"{line}}}"


class HumanFormatter(LineFormatter):
    """A line is time, level, message, and the fields as name=value. People do not need the logger."""

    def line(
        self, created: float, level: str, name: str, message: str, fields: dict[str, object], exception: str = ""
    ) -> str:
        """See ``LineFormatter``."""
        del name
        shown = " ".join(f"{field}={_bounded(value)}" for field, value in (fields | self.always).items())
        line = f"{_time(created)[11:]} {level:7} {message}"
        if shown:
            line = f"{line:48} {shown}"
        return f"{line}\n{exception}" if exception else line


class _Writer(QueueListener):
    """Writes lines to a descriptor, in a daemon thread: the process can end although its thread is stuck.

    The writer does not use ``sys.stderr``: the interpreter aborts at its end if a daemon thread holds that file's lock.
    """

    def __init__(self, lines: queue.SimpleQueue[bytes | None], descriptor: int) -> None:
        super().__init__(lines)
        self._lines = lines
        self._descriptor = descriptor
        self._pause = threading.Event()  # never set: see ``flush``
        self.outlet: _Outlet | None = None
        self.taken = 0  # bytes, written or lost
        self.lost = 0  # lines that could not be written
        self._said = 0  # dropped lines that the log has reported

    def handle(self, line: bytes) -> None:  # type: ignore[override]  # ``prepare`` has turned the record into a line
        """See ``QueueListener``. Lines that come together are written together."""
        if self.outlet is None or self.outlet.dropped == self._said:  # the report of dropped lines must not be late
            self._pause.wait(PAUSE)
        lines, size = [line], len(line)
        while size < MOST_AT_ONCE and not self._lines.empty():
            following = self._lines.get_nowait()
            if following is None:  # the sentinel of ``stop``
                self._lines.put(None)
                break
            lines.append(following)
            size += len(following)
        self._write_all(lines)
        self.taken += size

    def _write_all(self, lines: list[bytes]) -> None:
        written = self._write(b"".join(lines))
        for line in lines:
            written -= len(line)
            self.lost += written < 0
        if written < 0 or self.outlet is None:
            return
        dropped = self.outlet.dropped
        if dropped > self._said and self._lines.empty():
            report = self.outlet.tell(dropped - self._said)
            if self._write(report) == len(report):
                self._said = dropped

    def _write(self, data: bytes) -> int:
        """Return how many bytes are written: all, unless the reader has gone."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[write(self._descriptor, rest) :]
            except BlockingIOError:  # the parent process has set the shared descriptor to non-blocking
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError:  # the reader has gone, the disk is full, or the terminal has hung up
                break
        return len(data) - len(rest)


class _Outlet(QueueHandler):
    """Formats records as lines and queues the lines for the writer. Never blocks."""

    def __init__(self, writer: _Writer, lines: queue.SimpleQueue[bytes | None], form: LineFormatter) -> None:
        super().__init__(lines)
        self.setFormatter(form)
        self._form = form
        self._writer = writer
        self._lines = lines
        self.given = 0  # bytes
        self._refused = 0  # lines
        writer.outlet = self

    @property
    def dropped(self) -> int:
        """The number of lines that were dropped before or during the write."""
        return self._refused + self._writer.lost

    def prepare(self, record: logging.LogRecord) -> bytes:
        """See ``QueueHandler``."""
        return (self.format(record) + "\n").encode(errors="backslashreplace")

    def write_info(self, name: str, message: str, fields: dict[str, object]) -> None:
        """Queue a line of the logger *name* without a record. Never raises, as ``logging`` does not."""
        try:
            line = self._form.line(time.time(), "info", name, message, fields)
        except Exception:  # see ``handleError``
            self._refused += 1
            return
        self.acquire()
        try:
            self.enqueue((line + "\n").encode(errors="backslashreplace"))
        finally:
            self.release()

    def enqueue(self, line: bytes) -> None:  # type: ignore[override]  # see ``prepare``
        """See ``QueueHandler``."""
        if self.given - self._writer.taken + len(line) > MAX_PENDING:
            self._refused += 1
            return
        self.given += len(line)
        self._lines.put_nowait(line)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # its name in ``logging``
        """Count a record that could not be formatted. The default writes to ``sys.stderr``, which may block."""
        del record
        self._refused += 1

    def tell(self, dropped: int) -> bytes:
        """Return the line that reports how many lines are missing before it."""
        message = "log lines were dropped: the reader of the log was too slow"
        about = {"name": "gateway.log", "levelno": logging.WARNING, "levelname": "WARNING", "msg": message}
        return self.prepare(logging.makeLogRecord(about | {"lines": dropped}))


_outlets: list[tuple[_Outlet, _Writer]] = []


def dropped() -> int:
    """Return the number of log lines that were dropped."""
    return sum(outlet.dropped for outlet, _writer in _outlets)


def info(logger: logging.Logger, message: str, fields: dict[str, object]) -> None:
    """Log what ``logger.info(message, extra=fields)`` logs, in a third of the time: for the lines that every join has.

    Call this only if *logger* is enabled for that level.
    """
    # Another server has handlers of its own, and so have tests. Those get a record.
    if _outlets and logging.root.handlers == [_outlets[0][0]]:
        _outlets[0][0].write_info(logger.name, message, fields)
    else:
        logger.info(message, extra=fields)


def flush(timeout: float = FLUSH_TIMEOUT) -> None:
    """Wait until all logged lines are written, but no longer than *timeout* seconds."""
    over = time.monotonic() + timeout
    pause = threading.Event()  # under libfaketime, time.sleep raises EINVAL when the wall clock steps
    for outlet, writer in _outlets:
        while writer.taken < outlet.given and time.monotonic() < over:
            pause.wait(0.005)


def finish() -> None:
    """Write the pending lines before the process ends. Unraisable exceptions go to standard error from now on."""
    sys.unraisablehook = sys.__unraisablehook__
    flush()


def _log_unraisable(what: sys.UnraisableHookArgs) -> None:
    about = what.err_msg or "exception ignored in"
    error = what.exc_value
    logger.error("%s %r", about, what.object, exc_info=error)


def form_of(setting: str) -> Literal["human", "json"]:
    """Return the form of the lines: by default ``human`` on a terminal, else ``json``."""
    if setting == "auto":
        return "human" if sys.stderr.isatty() else "json"
    return "human" if setting == "human" else "json"


def relay(line: bytes) -> None:
    """Write a line that another process has logged."""
    for outlet, _writer in _outlets:
        outlet.enqueue(line)


def install(form: str, level: str, *, worker: int | None = None) -> None:
    """Send all logs to standard error, uvicorn's too (but not its access log). *worker*: each line has its number."""
    human = form_of(form) == "human"
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    writer = _Writer(lines, sys.stderr.fileno())
    always: dict[str, object] = {"worker": worker} if worker is not None else {}
    outlet = _Outlet(writer, lines, HumanFormatter(**always) if human else JsonFormatter(**always))
    _outlets[:] = [(outlet, writer)]
    writer.start()
    root = logging.getLogger()
    root.handlers[:] = [outlet]
    root.setLevel(logging.WARNING)
    # No line says which thread, process or line of code it comes from. To find out takes three system calls, and a walk
    # over the stack. This is how ``logging`` is told (its documentation, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001  # documented
    # By default, Python writes warnings and unraisable exceptions to standard error itself, which may block.
    logging.captureWarnings(capture=True)
    sys.unraisablehook = _log_unraisable
    logging.getLogger("gateway").setLevel(level.upper())
    # uvicorn's warnings are about clients' requests ("Unsupported upgrade request."); the client gets the error itself.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
