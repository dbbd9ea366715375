"""``etcd-watch-gateway dev`` as a command: its output, and that nothing is left when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from app.core.versions import known_to_lose_events, parse_version, progress_is_trusted
from app.dev import command
from app.dev.command import dev as run_dev
from app.settings import SettingsError, load
from tests.support.embedded import find_etcd
from tests.support.gateway import environment
from tests.support.processes import processes
from tests.support.streams import watch
from tests.support.versions import real_etcds
from tests.support.waiting import HANG, eventually

pytestmark = pytest.mark.usefixtures("clean_environment")


class Dev:
    """``python -m app dev`` as a terminal runs it: in its own process group, with a scratch folder to inspect."""

    def __init__(self, process: asyncio.subprocess.Process, scratch: Path) -> None:
        self.process = process
        self.scratch = scratch
        self.text = ""

    async def ready(self) -> str:
        """Read the output until it is complete; return the URL."""
        assert self.process.stdout is not None
        async with asyncio.timeout(HANG):
            while "Ctrl-C" not in self.text:
                line = (await self.process.stdout.readline()).decode()
                assert line, await self.process.communicate()
                self.text += line
        found = re.search(r"a page +(http://127\.0\.0\.1:\d+)/", self.text)
        assert found is not None, self.text
        return found[1]

    def etcds(self) -> list[str]:
        """The processes that use the scratch folder."""
        return [command for _pid, _parent, command in processes() if str(self.scratch) in command]

    async def signal(self, number: int) -> int:
        """Send a signal to the whole group, as Ctrl-C does; return the exit status."""
        os.killpg(self.process.pid, number)
        async with asyncio.timeout(HANG):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode

    async def nothing_left(self) -> bool:
        """Assert that no process and no folder is left."""
        return self.etcds() == [] and list(self.scratch.iterdir()) == []


@contextlib.asynccontextmanager
async def dev(scratch: Path, *flags: str) -> AsyncIterator[Dev]:
    """A running ``dev``, killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "app", "dev", "--port=0", *flags),
        env=environment({"TMPDIR": str(scratch)}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield Dev(process, scratch)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.mark.etcd
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_dev(tmp_path: Path, number: int) -> None:
    """``dev`` prints what to open, serves data that changes, and ends with all that it started, streams included."""
    async with dev(tmp_path) as running:
        base = await running.ready()
        urls = re.findall(r"http://127\.0\.0\.1:\d+/[^\s']*", running.text)
        async with httpx.AsyncClient(timeout=HANG) as http:
            for url in [url for url in urls if "/v1/watch" not in url]:
                assert (await http.get(url)).status_code == 200, url
            listed = (await http.get(f"{base}/v1/kv?prefix=/svc/")).json()
        assert f"curl -N '{base}/v1/watch?prefix=/svc/'" in running.text
        assert f"{base}/v1/watch?prefix=/svc/&format=ndjson" in urls
        assert running.etcds() != []
        async with await watch(base, "prefix=/svc/") as stream:
            state = await stream.until("synced")
            changes = await stream.changes(2)
            status = await running.signal(number)
            last = (await stream.until("close"))[-1]

        assert len(listed["kvs"]) >= 10
        assert len(state) >= 10
        assert changes[0].data["key"].startswith("/svc/")
        assert last.data["reason"] == "drain"
        assert status == 0
        assert await running.nothing_left()


@pytest.mark.etcd
async def test_several_ranges_on_any_etcd(tmp_path: Path) -> None:
    """``dev`` pins its sample data: several ranges inside a pin need no progress that can be trusted."""
    async with dev(tmp_path) as running:
        base = await running.ready()
        printed = re.search(r"several +curl -N '([^']+)'", running.text)
        assert printed is not None
        url, _, query = printed[1].partition("/v1/watch?")
        assert url == base
        async with await watch(base, query) as stream:
            state = await stream.until("synced")
            changes = await stream.changes(2)
        async with httpx.AsyncClient(timeout=HANG) as http:
            feeds = (await http.get(f"{base}/v1/feeds")).json()["feeds"]
        status = await running.signal(signal.SIGTERM)

    assert state[0].data["ranges"] == ["prefix=/svc/api/", "prefix=/svc/billing/"]
    assert all(event.data["key"].startswith(("/svc/api/", "/svc/billing/")) for event in changes)
    assert [(feed["range"], feed["pinned"]) for feed in feeds] == [("prefix=/svc/", True)]
    assert status == 0


def test_pins_of_the_user_are_kept() -> None:
    """``dev`` pins its sample data only if the user has not chosen pins, not even none."""
    assert command._pinned(load({})).pin == ("/svc/",)
    assert command._pinned(load({"pin": "/config/"})).pin == ("/config/",)
    assert command._pinned(load({"pin": ""})).pin == ()


@pytest.mark.etcd
async def test_dev_with_a_token(tmp_path: Path) -> None:
    """The printed commands work as printed, and keep the token out of the terminal's scrollback."""
    token = tmp_path / "a token"
    token.write_text("s3cret\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    async with dev(scratch, "--token-file", str(token)) as running:
        await running.ready()
        command = re.search("curl -s .*", running.text)
        assert command is not None
        shell = await asyncio.create_subprocess_shell(command[0], stdout=asyncio.subprocess.PIPE)
        out, _ = await shell.communicate()
        await running.signal(signal.SIGTERM)

    assert json.loads(out)["count"] >= 10
    assert "s3cret" not in running.text


@pytest.mark.parametrize(
    ("settings", "header", "asked"),
    [
        ({"tokens_file": "tokens.yaml"}, '-H "Authorization: Bearer $TOKEN" ', True),
        ({"jwt_issuer": "https://id.example", "jwt_audience": "a"}, '-H "Authorization: Bearer $TOKEN" ', True),
        ({"token_file": "a token"}, "-H \"Authorization: Bearer $(cat 'a token')\" ", False),
        ({"policy_file": "policy.yaml"}, "", False),
        ({}, "", False),
    ],
)
def test_commands_send_the_token(
    capsys: pytest.CaptureFixture[str], settings: dict[str, str], header: str, asked: bool
) -> None:
    """Each way of access control by bearer tokens is in the printed commands, and the shell asks for a token once."""
    command._say(load(settings), [8080], "http://127.0.0.1:2379")
    said = capsys.readouterr().out

    assert f"curl -N {header}'http://127.0.0.1:8080/v1/watch?prefix=/svc/'" in said
    assert said.count("curl ") == said.count(f" {header}'http") == 4
    assert ("read -rs TOKEN" in said) == asked


@pytest.mark.etcd
async def test_dev_killed(tmp_path: Path) -> None:
    """kill -9 leaves no time to clean up, but the etcd of ``dev`` and its folder go nevertheless."""
    async with dev(tmp_path) as running:
        await running.ready()
        assert running.etcds() != []
        status = await running.signal(signal.SIGKILL)

        assert status == -signal.SIGKILL
        await eventually(running.nothing_left)


@pytest.mark.etcd
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_dev_interrupted_while_it_starts(tmp_path: Path, number: int) -> None:
    """``dev`` that is interrupted while it starts leaves nothing, and ends with success."""
    async with dev(tmp_path) as running:

        async def etcd_is_starting() -> bool:
            return any("--data-dir" in command for command in running.etcds())

        await eventually(etcd_is_starting)
        status = await running.signal(number)

        assert status == 0
        await eventually(running.nothing_left)


async def test_a_port_in_use_is_reported_before_etcd_starts(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """Otherwise the error comes after the seconds in which etcd starts and stops."""
    monkeypatch.setattr(command, "EmbeddedEtcd", None)
    with pytest.raises(SettingsError, match="cannot listen on"):
        await run_dev(load({"port": taken}))


@pytest.mark.etcd
async def test_dev_with_a_port_in_use(tmp_path: Path, taken: int) -> None:
    """A port in use gives the error of ``serve``, and leaves no etcd."""
    async with dev(tmp_path, "--port", str(taken), "--log-level", "error") as running:
        async with asyncio.timeout(HANG):
            _out, error = await running.process.communicate()

        assert running.process.returncode == 2
        assert f"GATEWAY_PORT (--port): cannot listen on 127.0.0.1:{taken}: Address already in use" in error.decode()
        assert "Traceback" not in error.decode()
        assert await running.nothing_left()


@pytest.mark.etcd
async def test_dev_without_a_reader(tmp_path: Path) -> None:
    """``dev`` survives a closed output, and SIGHUP, which a closing terminal sends, ends it in order."""
    process = await asyncio.create_subprocess_shell(
        f"exec {sys.executable} -W error -m app dev --port=0 --log-format=json >/dev/full",
        env=environment({"TMPDIR": str(tmp_path)}),
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    said: list[str] = []
    async with asyncio.timeout(HANG):
        while "standard output cannot be written" not in said:
            said.append(json.loads(await process.stderr.readline())["message"])
        process.send_signal(signal.SIGHUP)
        _out, rest = await process.communicate()

    assert process.returncode == 0
    assert json.loads(rest.splitlines()[-1])["message"] == "stopped"
    assert next(tmp_path.iterdir(), None) is None  # noqa: ASYNC240  # a folder of a test


@pytest.mark.etcd
async def test_the_first_look_is_calm(tmp_path: Path) -> None:
    """With an etcd on the PATH whose progress is trusted, and default settings, ``dev`` logs no warning: its user can
    change neither that etcd's version nor the limit of open files. The warnings of ``serve`` are there as information.
    """
    newest = max(real_etcds(), key=lambda candidate: parse_version(candidate.version))
    if not progress_is_trusted(parse_version(newest.version)):
        pytest.skip("NOT RUN: dev's first look: no etcd here has a progress that is trusted")
    path = f"{find_etcd(newest.folder).parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_shell(
        f"ulimit -n 1000 && exec {sys.executable} -W error -m app dev --port=0 --log-format=json",
        env=environment({"TMPDIR": str(tmp_path), "PATH": path}),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    lines: list[dict[str, str]] = []
    async with asyncio.timeout(HANG):
        while not lines or lines[-1]["message"] != "etcd is ready":
            lines.append(json.loads(await process.stderr.readline()))
        process.terminate()
        _out, rest = await process.communicate()
    lines += map(json.loads, rest.splitlines())

    assert [line for line in lines if line["level"] not in ("info", "debug")] == []
    said = [line["message"] for line in lines if "can lose a delete" in line["message"]]
    assert bool(said) == known_to_lose_events(parse_version(newest.version))


@pytest.mark.process
def test_dev_without_a_place_for_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a place for its data, ``dev`` prints one line that names what is missing; no traceback."""

    def refuse(**_more: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(SettingsError, match="cannot create a folder for etcd's data: No usable temporary directory"):
        asyncio.run(run_dev(load({"port": "0"})))


@pytest.mark.process
@pytest.mark.parametrize(("version", "warned"), [("3.5.1", True), ("3.5.16", False)])
async def test_an_etcd_whose_progress_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, version: str, warned: bool
) -> None:
    """For an etcd whose progress is not trusted, ``dev`` prints what that means for a user who tries the gateway."""
    binary = tmp_path / "etcd"
    binary.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\n")
    binary.chmod(0o755)
    monkeypatch.setattr("app.dev.command.find_etcd", lambda: binary)
    with caplog.at_level(logging.WARNING, "gateway.dev"), pytest.raises(SettingsError, match="did not start"):
        await run_dev(load({"port": "0"}))

    assert ("begin with a reset" in caplog.text) == warned
