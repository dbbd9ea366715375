"""Logs: one line for each of the gateway's events, for people or as JSON. No line holds a key's value or a token.

Who logs writes the line to a pipe at once, if the pipe has room: whatever ends the process then, the line is not lost.
All other lines wait for a separate thread. Without that thread, a reader that stalls (a full pipe: a sidecar that
hangs, a stopped pager) blocked the event loop, and all streams with it, after about 200 lines. Now the reader blocks
only the thread. Lines beyond MAX_PENDING are dropped and counted, and the log reports their number once the reader is
back.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import queue
import select
import stat
import sys
import threading
import time
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from json.encoder import encode_basestring
from logging.handlers import QueueHandler, QueueListener
from math import isfinite
from os import write
from select import PIPE_BUF
from typing import Any, Literal

logger = logging.getLogger("gateway")

# Bytes of lines that may wait to be written: about 5,000 lines.
MAX_PENDING = 1 << 20
# Seconds in which the thread collects lines before it writes them, and the bytes that it writes at once, about. The
# thread needs the interpreter's lock for each write. When it wrote each line as it came, a join with its line in the
# audit log took 70 us more; with 0.01 s, 10 us more.
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
    # Exact types: a subclass may have another text.
    if type(value) is int or (type(value) is float and isfinite(value)):
        return repr(value)
    return _ENCODER.encode(_bounded(value))


@functools.lru_cache
def _json_template(level: str, name: str, message: str, fields: tuple[str, ...]) -> str:
    """Return a line with a ``%s`` for the time and for the value of each field."""
    own = {"level": level, "logger": name, "message": message}
    text = ", ".join(f"{encode_basestring(key)}: {encode_basestring(value)}" for key, value in own.items())
    rest = "".join(f", {encode_basestring(field)}: \0" for field in fields)
    return ('{"time": "\0", ' + text + rest).replace("%", "%%").replace("\0", "%s")


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
        # Not by ``JSONEncoder``, which makes an encoder for each call: there is a line for each join. Only the values
        # differ between most lines of a logger.
        if self.always:
            fields = fields | self.always
        texts = [
            encode_basestring(value) if type(value) is str and len(value) <= MOST_OF_FIELD else _json(value)
            for value in fields.values()
        ]
        line = _json_template(level, name, message, tuple(fields)) % (_time(created), *texts)
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
        self.said = 0  # dropped lines that the log has reported

    def handle(self, line: bytes) -> None:  # type: ignore[override]  # ``prepare`` has turned the record into a line
        """See ``QueueListener``. Lines that come together are written together."""
        if self.outlet is None or self.outlet.dropped == self.said:  # the report of dropped lines must not be late
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
        if dropped > self.said and self._lines.empty():
            report = self.outlet.tell(dropped - self.said)
            if self._write(report) == len(report):
                self.said = dropped

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


def _pipe_of(descriptor: int) -> int | None:
    """Return a descriptor of our own for the same pipe, which does not block. None: it is no pipe, or cannot be opened.

    To set the given one to non-blocking would change it for all processes that share it. A file that is opened again is
    written from its beginning.
    """
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return None
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # not Linux, or the pipe belongs to another user
        return None


class _Outlet(QueueHandler):
    """Formats records as lines, and writes the lines or queues them for the writer. Never blocks.

    *pipe*: see ``_pipe_of``; None if all lines are queued.
    """

    def __init__(
        self, writer: _Writer, lines: queue.SimpleQueue[bytes | None], form: LineFormatter, pipe: int | None = None
    ) -> None:
        super().__init__(lines)
        self.setFormatter(form)
        self._form = form
        self._writer = writer
        self._lines = lines
        self._pipe = pipe
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
        """Write or queue a line of the logger *name* without a record. Never raises, as ``logging`` does not."""
        try:
            line = self._form.line(time.time(), "info", name, message, fields)
        except Exception:  # see ``handleError``
            self._refused += 1
            return
        self.enqueue((line + "\n").encode(errors="backslashreplace"))

    def enqueue(self, line: bytes) -> None:  # type: ignore[override]  # see ``prepare``
        """See ``QueueHandler``. The line is written at once if it is the next one, and the pipe takes it whole."""
        # Not a lock of its own: ``handle`` would take it after the handler's, and a finalizer that logs within this
        # function would take the handler's after it, so that two threads could wait for each other.
        assert self.lock is not None
        with self.lock:
            waiting = self.given - self._writer.taken
            if self._pipe is not None and not waiting and self._writer.said == self.dropped and len(line) <= PIPE_BUF:
                try:
                    write(self._pipe, line)
                except OSError:  # the pipe is full, or its reader has gone: that is for the thread
                    pass
                else:
                    return
            if waiting + len(line) > MAX_PENDING:
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
    form_with = HumanFormatter(**always) if human else JsonFormatter(**always)
    outlet = _Outlet(writer, lines, form_with, _pipe_of(sys.stderr.fileno()))
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
