"""A mirror for code without asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import threading
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

import httpx
import pytest
from etcd_watch_client import ConfigDict, Mirror, RefusedError
from playing import HANG, Gateway, delete, problem, put, scripted, state

URL = "http://gateway.test"


def test_it_reads_like_a_dict() -> None:
    """No asyncio in sight; the thread ends with the block."""
    gateway = Gateway(scripted(state(10, a="1", b="2"), put("/c/a", "one", 11)))
    with ConfigDict(URL, "/c/", timeout=HANG, transport=gateway) as config:
        config.until(lambda mirror: mirror.revision == 11, HANG)
        assert (config["/c/a"], "/c/b" in config, len(config), sorted(config)) == ("one", True, 2, ["/c/a", "/c/b"])
        assert (config.state, config.revision, config.reason) == ("live", 11, "")
        assert config.age is not None
        assert config.copy() == {"/c/a": "one", "/c/b": "2"}
    assert (config.state, config.copy()) == ("closed", {"/c/a": "one", "/c/b": "2"})
    assert not [one for one in threading.enumerate() if one.name == "etcd-watch"]
    config.close()
    with pytest.raises(RuntimeError, match="the ConfigDict is closed"):
        config.synced()
    with pytest.raises(RuntimeError, match="once"):
        config.start()


def test_before_the_start_nothing_is_missing() -> None:
    """Who forgets `with` is told so, and not that a key does not exist."""
    config = ConfigDict(URL, "/c/", transport=Gateway())
    for read in (
        lambda: config["/c/a"],
        lambda: config.get("/c/a"),
        lambda: "/c/a" in config,
        config.copy,
        lambda: len(config),
    ):
        with pytest.raises(RuntimeError, match="use `with`, or call start"):
            read()
    assert repr(config) == "<ConfigDict: connecting, 0 keys at revision 0>"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="NOT RUN: this system does not fork")
def test_a_forked_process_is_told() -> None:
    """gunicorn loads the application and forks: no thread follows in the child, so its mapping is not live."""
    gateway = Gateway(scripted(state(10, a="1")))
    with ConfigDict(URL, "/c/", timeout=HANG, transport=gateway) as config:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with pytest.raises(RuntimeError, match="after the fork"):
                    config.synced(HANG)
                config.close()
                told = f"{config.state}: {config.reason} {config.copy()}"
                os.write(write, told.encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
        assert (config.state, config.reason) == ("live", "")
        config.synced(HANG)

    assert told == (
        "closed: the process was forked, and threads do not follow: make another ConfigDict after the fork "
        "{'/c/a': '1'}"
    )


def test_changes_without_asyncio() -> None:
    """From the call on, in a thread of the caller. The loop ends when another thread closes the object."""
    go = threading.Event()

    class Gated(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield state(10, a="1")
            await asyncio.to_thread(go.wait, HANG)
            yield put("/c/a", "x", 11) + put("/c/a", "y", 12)
            await asyncio.Event().wait()

    answer = httpx.Response(200, headers={"Content-Type": "application/x-ndjson"}, stream=Gated())
    config = ConfigDict(URL, "/c/", timeout=HANG, transport=Gateway(answer))
    with pytest.raises(RuntimeError, match="does not run"):
        config.changes()
    with config:
        changes, late = config.changes(), config.changes()
        go.set()
        found = [next(changes), next(changes)]
        assert [next(late).revision, next(late).revision] == [11, 12], "each loop gets all of them"
        closer = threading.Timer(0, config.close)
        closer.start()
        assert list(changes) == []
        closer.join()
    assert [(change.revision, [event.value for event in change]) for change in found] == [(11, ["x"]), (12, ["y"])]


def test_a_wait_ends_with_the_object() -> None:
    """Whatever the thread does at that moment: what is scheduled while its loop ends may never run."""
    for _ in range(50):
        config = ConfigDict(URL, "/c/", timeout=HANG, transport=Gateway(scripted(state(10, a="1"))))
        with config:
            changes = config.changes()
            closer = threading.Thread(target=config.close)
            closer.start()
            assert list(changes) == []
            with pytest.raises(RuntimeError, match=r"closed|does not run"):
                config.until(lambda _: False)
            closer.join()


def test_a_start_that_fails_raises() -> None:
    """A refusal at once; a gateway that is away after the timeout, with the reason. No thread is left."""
    with pytest.raises(RefusedError, match="403"):
        ConfigDict(URL, "/c/", transport=Gateway(problem(403, "forbidden"))).start()
    away = Gateway(*[httpx.ConnectError("no route")] * 99)
    with pytest.raises(TimeoutError, match="no route"):
        ConfigDict(URL, "/c/", timeout=0.05, transport=away).start()
    assert not [one for one in threading.enumerate() if one.name == "etcd-watch"]


def test_a_thread_without_a_loop_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may have no descriptor left. `start` says so, and does not wait for the thread that has ended."""

    def run(_main: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "run", run)
    failed: list[OSError] = []
    config = ConfigDict(URL, "/c/", timeout=HANG, transport=Gateway())

    def start() -> None:
        try:
            config.start()
        except OSError as error:
            failed.append(error)

    starting = threading.Thread(target=start, daemon=True)
    starting.start()
    starting.join(HANG)
    assert [error.errno for error in failed] == [errno.EMFILE]
    with pytest.raises(RuntimeError, match="the ConfigDict is closed"):
        config.synced()


def test_it_may_be_closed_before_its_thread_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does during the start. The thread ends all the same."""
    begun, go, run = threading.Event(), threading.Event(), asyncio.run

    def run_later(main: Coroutine[object, object, None]) -> None:
        begun.set()
        go.wait(HANG)
        run(main)

    monkeypatch.setattr(asyncio, "run", run_later)
    config = ConfigDict(URL, "/c/", timeout=HANG, transport=Gateway())

    def start() -> None:
        with contextlib.suppress(RuntimeError):  # it is closed
            config.start()

    starting = threading.Thread(target=start, daemon=True)
    starting.start()
    assert begun.wait(HANG)
    closing = threading.Thread(target=config.close, daemon=True)
    closing.start()
    while not config._closing:
        closing.join(0.001)
    go.set()
    closing.join(HANG)
    starting.join(HANG)
    assert not closing.is_alive()
    assert not starting.is_alive()
    assert config.state == "closed"


def test_it_starts_without_a_gateway(tmp_path: Path) -> None:
    """With a file of an earlier run the configuration is there at once, and stale."""
    file = tmp_path / "mirror"
    with ConfigDict(URL, "/c/", resume=file, timeout=HANG, transport=Gateway(scripted(state(10, a="[1]")))):
        pass
    away = Gateway(*[httpx.ConnectError("no route")] * 99)
    with ConfigDict(URL, "/c/", resume=file, decode=json.loads, transport=away) as config:
        assert (config["/c/a"], config.state) == ([1], "stale")


def test_a_callback_may_read_and_close() -> None:
    """It runs in the thread, and blocks nobody for ever."""
    seen, done = [], threading.Event()

    def look(mirror: Mirror[str, str]) -> None:
        if mirror.state == "live":
            seen.append(config.copy())
            config.close()
            done.set()

    config = ConfigDict(URL, "/c/", on_state=look, transport=Gateway(scripted(state(10, a="1"))))
    with contextlib.suppress(RuntimeError):  # closed before `start` has seen it live
        config.start()
    assert done.wait(HANG)
    assert seen == [{"/c/a": "1"}]
    config.close()


def test_two_threads_may_close_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that comes later may find the loop open, and a moment after that closed."""
    with ConfigDict(URL, "/c/", timeout=HANG, transport=Gateway(scripted(state(10)))) as config:
        changes = config.changes()
    monkeypatch.setattr(config._loop, "is_closed", lambda: False)
    config.close()
    with pytest.raises(RuntimeError, match="the ConfigDict is closed"):
        config.synced()
    assert list(changes) == []


def test_a_callback_cannot_wait() -> None:
    """It would wait for itself: an error, instead of a mirror that stands still."""
    said: list[str] = []

    def handle(_: object) -> None:
        for wait in (config.synced, config.changes, lambda: config.until(lambda mirror: len(mirror) == 2)):
            with pytest.raises(RuntimeError) as refused:
                wait()
            said.append(str(refused.value))

    gateway = Gateway(scripted(state(10, a="1"), put("/c/b", "2", 11)))
    config: ConfigDict[str, str] = ConfigDict(URL, "/c/", on_change=handle, timeout=HANG, transport=gateway)
    with config:
        config.until(lambda mirror: len(mirror) == 2, HANG)
    assert set(said) == {"a callback cannot wait for the thread that runs it; wait in another thread"}


def test_readers_never_see_half_a_transaction() -> None:
    """`copy` is of one revision, however fast the keys change."""
    number = 300
    parts = [
        put("/c/a", str(at), at, live=False, more=True) + put("/c/b", str(at), at) for at in range(11, 11 + number)
    ]
    gateway = Gateway(scripted(state(10, a="10", b="10"), *parts))
    with ConfigDict(URL, "/c/", timeout=HANG, transport=gateway) as config:
        while True:
            found = config.copy()
            assert found["/c/a"] == found["/c/b"]
            if found["/c/a"] == str(10 + number):
                break


def test_a_key_that_is_deleted_while_a_thread_reads_all() -> None:
    """`items` and `values` are of one revision: the reader has asked for no key that may be missing."""
    go = threading.Event()

    class Gated(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield state(10, a="1", b="2")
            await asyncio.to_thread(go.wait, HANG)
            yield delete("/c/a", 11) + delete("/c/b", 12)
            await asyncio.Event().wait()

    answer = httpx.Response(200, headers={"Content-Type": "application/x-ndjson"}, stream=Gated())
    with ConfigDict(URL, "/c/", timeout=HANG, transport=Gateway(answer)) as config:
        items, values = iter(config.items()), iter(config.values())
        found = [next(items), next(values)]
        go.set()
        config.until(lambda mirror: mirror.revision == 12, HANG)
        assert [*found, *items, *values] == [("/c/a", "1"), "1", ("/c/b", "2"), "2"]
        assert (list(config.items()), list(config.values()), config == {}) == ([], [], True)
