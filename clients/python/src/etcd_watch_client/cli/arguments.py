"""The command line of `etcd-watch`, as argparse reads it. Pure but for the environment that is passed in."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from .. import __version__
from .statuses import HELP as STATUSES
from .streams import PROGRAM, complain, write

GATEWAY = "http://127.0.0.1:8080"

_DESCRIPTION = f"""\
Follow keys of etcd through etcd-watch-gateway.

read:
  {PROGRAM} get /config/greeting             the value of a key
  {PROGRAM} get /config/                     all keys under a prefix

follow:
  {PROGRAM} follow /config/                  a live table; in a pipe, a line per change
  {PROGRAM} follow /config/ --exec ./reload  run a command for each change
  {PROGRAM} wait /jobs/7/done --timeout 5m   until a key exists
  {PROGRAM} mirror /etc/app /config/         keep the keys as files

A path that ends with "/" is a prefix, any other path is one key; --prefix and --key say it explicitly.
'' is the prefix of all keys. Every command reconnects by itself, to any gateway that answers."""

_ENVIRONMENT = f"""\
environment:
  ETCD_WATCH_GATEWAY     the gateways, separated by commas; the default is {GATEWAY}
  ETCD_WATCH_TOKEN       the bearer token
  ETCD_WATCH_CACERT      the certificates to trust
  NO_COLOR               never use colours"""

_EXAMPLES = {
    "get": """\
examples:
  etcd-watch get /config/greeting             the value, and nothing else
  etcd-watch get /config/                     key and value, a line per key
  etcd-watch get /config/ --json | jq .value  with revisions, as JSON
  etcd-watch get /config/ --keys              only the names
  etcd-watch get /config/ --min-revision 47   not older than your own write""",
    "follow": """\
examples:
  etcd-watch follow /config/                          a live table
  etcd-watch follow /config/ /flags/ --json | jq .    a line of JSON per change (a transaction is one change)
  etcd-watch follow '' --permitted --latest 1s        what you may read of all keys, at most one change a second
  etcd-watch follow /config/ --exec 'jq . >> log'     the command gets the change on its stdin
  etcd-watch follow /config/ --exec ./apply --resume /var/lib/apply.json
        The commands run one at a time, in order. A command that fails is run again. With --resume, the next start
        continues with the first change for which the command has not succeeded: none is lost while etcd has the
        history. The first change, and one after a longer absence, has the differences, and "reset" says why.

The command's environment has ETCD_WATCH_REVISION and ETCD_WATCH_RESET.""",
    "wait": """\
examples:
  etcd-watch wait /leader                             until the key exists; prints its value
  etcd-watch wait /jobs/7/state --value done          until it has this value
  etcd-watch wait /jobs/7/lock --absent --timeout 30s
  etcd-watch wait /config/ --revision 4711            until everything up to a revision has arrived""",
    "mirror": """\
examples:
  etcd-watch mirror /etc/app /config/ --strip /config/
        The value of /config/a/b is in /etc/app/current/a/b. "current" is a symlink that moves to a new folder at once:
        a reader that resolves it first never sees half of a transaction.
  etcd-watch mirror /etc/app /config/ --exec 'nginx -s reload'
  etcd-watch mirror /etc/app /config/ --once          write the files and end, as an init container does

A key whose name cannot be a path inside of the folder ("..", empty parts, a file that must also be a folder) is refused
and named; the others are written.""",
    "completion": """\
examples:
  eval "$(etcd-watch completion bash)"                                        in ~/.bashrc
  eval "$(etcd-watch completion zsh)"                                         in ~/.zshrc, after compinit
  etcd-watch completion fish > ~/.config/fish/completions/etcd-watch.fish""",
}


_PROSE = re.compile(r"^( {8}|)\S.*(?:\n\1\S.*)*", re.MULTILINE)


class _Help(argparse.HelpFormatter):
    """argparse's own, but for texts: prose is filled to the terminal's width, and examples stay as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        def fill(found: re.Match[str]) -> str:
            margin = indent + found[1]
            return textwrap.fill(
                " ".join(found[0].split()), width, initial_indent=margin, subsequent_indent=margin,
                break_on_hyphens=False, break_long_words=False,
            )  # fmt: skip

        return _PROSE.sub(fill, text)


class Parser(argparse.ArgumentParser):
    """argparse with hints for words that are almost right."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help, or an error. argparse's own ignores a write that fails."""
        if file is sys.stdout:
            write(message.encode())
        else:
            complain(message)

    def options(self) -> list[str]:
        """Return the names of all options."""
        return sorted(name for action in self._actions for name in action.option_strings)

    def commands(self) -> list[str]:
        """Return the names of all commands."""
        return [name for action in self._actions if action.dest == "command" for name in action.choices or ()]

    def choices_of(self, option: str) -> list[str] | None:
        """Return what may follow an option: None if nothing does."""
        for action in self._actions:
            if option in action.option_strings and action.nargs != 0:
                return [str(one) for one in action.choices or []]
        return None

    def require_command_first(self, words: Sequence[str]) -> None:
        """Refuse an option before the command: argparse would take the option's value for the command."""
        option = words[0].partition("=")[0] if words else ""
        if option.startswith("-") and option not in self._option_string_actions:
            self.error(f"{option} is before the command; write the command first ({', '.join(self.commands())})")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, what was probably meant, and where help is."""
        unknown = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        known = re.findall(r"[\w-]+", unknown[2]) if unknown else self.options()
        wrong = [unknown[1]] if unknown else re.findall(r"--?[\w-]+", message) if "unrecognized" in message else []
        if message.endswith("required: COMMAND"):
            message += f" ({', '.join(self.commands())})"
        near = [match for word in wrong for match in difflib.get_close_matches(word, known, 1)]
        hint = f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: {message.partition(' (choose from')[0]}{hint}\nTry: {self.prog} --help\n")


def seconds(text: str) -> float:
    """Return a duration: ``30``, ``30s``, ``500ms``, ``5m``, ``1h``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text)
    if match is None:
        msg = f"{text!r} is not a duration; write 30s, 500ms, 5m or 1h"
        raise argparse.ArgumentTypeError(msg)
    return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[match[2] or "s"]


def interval(text: str) -> float:
    """Return the seconds of ``--latest``."""
    found = seconds(text)
    if not 0.05 <= found <= 60:
        msg = f"{text!r} is not an interval that the gateway takes; write 50ms to 60s"
        raise argparse.ArgumentTypeError(msg)
    return found


def revision(text: str) -> int:
    """Return a revision."""
    if not re.fullmatch("[0-9]+", text):
        msg = f"{text!r} is not a revision of etcd; write a number, as the gateway and etcdctl print it"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def make_parser(environment: Mapping[str, str]) -> tuple[Parser, dict[str, Parser]]:
    """Return the parser, and the parser of each command."""
    parser = Parser(
        prog=PROGRAM, description=_DESCRIPTION, epilog=f"{_ENVIRONMENT}\n\n{STATUSES}", usage=f"{PROGRAM} COMMAND …"
    )
    parser.add_argument(
        "--version", action="version", version=f"{PROGRAM} {__version__}", help="print the version and exit"
    )
    common = _common(environment)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands", prog=PROGRAM)

    def command(name: str, brief: str, *parents: Parser, words: str = "PATH …") -> Parser:
        return subparsers.add_parser(
            name,
            help=brief,
            usage=f"{PROGRAM} {name} {words}" + (" [options]" if parents else ""),
            description=brief.capitalize() + ".",
            parents=list(parents),
            epilog=_EXAMPLES[name],
        )

    get = command("get", "print keys and values, and end", common)
    _paths(get)
    get.add_argument("--json", action="store_true", help="a JSON object per key, with its revisions")
    get.add_argument("--keys", action="store_true", help="only the names")
    _least(get)
    get.add_argument(
        "--timeout",
        type=seconds,
        default=10.0,
        metavar="TIME",
        help="for all gateways together (10s)",
    )

    follow = command("follow", "follow keys: a live table, lines, or a command for each change", common)
    _paths(follow)
    follow.add_argument("--json", action="store_true", help="a line of JSON per change")
    follow.add_argument(
        "--latest", type=interval, metavar="TIME",
        help="at most one change in this time, with the newest value of each key (500ms, 10s)",
    )  # fmt: skip
    _exec(follow, "run CMD in a shell for each change, with the change as JSON on its stdin")
    _least(follow)
    follow.add_argument("--resume", metavar="FILE", help="keep the position and the state in FILE, and continue there")

    wait = command("wait", "wait until a key exists, has a value, or a revision is reached", common)
    _paths(wait)
    until = wait.add_mutually_exclusive_group()
    until.add_argument("--value", metavar="TEXT", help="until a key has this value")
    until.add_argument("--absent", action="store_true", help="until no such key exists")
    until.add_argument("--revision", type=revision, metavar="N", help="until revision N is reached")
    wait.add_argument("--timeout", type=seconds, metavar="TIME", help="give up after this time, with status 124")

    mirror = command("mirror", "keep keys as files, all of them of one revision", common, words="DIR PATH …")
    mirror.add_argument("dir", metavar="DIR", help="the folder; the files are in DIR/current")
    _paths(mirror)
    mirror.add_argument("--strip", metavar="TEXT", default="", help="remove this from the beginning of each key")
    _least(mirror)
    mirror.add_argument("--once", action="store_true", help="write the present state, and end")
    _exec(mirror, "run CMD in a shell at the start and after each swap")

    completion = command("completion", "print a script for tab completion", words="bash|zsh|fish")
    completion.add_argument("shell", choices=["bash", "zsh", "fish"])
    return parser, dict(subparsers.choices)


def _common(environment: Mapping[str, str]) -> Parser:
    common = Parser(add_help=False)
    group = common.add_argument_group("the gateway")
    given = [url for url in environment.get("ETCD_WATCH_GATEWAY", "").replace(",", " ").split() if url]
    group.add_argument(
        "-g", "--gateway", action="append", metavar="URL", dest="gateways",
        help=f"a gateway; repeat it for several ({','.join(given) or GATEWAY})",
    )  # fmt: skip
    group.add_argument("--token-file", metavar="FILE", help="a file with the bearer token; read for each connection")
    cacert = environment.get("ETCD_WATCH_CACERT") or None
    group.add_argument("--cacert", metavar="FILE", default=cacert, help="certificates to trust instead of the system's")
    group.add_argument("--client-cert", metavar="FILE", help="the client's certificate, if the gateway asks for one")
    group.add_argument("--client-key", metavar="FILE", help="its private key, if that is in a file of its own")
    common.set_defaults(default_gateways=given or [GATEWAY], token=environment.get("ETCD_WATCH_TOKEN") or None)
    output = common.add_argument_group("output")
    colour = "never" if environment.get("NO_COLOR") or environment.get("TERM") == "dumb" else "auto"
    output.add_argument("--color", choices=["auto", "always", "never"], default=colour, help="auto: on a terminal")
    output.add_argument("-q", "--quiet", action="store_true", help="do not report the state on stderr")
    return common


def _paths(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("keys")
    group.add_argument("paths", nargs="*", metavar="PATH", help='a prefix if it ends with "/", else a key')
    group.add_argument("--prefix", action="append", default=[], metavar="P", help="all keys that begin with P")
    group.add_argument("--key", action="append", default=[], metavar="K", help="the key K")
    group.add_argument("--permitted", action="store_true", help="only the parts of the prefixes that you may read")


def _least(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--min-revision", type=revision, default=0, metavar="N",
        help="show nothing older than revision N, such as that of your own write",
    )  # fmt: skip


def _exec(parser: argparse.ArgumentParser, brief: str) -> None:
    group = parser.add_argument_group("command")
    group.add_argument("--exec", metavar="CMD", help=brief)
    group.add_argument(
        "--on-error", choices=["retry", "skip", "stop"], default="retry",
        help="if CMD fails: run it again after 1 s to 1 m (retry), go on (skip), or end with status 5 (stop)",
    )  # fmt: skip


def ranges(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the prefixes and the keys that are asked for."""
    prefixes = [path for path in arguments.paths if path == "" or path.endswith("/")]
    keys = [path for path in arguments.paths if path not in prefixes]
    return prefixes + arguments.prefix, keys + arguments.key
