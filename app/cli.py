"""The program: runs the command of the command line, and returns its exit status."""

from __future__ import annotations

import asyncio
import logging
import os
import traceback
from collections.abc import Sequence
from typing import Any

from . import __version__, descriptors, logs
from .access.token import read_token
from .allocator import importing
from .arguments import parse
from .event_loop import run
from .memory_limit import warn_of_small_limit
from .ports import BrokenGatewayError
from .settings import Settings, SettingsError, load, named, unknown_variables
from .settings_text import likely_meant
from .signals import SIGNALS, STOP
from .stdio import OutputError, print_error, say

logger = logging.getLogger("gateway")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    try:
        flags = parse(arguments)
        command = flags.pop("command")
        return _run(command, flags) if command in ("serve", "dev") else _answer(command, flags)
    except SettingsError as error:
        return _refuse(error)
    except OutputError as error:
        if str(error):
            print_error(str(error))
        return 2


def _run(command: str, flags: dict[str, Any]) -> int:
    try:
        settings = load(flags)
        if settings.token_file is not None:
            read_token(settings.token_file, named("token_file"))
        descriptors.raise_limit()
    except SettingsError as error:
        return _refuse(error)
    logs.install(settings.log_format, settings.log_level)
    for name in unknown_variables():
        meant = likely_meant(name)
        hint = {"did_you_mean": meant} if meant else {}
        logger.warning("unknown setting in the environment, ignored", extra={"variable": name, **hint})
    try:
        run(lambda: _work(command, settings))
    except SettingsError as error:
        logs.flush()
        return _refuse(error)
    except BrokenGatewayError as error:
        logger.critical("ended: %s", error)
        return 1
    finally:
        SIGNALS.ignore()
        logs.finish()
    return 0


def _refuse(error: SettingsError) -> int:
    for line in str(error).splitlines():
        print_error(line)
    return 2


def _answer(command: str, flags: dict[str, Any]) -> int:
    """Run a command that ends by itself.

    Raises:
        SettingsError: a flag or a file is wrong.
        OutputError: standard output cannot be written.
    """
    if command == "version":
        say(f"{__version__}\n")
        return 0
    if command == "check":
        return _check(flags)
    if command == "config":
        return _config(flags)
    return _access(command, flags)


def _access(command: str, flags: dict[str, Any]) -> int:
    from .access.command import check_policy, schema, token

    if command == "token":
        text, status = token()
    elif flags["action"] == "schema":
        text, status = schema("tokens" if flags["tokens"] else "policy")
    else:
        text, status = check_policy(flags)
    say(text)
    return status


def _config(flags: dict[str, Any]) -> int:
    from .config import check_config

    del flags["action"]  # `check` is the only one
    report = check_config(load(flags), flags, os.environ)
    try:
        say(report.text)
    finally:
        for line in report.notes:
            print_error(line)
    return report.status


def _check(flags: dict[str, Any]) -> int:
    with importing():
        from .check.command import check
        from .check.options import options_of

    options = options_of(flags)
    try:
        return run(lambda: check(options))
    except KeyboardInterrupt:
        return 130
    except OutputError:
        raise
    except Exception:  # an uncaught exception would exit with 1, which means a leak
        traceback.print_exc()
        return 2


async def _work(command: str, settings: Settings) -> None:
    """Run until the command ends or a signal stops it. A signal during the start ends it in order, too."""
    task = asyncio.current_task()
    assert task is not None, "runs as a task"
    stopped = False

    def told(number: int) -> None:
        nonlocal stopped
        # `serve` ignores a SIGHUP here: the files that it reloads are about to be read anyway. Only the first stop
        # cancels: a second cancel would interrupt the cleanup.
        if not stopped and (number in STOP or command == "dev" or SIGNALS.terminal_gone):
            stopped = True
            task.cancel()

    try:
        with SIGNALS.deliver_to(asyncio.get_running_loop(), told):
            await (_serve(settings) if command == "serve" else _dev(settings))
    except asyncio.CancelledError:
        if not stopped:
            raise
    logger.info("stopped")


async def _serve(settings: Settings) -> None:
    from .workers.count import worker_count

    count = worker_count(settings.workers)
    logger.info(
        "gateway %s",
        __version__,
        extra={
            "listen": f"{settings.host}:{settings.port}",
            **({"upstream": ",".join(settings.upstream)} if settings.upstream else {"etcd": ",".join(settings.etcd)}),
            "scheme": "http" if settings.tls_cert is None else "https",
            # On our own server, only the setting leads to the portable sink, with TLS and without.
            "sink": "portable" if settings.sink == "portable" else "fast",
            **({"workers": count} if count > 1 else {}),
        },
    )
    warn_of_small_limit(settings, count)
    if count > 1:
        with importing():
            from .workers.hub import serve as serve_by_workers
        await serve_by_workers(settings, count, on_ready=_say_listening)
        return
    with importing():
        from .server.run import serve
    await serve(settings, on_ready=_say_listening)


async def _dev(settings: Settings) -> None:
    with importing():
        from .dev.command import dev
    await dev(settings)


def _say_listening(ports: list[int]) -> None:
    logger.info("listening", extra=dict(zip(("port", "admin_port"), ports, strict=False)))
