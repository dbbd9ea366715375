"""The command line: its commands, flags, help and hints. It parses, and runs nothing."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .settings import Settings
from .settings_text import SECTIONS, flag_of, form_of, text_of, variable_of
from .stdio import say
from .units import seconds

PROGRAM = "etcd-watch-gateway"

_EXAMPLES = f"""\
examples:
  {PROGRAM} dev                                 try it: an embedded etcd and sample data
  {PROGRAM} serve --etcd http://127.0.0.1:2379  run it in front of your etcd
  {PROGRAM} config check                        are the settings right? starts nothing
  {PROGRAM} check --prefix /probe/              does the running gateway release its watches?

{PROGRAM} COMMAND --help explains a command."""

_SETTINGS = """\
Every flag is also an environment variable: --max-feeds 500 is GATEWAY_MAX_FEEDS=500. A flag overrides the variable.
Write a DURATION as 30, 30s, 500ms, 5m or 1h, a SIZE as 65536, 64KiB, 16MiB or 1GiB, and a LIST with commas."""

_SERVE = f"""\
examples:
  {PROGRAM} serve --etcd http://etcd-0:2379,http://etcd-1:2379,http://etcd-2:2379
  {PROGRAM} serve --host '' --allow-prefixes /svc/,/config/ --token-file /run/secrets/token
  {PROGRAM} serve --tls-cert tls.crt --tls-key tls.key --tokens-file tokens.yaml --policy-file policy.yaml"""

_DEV = """\
Run the gateway with an embedded etcd and sample data. dev follows no other gateway (--upstream is refused), and is
always one process (--workers has no effect)."""

_CHECK = """\
Open and abort streams at a running gateway, read the counts of the gateway and of etcd, and report whether every watch
was released. Exit status: 0 all back (every watch was released), 1 a leak, 2 cannot tell.

With --through, follow streams through a proxy and without it for three heartbeats (45 s), and report what the proxy
does to them. Exit status: 0 no fault, 1 a fault, 2 cannot tell."""

_CHECKS = f"""\
examples:
  {PROGRAM} check --prefix /probe/
  {PROGRAM} check --prefix /svc/ --through https://gateway.example.com --url http://10.0.0.7:8080
  {PROGRAM} check --prefix /probe/ --through https://gateway.example.com --put 'etcdctl put /probe/a 1' --for 5m"""

_CONFIG_CHECK = """\
Check the settings as serve does at its start: the environment, the flags, and the files that they name (tokens, policy,
keys of JWTs, TLS certificates, etcd's credentials). Print every setting, its value, and where the value comes from.
Start nothing, and send nothing.

Exit status: 0 serve would start with these settings, 2 a setting or a file is wrong."""

_CONFIG = f"""\
examples:
  {PROGRAM} config check                         the environment of this shell
  {PROGRAM} config check --max-feeds 500         and a flag, as serve would get it
  env $(cat gateway.env) {PROGRAM} config check  a file of variables, before it is rolled out"""


class Parser(argparse.ArgumentParser):
    """argparse with hints for words that are almost right. It rejects abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Keep the words for the hints: argparse reports a missing flag before a misspelt one."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help. argparse ignores a write that fails.

        Raises:
            OutputError: standard output cannot be written.
        """
        if file is sys.stdout:
            say(message)
        else:
            super()._print_message(message, file)

    def require_command_first(self, words: Sequence[str]) -> None:
        """Refuse a flag before the command: argparse would take the flag's value for the command."""
        flag = words[0].partition("=")[0] if words else ""
        if flag.startswith("-") and flag not in self._option_string_actions:
            self.error(f"{flag} is before the command; write the command first ({', '.join(self._commands())})")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, what was probably meant, and where help is."""
        self.exit(2, f"{self.prog}: error: {message}{self._hint(message)}\nTry: {self.prog} --help\n")

    def _hint(self, message: str) -> str:
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if message.endswith("required: command"):
            return f" ({', '.join(self._commands())})"
        if choice is not None:
            words, known = [choice[1]], re.findall(r"[\w-]+", choice[2])
        else:
            known = [name for action in self._actions for name in action.option_strings]
            said = message if "unrecognized" in message else " ".join(self._given) if "required" in message else ""
            words = [word for word in re.findall(r"(?<!\S)--[\w-]+", said) if word not in known]
        near = [match for word in words for match in difflib.get_close_matches(word, known, 1)]
        return f"; did you mean {near[0]}?" if near else ""

    def _commands(self) -> list[str]:
        return [
            name for action in self._actions if action.dest in ("command", "action") for name in action.choices or ()
        ]


class _Help(argparse.HelpFormatter):
    """argparse's own, but for texts: paragraphs are filled one by one, and indented lines stay as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            part if "\n " in part else textwrap.fill(" ".join(part.split()), width, initial_indent=indent)
            for part in text.split("\n\n")
        )


def parse(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the command and its flags. A wrong command line ends the program with status 2."""
    parser, commands = make_parser()
    parser.require_command_first(sys.argv[1:] if words is None else words)
    arguments, unknown = parser.parse_known_args(words)
    flags: dict[str, Any] = vars(arguments)
    # `config` and `policy` have commands of their own.
    chosen = commands.get(f"{flags['command']} {flags.get('action')}", commands[flags["command"]])
    if unknown:
        chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
    return flags


def make_parser() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser, and the parser of each command by the command's words."""
    parser = Parser(prog=PROGRAM, description="Follow etcd keys over HTTP.", epilog=_EXAMPLES)
    parser.add_argument("--version", action="version", version=__version__, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", title="commands")
    serve = commands.add_parser(
        "serve",
        help="run the gateway in front of an etcd",
        usage=f"{PROGRAM} serve [--SETTING VALUE ...]",
        description=f"Run the gateway in front of an etcd.\n\n{_SETTINGS}",
        epilog=_SERVE,
    )
    _add_settings(serve)
    dev = commands.add_parser(
        "dev",
        help="run the gateway with an embedded etcd and sample data",
        usage=f"{PROGRAM} dev [--SETTING VALUE ...]",
        description=f"{_DEV}\n\n{_SETTINGS}",
    )
    _add_settings(dev, without=[name for name in Settings.model_fields if name.startswith("etcd")])
    _add_check(
        commands.add_parser(
            "check",
            help="prove that a running gateway releases its watches, or see what a proxy does to streams",
            description=_CHECK,
            epilog=_CHECKS,
        )
    )
    config = _add_config(commands.add_parser("config", help="check the settings, and start nothing"))
    commands.add_parser(
        "token",
        help="make a bearer token",
        description="Print a new random token for a client, and its SHA-256 for the tokens file.",
    )
    policy = _add_policy(commands.add_parser("policy", help="check a policy file, or print its schema"))
    commands.add_parser("version", help="print the version", description="Print the version.")
    return parser, {**commands.choices, **config, **policy}


class _Once(argparse.Action):
    """Refuses a list that is given twice. By default the second flag replaces the first, and ``--pin /a/ --pin /b/``
    means both.
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if hasattr(namespace, self.dest):
            parser.error(f"argument {option}: is given twice; give it once, with commas between the items")
        setattr(namespace, self.dest, values)


def _add_settings(parser: Parser, *, without: Sequence[str] = ()) -> None:
    group: Any = parser
    for name, field in Settings.model_fields.items():
        if name in SECTIONS:
            group = parser.add_argument_group(SECTIONS[name])
        if name in without:
            continue
        default, form = text_of(name, field.default), form_of(name)
        group.add_argument(
            flag_of(name),
            dest=name,
            action=_Once if form == "LIST" else "store",
            default=argparse.SUPPRESS,
            metavar=form,
            help=f"{field.description}{f' (default {default})' if default else ''}; {variable_of(name)}",
        )


def _add_config(parser: Parser) -> dict[str, Parser]:
    actions = parser.add_subparsers(dest="action", required=True, metavar="command", title="commands")
    check = actions.add_parser(
        "check",
        help="print the settings and their sources, and read all their files",
        usage=f"{PROGRAM} config check [--SETTING VALUE ...]",
        description=f"{_CONFIG_CHECK}\n\n{_SETTINGS}",
        epilog=_CONFIG,
    )
    _add_settings(check)
    return {"config check": check}


def _add_policy(parser: Parser) -> dict[str, Parser]:
    actions = parser.add_subparsers(dest="action", required=True, metavar="command", title="commands")
    check = actions.add_parser(
        "check",
        help="check the file and, with --as, what an identity may read",
        description="Check a policy file. With --as, list what an identity may read. With --as and --prefix or --key, "
        "report\nwhether the identity may read that range.\n\n"
        "Exit status: 0 permitted, 1 denied, 2 the file or a flag is wrong.",
    )
    check.add_argument("file", type=Path, metavar="FILE", help="the policy file")
    named = "token:NAME, jwt:ISSUER#SUBJECT, proxy:NAME, anonymous or static-token"
    check.add_argument("--as", dest="identity", metavar="IDENTITY", help=named)
    for name, text in (("prefix", "prefix"), ("key", "key")):
        check.add_argument(
            f"--{name}", action="append", default=[], metavar="P", help=f"{text} to read, percent-encoded; repeatable"
        )
    check.add_argument("--keys-only", action="store_true", help="ask for the keys alone")
    check.add_argument("--role", action="append", default=[], metavar="ROLE", help="role from the token or the proxy")
    check.add_argument("--claim", action="append", default=[], metavar="NAME=VALUE", help="claim of the JWT")
    check.add_argument("--tokens-file", type=Path, metavar="FILE", help="tokens file with the roles of token:NAME")
    schema = actions.add_parser(
        "schema",
        help="print the JSON Schema of the file",
        description="Print the JSON Schema of a policy file, or of a tokens file.",
    )
    schema.add_argument("--tokens", action="store_true", help="print the schema of the tokens file")
    return {"policy check": check, "policy schema": schema}


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        msg = f"invalid number: {text!r}; use digits only, at least 1"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _duration(text: str) -> float:
    try:
        return float(seconds(text))
    except ValueError:
        msg = f"invalid duration: {text!r}; use seconds, or 500ms, 30s, 5m, 1h"
        raise argparse.ArgumentTypeError(msg) from None


def _add_check(parser: Parser) -> None:
    parser.add_argument("--prefix", required=True, help="prefix to open streams on; choose one that nobody follows")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="URL of the gateway (default %(default)s)")
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
        type=_duration,
        default=120.0,
        metavar="DURATION",
        help="timeout for the streams of a round to open, and again for their release (default %(default)g s)",
    )
    parser.add_argument("--through", default="", metavar="URL", help="URL of the proxy whose effect is measured")
    parser.add_argument(
        "--put",
        default="",
        metavar="COMMAND",
        help="with --through: a shell command that changes a key of the prefix. It is run five times, so that the "
        "latency of events is measured even if nothing else changes",
    )
    parser.add_argument(
        "--for",
        type=_duration,
        default=0.0,
        metavar="DURATION",
        help="with --through: how long to measure, for example while you restart a gateway (default: three heartbeats)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
