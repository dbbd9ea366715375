"""Everything that the README of the Python client shows runs as it is written."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

import pytest
from etcd_watch_client.cli import statuses
from etcd_watch_client.cli.arguments import make_parser

from tests.clients.etcd_watch import SOURCES, environment, line_of
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess
from tests.support.waiting import HANG

README = (SOURCES.parent / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
ADDRESS = "http://127.0.0.1:8080"


@pytest.mark.etcd
@pytest.mark.one_etcd
@pytest.mark.parametrize("name", ["async with Mirror(", "with ConfigDict("])
async def test_programs(server: GatewayProcess, kv: EtcdClient, name: str) -> None:
    """Both programs print the value; the mirror's goes on with the changes."""
    (program,) = (text for text in PYTHON if name in text)
    await kv.put("/svc/api/a", "hello")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-W", "error", "-c", program.replace(ADDRESS, server.base)),
        stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=environment(),
    )  # fmt: skip
    assert await line_of(process) == "hello"
    if "changes()" in program:
        revision = await kv.put("/svc/api/a", "good day")
        assert await line_of(process) == f"{revision} put /svc/api/a hello good day"
        process.kill()
    async with asyncio.timeout(HANG):
        _, err = await process.communicate()
    assert err == b""


def test_all_options_are_shown() -> None:
    """The example of options is one call, of options that exist."""
    (example,) = (text for text in PYTHON if text.startswith("Mirror("))
    names = {
        "json": __import__("json"), "Path": Path, "handle": lambda _change: None, "log": print,
        "Mirror": __import__("etcd_watch_client").Mirror,
    }  # fmt: skip
    mirror = eval(compile(example.strip(), "README.md", "eval"), names)  # noqa: S307 - the project's own README
    assert repr(mirror).startswith(
        "<Mirror of prefix=%2Fconfig%2F&prefix=%2Fflags%2F&key=%2Fleader&scope=permitted: connecting"
    )


def test_commands_are_accepted() -> None:
    """Each command line of the README is one that the program takes."""
    parser, _ = make_parser({})
    lines = [line for line in README.splitlines() if line.startswith("etcd-watch ")]
    assert len(lines) == 8
    for line in lines:
        words = shlex.split(line.partition("#")[0].partition("|")[0], comments=True)
        parser.parse_args(words[1:])


def test_exit_statuses_are_those_of_the_program() -> None:
    """The README and the help say the same."""
    shown = re.findall(r"^\| ([\d, ]+) \| (.+?)(?: \(`\w+`\))? \|$", README, re.MULTILINE)
    told = re.findall(r"^  (\d[\d, ]*?) {2,}(\S.*)$", statuses.HELP, re.MULTILINE)
    assert [(status, text.replace("`", "")) for status, text in shown] == told
