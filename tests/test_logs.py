"""Log lines: their two formats, and the lines that are dropped when nobody reads the log. (Processes: tests/server.)"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from select import PIPE_BUF
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import logs
from app.logs import HumanFormatter, JsonFormatter
from tests.support.waiting import HANG


def record(message: str, **extra: Any) -> logging.LogRecord:
    """A record as a logger makes it."""
    made = logging.getLogger("gateway.test").makeRecord(
        "gateway.test", logging.WARNING, "file.py", 1, message, (), None, extra=extra
    )
    made.created = 1.5
    return made


def test_a_json_line() -> None:
    """A JSON line has time, level, logger, message, and the extra fields; letters are not escaped."""
    assert json.loads(JsonFormatter().format(record("läuft", range="/svc/", odd={1}))) == {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "warning",
        "logger": "gateway.test",
        "message": "läuft",
        "range": "/svc/",
        "odd": "{1}",
    }


# No caller gives a field one of these names: they are the line's own.
TAKEN = logs._OWN | {"time", "level", "logger", "exception"}
FIELDS = st.dictionaries(
    st.text(min_size=1).filter(lambda name: name not in TAKEN),
    st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.text()), st.just({1})),
)


@given(FIELDS)
def test_a_json_line_is_what_the_standard_library_writes(extra: dict[str, Any]) -> None:
    """Whatever a field holds: clients choose some of them."""
    text = JsonFormatter().format(record("m", **extra))
    line = {"time": "1970-01-01T00:00:01.500Z", "level": "warning", "logger": "gateway.test", "message": "m", **extra}

    assert text == json.dumps(line, ensure_ascii=False, default=str)


@given(FIELDS, st.sampled_from([JsonFormatter(), JsonFormatter(worker=2), HumanFormatter(), HumanFormatter(worker=2)]))
def test_a_line_without_a_record_is_the_same(fields: dict[str, Any], form: logs.LineFormatter) -> None:
    """A join's line has no record, because a record takes longer than the rest of the line."""
    assert form.line(1.5, "warning", "gateway.test", "m", fields) == form.format(record("m", **fields))


class Wrong:
    """A value without a text."""

    def __str__(self) -> str:
        raise RuntimeError


def test_who_gets_a_record(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Our own handler gets the line. Other handlers get a record, as from any logger. Nothing is raised."""
    logger = logging.getLogger("gateway.test")
    given, writer = outlet(-1)
    monkeypatch.setattr(logs, "_outlets", [(given, writer)])
    monkeypatch.setattr(logging.root, "handlers", [given])
    logs.info(logger, "a line", {"range": "/svc/", "worker": "\ud800"})
    logs.info(logger, "a line", {"wrong": Wrong()})
    monkeypatch.setattr(logging.root, "handlers", [given, caplog.handler])
    with caplog.at_level(logging.INFO, "gateway.test"):
        logs.info(logger, "another line", {"range": "/svc/"})
    lines = [json.loads(given._lines.get_nowait() or b"") for _ in range(2)]

    assert [(line["message"], line["level"], line["logger"], line["range"]) for line in lines] == [
        (message, "info", "gateway.test", "/svc/") for message in ("a line", "another line")
    ]
    assert (given.dropped, given._lines.empty()) == (1, True)
    assert [vars(made)["range"] for made in caplog.records] == ["/svc/"]


def test_a_json_line_with_an_exception() -> None:
    """The traceback is one member, so that the line stays one line."""
    failed = record("failed")
    try:
        raise RuntimeError("a defect")
    except RuntimeError:
        failed.exc_info = sys.exc_info()
    text = JsonFormatter().format(failed)

    assert "\n" not in text
    assert json.loads(text)["exception"].endswith("RuntimeError: a defect")


def test_a_human_line() -> None:
    """A human line has the time of day, level, message, and its fields as name=value."""
    assert HumanFormatter().format(record("feed start")) == "00:00:01.500Z warning feed start"
    assert HumanFormatter().format(record("feed start", range="/svc/", keys=3)) == (
        "00:00:01.500Z warning feed start                 range=/svc/ keys=3"
    )


def test_a_field_is_bounded() -> None:
    """Clients choose what some fields hold: no client may fill the log, or what waits to be written."""
    long = record("refused", range="é" * 60_000, code="too-long")
    for form in (JsonFormatter(), HumanFormatter()):
        text = form.format(long)
        assert len(text) < logs.MOST_OF_FIELD + 300
        assert "é… (60000 characters)" in text
        assert "too-long" in text


def outlet(descriptor: int, pipe: int | None = None) -> tuple[logs._Outlet, logs._Writer]:
    """An outlet that is not started, so nothing takes the lines that it queues."""
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    writer = logs._Writer(lines, descriptor)
    return logs._Outlet(writer, lines, JsonFormatter(), pipe), writer


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: a pipe is opened again by /proc, which Linux has")


@pytest.fixture
def log() -> Iterator[tuple[int, logs._Outlet, logs._Writer]]:
    """A pipe's end for reading, and an outlet that writes to the pipe."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BUF)  # the smallest pipe
    pipe = logs._pipe_of(writing)
    assert pipe is not None
    given, writer = outlet(writing, pipe)
    yield reading, given, writer
    for descriptor in (reading, writing, pipe):
        os.close(descriptor)


def numbers(data: bytes) -> list[int]:
    """The numbers of the lines."""
    return [json.loads(line)["number"] for line in data.splitlines()]


@LINUX
def test_a_line_is_written_at_once(log: tuple[int, logs._Outlet, logs._Writer]) -> None:
    """A line is in the pipe when the logger returns: without the thread, and whatever ends the process then."""
    reading, given, _writer = log
    for number in range(3):
        given.handle(record("a line", number=number))

    assert numbers(os.read(reading, PIPE_BUF)) == [0, 1, 2]
    assert given.given == 0


@LINUX
def test_lines_stay_in_order_when_the_pipe_is_full(log: tuple[int, logs._Outlet, logs._Writer]) -> None:
    """Lines that do not fit in the pipe wait for the thread, and further lines behind them. Then lines are written at
    once again.
    """
    reading, given, writer = log
    for number in range(100):
        given.handle(record("a line", number=number))
    written = os.read(reading, PIPE_BUF)
    fitted = len(numbers(written))
    given.handle(record("a line", number=100))
    assert not select.select([reading], [], [], 0)[0]  # although there is room: it is not its turn
    writer.start()
    while written.count(b"\n") <= 100:
        written += os.read(reading, PIPE_BUF)
    writer.stop()
    given.handle(record("a line", number=101))
    written += os.read(reading, PIPE_BUF)

    assert 0 < fitted < 100
    assert numbers(written) == list(range(102))
    assert 0 < given.given == writer.taken < len(written)


@LINUX
def test_a_long_line_waits_for_the_thread(log: tuple[int, logs._Outlet, logs._Writer]) -> None:
    """The system may divide a line that is longer than PIPE_BUF: the thread writes it, and what comes after it."""
    _reading, given, _writer = log
    given.handle(record("a line", number=0, range="x" * PIPE_BUF))
    given.handle(record("a line", number=1))

    assert [numbers(given._lines.get_nowait() or b"") for _ in range(2)] == [[0], [1]]


@LINUX
def test_dropped_lines_are_reported_before_further_lines(
    log: tuple[int, logs._Outlet, logs._Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread writes the report, so a line waits for the thread while drops are not reported."""
    reading, given, writer = log
    monkeypatch.setattr(logs, "_outlets", [(given, writer)])
    broken = record("a %s line")
    broken.args = (1, 2)
    given.handle(broken)
    given.handle(record("a line", number=1))
    assert not select.select([reading], [], [], 0)[0]
    writer.start()
    logs.flush(HANG)  # a thread that finds its end in the queue, too, reports nothing
    writer.stop()
    given.handle(record("a line", number=2))
    first, report, second = map(json.loads, os.read(reading, PIPE_BUF).splitlines())

    assert (first["number"], report["lines"], second["number"]) == (1, 1, 2)


def test_only_pipes_are_written_at_once(tmp_path: Path) -> None:
    """A file that is opened again would be written from its beginning."""
    with (tmp_path / "log").open("wb") as file:
        assert logs._pipe_of(file.fileno()) is None
    assert logs._pipe_of(-1) is None


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines beyond MAX_PENDING are dropped and counted; when the reader is back, one line reports the number."""
    monkeypatch.setattr(logs, "MAX_PENDING", 1000)
    reading, writing = os.pipe()
    given, writer = outlet(writing)
    for number in range(20):
        given.handle(record("a line", number=number))
    dropped = given.dropped
    monkeypatch.setattr(logs, "_outlets", [(given, writer)])
    writer.start()
    logs.flush(HANG)
    writer.stop()
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]

    assert 0 < dropped < 20
    assert [line["number"] for line in lines[:-1]] == list(range(20 - dropped))
    assert (lines[-1]["logger"], lines[-1]["lines"]) == ("gateway.log", dropped)


def test_a_line_that_cannot_be_written_is_counted() -> None:
    """A line to a closed pipe is counted as dropped."""
    reading, writing = os.pipe()
    os.close(reading)
    given, writer = outlet(writing)
    given.handle(record("a line"))
    writer.start()
    writer.stop()
    os.close(writing)

    assert given.dropped == 1


def test_lines_that_come_together_are_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write needs the interpreter's lock. A write has some lines at most, and they stay in order."""
    written: list[bytes] = []

    def write(_descriptor: int, data: memoryview) -> int:
        written.append(bytes(data))
        return len(data)

    monkeypatch.setattr(logs, "write", write)
    given, writer = outlet(-1)
    for number in range(1000):
        given.handle(record("a line", number=number))
    writer.start()
    writer.stop()
    lines = b"".join(written).splitlines()

    assert [json.loads(line)["number"] for line in lines] == list(range(1000))
    assert len(written) < 20
    assert max(map(len, written)) < logs.MOST_AT_ONCE + 200
    assert writer.taken == given.given


def test_of_a_write_that_fails_only_the_lost_lines_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full in the middle of the second of three lines."""
    given, writer = outlet(-1)
    for number in range(3):
        given.handle(record("a line", number=number))
    room = given.given // 2

    def write(_descriptor: int, data: memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(28, "No space left on device")
        taken, room = min(room, len(data)), 0
        return taken

    monkeypatch.setattr(logs, "write", write)
    writer.start()
    writer.stop()

    assert (writer.lost, writer.taken) == (2, given.given)


def test_a_record_that_cannot_be_formatted_is_counted() -> None:
    """A record that cannot be formatted is counted, and nothing is printed, unlike the default of ``logging``."""
    given, _writer = outlet(-1)
    broken = record("a %s line")
    broken.args = (1, 2)
    given.handle(broken)

    assert given.dropped == 1
