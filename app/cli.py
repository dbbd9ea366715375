"""The command line: ``serve`` runs the gateway, ``dev`` runs it with an embedded etcd and sample data, ``check`` proves
that a running gateway releases its watches, ``token`` makes a token, and ``policy`` tries a policy file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from . import __version__, descriptors, logs
from .access.token import read_token
from .ports import BrokenGatewayError
from .settings import PREFIX, Settings, SettingsError, load, named, seconds, unknown_variables
from .signals import SIGNALS, STOP
from .stdio import complain, say

logger = logging.getLogger("gateway")

T = TypeVar("T")


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
    """Return the parser. Every setting is a flag."""
    parser = argparse.ArgumentParser(prog="etcd-watch-gateway", description="Follow etcd keys over HTTP.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    # allow_abbrev=False: reject unknown flags instead of matching them as abbreviations.
    _add_settings(commands.add_parser("serve", help="run the gateway in front of an etcd", allow_abbrev=False))
    dev = commands.add_parser("dev", help="run the gateway with an embedded etcd and sample data", allow_abbrev=False)
    _add_settings(dev, without=[name for name in Settings.model_fields if name.startswith("etcd")])
    _add_check(
        commands.add_parser(
            "check",
            help="prove that a running gateway releases its watches",
            description="Open and abort streams at a running gateway, read the counts of the gateway and of etcd, and "
            "report whether every watch was released. Exit status: 0 all back, 1 a leak, 2 cannot tell.",
            allow_abbrev=False,
        )
    )
    commands.add_parser(
        "token",
        help="make a bearer token",
        description="Print a new random token for a client, and its SHA-256 for the tokens file.",
        allow_abbrev=False,
    )
    _add_policy(commands.add_parser("policy", help="check a policy file", allow_abbrev=False))
    return parser


def _add_policy(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser(
        "check",
        help="check the file and, with --as, what an identity may read",
        description="Check a policy file. With --as, list what an identity may read. With --prefix or --key, too, say "
        "whether the identity may read that. Exit status: 0 permitted, 1 denied, 2 the file or a flag is wrong.",
        allow_abbrev=False,
    )
    check.add_argument("file", type=Path, metavar="FILE", help="the policy file")
    check.add_argument("--as", dest="identity", metavar="IDENTITY", help="token:N, jwt:ISSUER#SUBJECT or proxy:N")
    for name, text in (("prefix", "prefix"), ("key", "key")):
        check.add_argument(
            f"--{name}", action="append", default=[], metavar="P", help=f"{text} to read, percent-encoded; repeatable"
        )
    check.add_argument("--keys-only", action="store_true", help="ask for the keys alone")
    check.add_argument("--role", action="append", default=[], metavar="ROLE", help="role from the token or the proxy")
    check.add_argument("--claim", action="append", default=[], metavar="NAME=VALUE", help="claim of the JWT")
    check.add_argument("--tokens-file", type=Path, metavar="FILE", help="tokens file with the roles of token:N")
    schema = actions.add_parser("schema", help="print the JSON Schema of the file", allow_abbrev=False)
    schema.add_argument("--tokens", action="store_true", help="of the tokens file instead")


def _number(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prefix", required=True, help="prefix to open streams on; choose one that nobody follows")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="URL of the gateway (default %(default)r)")
    parser.add_argument("--admin-url", help="URL of the gateway's /metrics and /v1/feeds (default: --url)")
    parser.add_argument(
        "--etcd-metrics",
        action="append",
        default=[],
        metavar="URL",
        help="metrics URLs of all etcd members that the gateway may use, comma-separated or as repeated flags "
        "(default: /metrics of the endpoint that the gateway reports)",
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="file with the gateway's bearer token")
    for name, text in (
        ("cacert", "PEM file of the CAs that sign the servers' certificates, in addition to the system's CAs"),
        ("cert", "PEM file of the client certificate that the gateway demands"),
        ("key", "PEM file of its private key, not encrypted (default: in the file of --cert)"),
    ):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=text)
    parser.add_argument(
        "--streams", type=_number, default=100, metavar="N", help="streams to open in each round (default %(default)s)"
    )
    parser.add_argument("--rounds", type=_number, default=3, metavar="N", help="number of rounds (default %(default)s)")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=120.0,
        metavar="DURATION",
        help="timeout for the streams of a round to open, and again for their release (default %(default)g s)",
    )


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end, on uvloop if it is installed."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    # uvloop has no wheel for some platforms and for new interpreters.
    with contextlib.suppress(ImportError):
        loop_factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(work())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    flags = vars(make_parser().parse_args(arguments))
    command = flags.pop("command")
    if command == "check":
        return _check(flags)
    if command in ("token", "policy"):
        return _access(command, flags)
    try:
        settings = load(flags)
        if settings.token_file is not None:
            read_token(settings.token_file, named("token_file"))
        descriptors.raise_limit()
    except SettingsError as error:
        return _refuse(error)
    logs.install(settings.log_format, settings.log_level)
    for name in unknown_variables():
        logger.warning("unknown setting in the environment, ignored", extra={"variable": name})
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
        complain(line)
    return 2


def _access(command: str, flags: dict[str, Any]) -> int:
    from .access.command import check_policy, schema, token

    try:
        if command == "token":
            text, status = token()
        elif flags["action"] == "schema":
            text, status = schema("tokens" if flags["tokens"] else "policy")
        else:
            text, status = check_policy(flags)
    except SettingsError as error:
        return _refuse(error)
    return status if say(sys.stdout, text) else 2


def _check(flags: dict[str, Any]) -> int:
    from .check.command import check, options_of

    try:
        options = options_of(flags)
    except SettingsError as error:
        return _refuse(error)
    try:
        return run(lambda: check(options))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of standard output has gone. Without this, Python would fail again when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
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
        with SIGNALS.heard_by(asyncio.get_running_loop(), told):
            await (_serve(settings) if command == "serve" else _dev(settings))
    except asyncio.CancelledError:
        if not stopped:
            raise
    logger.info("stopped")


async def _serve(settings: Settings) -> None:
    from .server.run import serve

    logger.info(
        "gateway %s",
        __version__,
        extra={
            "listen": f"{settings.host}:{settings.port}",
            "etcd": ",".join(settings.etcd),
            "scheme": "http" if settings.tls_cert is None else "https",
            # On our own server, only the setting leads to the portable sink, with TLS and without.
            "sink": "portable" if settings.sink == "portable" else "fast",
        },
    )
    await serve(settings, on_ready=_say_listening)


async def _dev(settings: Settings) -> None:
    from .dev.command import dev

    await dev(settings)


def _say_listening(ports: list[int]) -> None:
    logger.info("listening", extra=dict(zip(("port", "admin_port"), ports, strict=False)))
