"""`etcd-watch`: runs a command, and ends with a status that says what happened."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx

from ..credentials import Token
from ..errors import RefusedError
from ..selection import Selection, base_url
from . import follow, get, statuses
from .arguments import Parser, make_parser, ranges
from .completion import COMPLETE, SCRIPTS, candidates
from .statuses import CommandError
from .streams import open_closed_streams, report, write


def entry() -> None:
    """Run as the console script does."""
    open_closed_streams()
    sys.exit(main(sys.argv[1:]))


def main(words: list[str]) -> int:
    """Run a command and return the exit status."""
    try:
        return answer(words)
    except KeyboardInterrupt:
        return statuses.INTERRUPTED
    except asyncio.CancelledError:  # SIGTERM or SIGHUP
        return statuses.TERMINATED
    except BrokenPipeError:  # `| head` has closed the pipe
        return statuses.BROKEN_PIPE
    except CommandError as error:
        report(str(error))
        return error.status
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        report(f"the request cannot be sent: {error}")
        return statuses.USAGE
    except OSError as error:
        report(str(error) if error.filename is None else f"cannot use {error.filename}: {error.strerror}")
        return statuses.LOCAL


def answer(words: list[str]) -> int:
    """Run a command and return the exit status. Raises what went wrong."""
    parser, commands = make_parser(os.environ)
    if words[:1] == [COMPLETE]:
        write("".join(f"{one}\n" for one in candidates(parser, commands, words[1:])).encode())
        return statuses.DONE
    parser.require_command_first(words)
    arguments, unknown = parser.parse_known_args(words)
    chosen = commands[arguments.command]
    if unknown:
        chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.command == "completion":
        write(SCRIPTS[arguments.shell].encode())
        return statuses.DONE
    prepare(chosen, arguments)
    try:
        return asyncio.run(run(arguments))
    except RefusedError as error:
        msg = f"the gateway refuses: {error}{hint(error, arguments)}"
        raise CommandError(msg, statuses.REFUSED) from None


def hint(error: RefusedError, arguments: argparse.Namespace) -> str:
    """Return what a user of this command can do about a refusal."""
    prefixes, keys = ranges(arguments)
    if error.code == "unauthorized":
        return "; give the token with --token-file or ETCD_WATCH_TOKEN"
    has_parts = prefixes or len(keys) > 1
    if error.code == "forbidden" and has_parts and not arguments.permitted:
        return "; --permitted takes only what you may read"
    return ""


def prepare(parser: Parser, arguments: argparse.Namespace) -> None:
    """Find what is wrong with the arguments before anything starts."""
    arguments.gateways = arguments.gateways or arguments.default_gateways
    arguments.colours = arguments.color == "always" or (arguments.color == "auto" and sys.stdout.isatty())
    prefixes, keys = ranges(arguments)
    if arguments.client_key is not None and arguments.client_cert is None:
        parser.error("--client-key needs --client-cert, the certificate that it belongs to")
    try:
        arguments.gateways = [base_url(url) for url in arguments.gateways]
        Selection.of(prefixes, keys)
    except ValueError as error:
        parser.error(str(error))


async def run(arguments: argparse.Namespace) -> int:
    """Run the command of the arguments. SIGTERM ends it like Ctrl-C does: what is open is closed."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):  # a terminal that closes sends SIGHUP
        if signal.getsignal(number) is not signal.SIG_IGN:  # as below `nohup`
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    prefixes, keys = ranges(arguments)
    token: Token | None = arguments.token
    if arguments.token_file is not None:
        token = Path(arguments.token_file)
    if arguments.command == "get":
        return await get.run(arguments, prefixes, keys, token, write)
    follower = follow.Follower(arguments, prefixes, keys, token, write, report)
    if arguments.command == "follow":
        table_wanted = sys.stdout.isatty() and not arguments.json and arguments.exec is None
        return await follow.follow(follower, table_wanted=table_wanted)
    if arguments.command == "wait":
        return await follow.wait(follower)
    return await follow.keep_files(follower)
