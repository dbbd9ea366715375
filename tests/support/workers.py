"""Runs the tests on several workers, each a fork of the process that has collected the tests.

``-n`` and ``--maxprocesses`` are pytest-xdist's options. A worker of pytest-xdist is a new interpreter: it imports and
collects all tests for 7 s of CPU, and sends five messages for each test, which take 2.3 ms of CPU. A fork has collected
already, and sends one message. Outside Linux a process with the system's frameworks cannot be forked safely: there
pytest-xdist runs the tests, and shares them by file.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import pickle
import selectors
import signal
import socket
import struct
import sys
import threading
import traceback
import warnings
from collections import deque
from typing import Any

import pytest
from _pytest.unraisableexception import collect_unraisable

from tests.support import measured
from tests.support.schedule import units

FORKS = sys.platform == "linux"
LENGTH = struct.Struct("!I")
# What a message of a worker is: the reports of a test, something for the summary of warnings, an error outside tests.
TESTED, WARNED, FAILED = "tested", "warned", "failed"
# Seconds that a worker has to end its test after Ctrl-C, and what the test has started.
PATIENCE = 10.0


def send(sock: socket.socket, message: object) -> None:
    """Send *message* whole."""
    data = pickle.dumps(message)
    sock.sendall(LENGTH.pack(len(data)) + data)


def receive(sock: socket.socket) -> Any:
    """Return the next message; None if the other side has ended."""
    head = _exactly(sock, LENGTH.size)
    data = _exactly(sock, *LENGTH.unpack(head)) if head else b""
    return pickle.loads(data) if data else None  # noqa: S301  # from a fork of this process


def _exactly(sock: socket.socket, length: int) -> bytes:
    parts = []
    while length:
        part = sock.recv(length)
        if not part:
            return b""
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


class Workers:
    """The plugin of the process that collects the tests; *number*: of workers."""

    def __init__(self, config: pytest.Config, number: int) -> None:
        self._config = config
        self._number = number
        self._waiting: deque[list[int]] = deque()
        self._running: dict[socket.socket, Worker] = {}
        self._started = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run all tests; called by pytest."""
        if session.testsfailed or session.config.option.collectonly:
            return None  # pytest itself says what failed, or ends
        self._waiting.extend(units(session.items))
        with selectors.DefaultSelector() as selector:
            try:
                for _ in range(min(self._number, len(self._waiting))):
                    self._start(session, selector)
                while self._running:
                    for key, _events in selector.select():
                        self._hear(session, selector, self._running[key.fileobj])  # type: ignore[index]  # a socket
                    if session.shouldfail:
                        raise session.Failed(session.shouldfail)
                    if session.shouldstop:
                        raise session.Interrupted(session.shouldstop)
            finally:
                for worker in self._running.values():
                    worker.stop()
        return True

    def _start(self, session: pytest.Session, selector: selectors.BaseSelector) -> None:
        ours, theirs = socket.socketpair()
        self._started += 1
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            selector.close()
            for sock in (ours, *self._running):
                sock.close()
            Fork(session, theirs, self._started).work()
        theirs.close()
        self._running[ours] = worker = Worker(pid, ours)
        selector.register(ours, selectors.EVENT_READ)
        self._give(worker)

    def _give(self, worker: Worker) -> None:
        worker.unit = deque(self._waiting.popleft() if self._waiting else ())
        with contextlib.suppress(OSError):  # the worker has died, which is noticed when its socket ends
            send(worker.sock, list(worker.unit))

    def _hear(self, session: pytest.Session, selector: selectors.BaseSelector, worker: Worker) -> None:
        message = receive(worker.sock)
        if message is None:
            selector.unregister(worker.sock)
            del self._running[worker.sock]
            self._ended(session, selector, worker)
            return
        kind, content = message
        if kind == TESTED:
            worker.unit.popleft()
            self._report(session.items[content[0]], content[1])
            if not worker.unit:
                self._give(worker)
        elif kind == WARNED:
            self._config.hook.pytest_warning_recorded.call_historic(kwargs=content)
        else:
            session.testsfailed += 1
            session.shouldfail = f"a worker failed outside its tests:\n{content}"

    def _report(self, item: pytest.Item, reports: list[dict[str, Any]]) -> None:
        hook = self._config.hook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for data in reports:
            report = hook.pytest_report_from_serializable(config=self._config, data=data)
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def _ended(self, session: pytest.Session, selector: selectors.BaseSelector, worker: Worker) -> None:
        """A worker that ends before its tests do has died of one of them: that one fails, and a new worker goes on."""
        status = worker.stop()
        if not worker.unit:
            if status:
                session.shouldfail = f"a worker ended with {status}"
            return
        item = session.items[worker.unit.popleft()]
        text = f"the worker died with {status} while it ran this test"
        report = pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")
        self._report(item, [self._config.hook.pytest_report_to_serializable(config=self._config, report=report)])
        if worker.unit:
            self._waiting.appendleft(list(worker.unit))
        if self._waiting:
            self._start(session, selector)


class Worker:
    """A fork, as the process sees it that has collected; ``unit`` is what it has yet to run, in order."""

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self.sock = sock
        self.unit: deque[int] = deque()
        self._status: int | None = None

    def stop(self) -> int:
        """End the worker, unless it has ended; return its exit status."""
        self.sock.close()
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGINT)
            kill = threading.Timer(PATIENCE, os.kill, (self.pid, signal.SIGKILL))
            kill.start()
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            kill.cancel()
        return self._status


class Fork:
    """A worker, in its own process."""

    def __init__(self, session: pytest.Session, sock: socket.socket, number: int) -> None:
        self._session = session
        self._config = session.config
        self._sock = sock
        self._reports: list[dict[str, Any]] = []
        # What was to run when the process that has collected ends.
        atexit._clear()
        manager = self._config.pluginmanager
        for name in ("terminalreporter", "workers"):
            manager.unregister(name=name)
        manager.register(self, "worker")
        # Not into the file of the process that has collected, which all forks would share.
        capture: Any = manager.get_plugin("capturemanager")
        capture.stop_global_capturing()
        capture.start_global_capturing()
        capture.suspend_global_capture()
        factory: Any = self._config._tmp_path_factory  # type: ignore[attr-defined]
        factory._basetemp = factory.getbasetemp() / f"worker-{number}"
        factory._basetemp.mkdir(mode=0o700)

    def work(self) -> None:
        """Run unit after unit until there is none, and end this process."""
        status = 1
        try:
            while unit := receive(self._sock):
                self._run([self._session.items[number] for number in unit], unit)
            gc.collect()
            collect_unraisable(self._config)
            measured.save()
            status = 0
        except BaseException:  # nothing may return into the process that has collected
            with contextlib.suppress(OSError):
                send(self._sock, (FAILED, traceback.format_exc()))
            self._session._setupstate.teardown_exact(None)  # what a test that was interrupted has started
        finally:
            self._end(status)

    def _run(self, items: list[pytest.Item], numbers: list[int]) -> None:
        for number, item, following in zip(numbers, items, [*items[1:], None], strict=True):
            self._config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            send(self._sock, (TESTED, (number, self._reports)))
            self._reports = []

    def _end(self, status: int) -> None:
        """End as an interpreter does, without freeing each object, which would first copy it."""
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._reports.append(data)

    def pytest_warning_recorded(
        self,
        warning_message: warnings.WarningMessage,
        when: str,
        nodeid: str,
        location: tuple[str, int, str] | None,
    ) -> None:
        """Called by pytest. A message without its objects, which may be anything."""
        told = warning_message
        plain = warnings.WarningMessage(Warning(str(told.message)), Warning, told.filename, told.lineno)
        send(self._sock, (WARNED, {"warning_message": plain, "when": when, "nodeid": nodeid, "location": location}))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Take the number of workers from pytest-xdist, which then does nothing."""
    number = len(getattr(config.option, "tx", None) or ())  # there is none with ``-p no:xdist``
    if not number or config.option.dist == "no":
        return
    if not FORKS:
        config.option.dist = "loadfile"
        return
    config.option.dist, config.option.tx = "no", []
    config.pluginmanager.register(Workers(config, number), "workers")


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Say the number, as pytest-xdist does, and do not print a file's name before each of its results."""
    workers: Any = session.config.pluginmanager.get_plugin("workers")
    terminal: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    if workers is not None and terminal is not None:
        terminal.showfspath = False
        terminal.write_line(f"{workers._number} workers")
