"""The command line: ``serve`` runs the gateway, ``dev`` runs it with an etcd of its own and something to see."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from app import __version__, logs
from app.settings import PREFIX, Settings, SettingsError, load, unknown_variables

log = logging.getLogger("gateway")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_settings(parser: argparse.ArgumentParser, *, without: Sequence[str] = ()) -> None:
    for name, field in Settings.model_fields.items():
        if name in without:
            continue
        default = "" if field.default is None else f" (default {_plain(field.default)!r})"
        parser.add_argument(
            _flag(name),
            dest=name,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=f"{field.description}{default}; {PREFIX}{name.upper()}",
        )


def _plain(default: Any) -> Any:
    return ",".join(default) if isinstance(default, tuple) else default


def make_parser() -> argparse.ArgumentParser:
    """The parser: every setting is a flag."""
    parser = argparse.ArgumentParser(prog="etcd-watch-gateway", description="Follow etcd keys over HTTP.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    # A flag that is none must not be taken for the beginning of another.
    _add_settings(commands.add_parser("serve", help="run the gateway in front of an etcd", allow_abbrev=False))
    dev = commands.add_parser("dev", help="run the gateway with an embedded etcd and sample data", allow_abbrev=False)
    _add_settings(dev, without=[name for name in Settings.model_fields if name.startswith("etcd")])
    return parser


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine to its end, on uvloop where there is one."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    # uvloop has no wheel for some platforms and new interpreters.
    with contextlib.suppress(ImportError):
        loop_factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(work())


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit status."""
    flags = vars(make_parser().parse_args(arguments))
    command = flags.pop("command")
    try:
        settings = load(flags)
        settings.token()
    except SettingsError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"etcd-watch-gateway: {line}\n")
        return 2
    logs.install(settings.log_format, settings.log_level)
    for name in unknown_variables():
        log.warning("unknown setting in the environment, ignored", extra={"variable": name})
    try:
        run(lambda: _work(command, settings))
    except SettingsError as error:
        sys.stderr.write(f"etcd-watch-gateway: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


async def _work(command: str, settings: Settings) -> None:
    if command == "serve":
        from app.server import serve

        log.info(
            "gateway %s",
            __version__,
            extra={"listen": f"{settings.host}:{settings.port}", "etcd": ",".join(settings.etcd)},
        )
        await serve(settings, on_ready=_say_listening)
        log.info("stopped")
    else:
        from app.dev import dev

        await dev(settings)


def _say_listening(ports: list[int]) -> None:
    log.info("listening", extra=dict(zip(("port", "admin_port"), ports, strict=False)))
