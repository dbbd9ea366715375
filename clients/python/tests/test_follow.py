"""`etcd-watch follow`, `wait` and `mirror`, without a process."""

from __future__ import annotations

import argparse
import asyncio
import threading
from pathlib import Path

import pytest
from etcd_watch_client.cli.folder import Folder
from etcd_watch_client.cli.follow import Follower, keep_files
from etcd_watch_client.cli.statuses import CommandError
from playing import HANG, Gateway, scripted, state


async def test_a_folder_is_held_until_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM may come while a thread writes the files: another process must not begin beside it."""
    began, may_go_on, write = asyncio.Event(), threading.Event(), Folder.write
    loop = asyncio.get_running_loop()

    def wait_and_write(folder: Folder, entries: object) -> object:
        loop.call_soon_threadsafe(began.set)
        may_go_on.wait(HANG)
        return write(folder, entries)  # type: ignore[arg-type]

    monkeypatch.setattr(Folder, "write", wait_and_write)
    arguments = argparse.Namespace(
        gateways=["http://gateway.test"], permitted=False, cacert=None, client_cert=None, client_key=None,
        colours=False, quiet=True, exec=None, dir=str(tmp_path), strip="", once=False, min_revision=0,
    )  # fmt: skip
    follower = Follower(arguments, ["/c/"], [], None, lambda _: None, lambda _: None)
    follower._options["transport"] = Gateway(scripted(state(10, a="1")))
    keeping = asyncio.create_task(keep_files(follower))
    try:
        async with asyncio.timeout(HANG):
            await began.wait()
        keeping.cancel()
        await asyncio.sleep(0.1)  # what would give the folder up needs a few turns of the loop
        with pytest.raises(CommandError, match="another process"), Folder(tmp_path):
            pass
    finally:
        may_go_on.set()
        await asyncio.wait([keeping])
    assert keeping.cancelled()
    assert [path.name for path in (tmp_path / "current").rglob("a")] == ["a"]
    with Folder(tmp_path):
        pass
