"""Writes docs/command-line.md from the parser: ``python -m tools.command_line``, or ``make reference``.

A test fails if the page differs from what this command would write. docs/configuration.md has the settings, so the page
does not list their flags.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from app.arguments import make_parser
from app.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "command-line.md"
HEAD = """\
# Command line

<!-- written by `make reference` from app/arguments.py -->

`etcd-watch-gateway COMMAND`; in a checkout also `.venv/bin/etcd-watch-gateway` and `python -m app`. `--help` after each
command prints what this page says. Clients have a command of their own,
[etcd-watch](../clients/python/README.md#in-a-shell)."""


def prose(text: str) -> str:
    """A text of the parser, with its flags and variables as code."""
    return re.sub(r"(?<!\w)(--[a-z][a-z-]*(?: \d+)?|GATEWAY_\w+(?:=\w+)?)", r"`\1`", text)


def cell(text: str) -> str:
    """A text as the cell of a table."""
    return prose(text.replace("|", r"\|").replace("<", "&lt;"))


def is_listed(action: argparse.Action, left_out: set[str]) -> bool:
    """Whether an argument has a row: not ``--help``, not the settings, not the commands below."""
    return not isinstance(action, argparse._SubParsersAction | argparse._HelpAction) and action.dest not in left_out


def rows(parser: argparse.ArgumentParser, left_out: set[str]) -> Iterator[str]:
    """A row for each argument."""
    formatter = parser._get_formatter()
    for action in parser._actions:
        if not is_listed(action, left_out):
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        if action.option_strings and action.nargs != 0:
            name += f" {action.metavar or action.dest.upper()}"
        text = formatter._expand_help(action) if action.help else ""  # with the default in its place
        required = "required; " if action.required and action.option_strings else ""
        yield f"| `{name}` | {cell(required + text)} |"


def section(name: str, parser: argparse.ArgumentParser) -> str:
    """The section of a command: what it does, its arguments, its examples."""
    # Others than these commands have flags of the settings' names, such as `check --token-file`.
    takes_settings = "heartbeat" in {action.dest for action in parser._actions}
    parts = [f"## {name}", prose(parser.description or "")]
    table = "\n".join(rows(parser, set(Settings.model_fields) if takes_settings else set()))
    if table:
        parts.append(f"| argument | |\n|---|---|\n{table}")
    if takes_settings:
        parts.append(f"Every [setting](configuration.md#settings) is a flag of `{name}`.")
    if parser.epilog:
        parts.append(f"```text\n{parser.epilog}\n```")
    return "\n\n".join(part for part in parts if part)


def page() -> str:
    """The whole page. A command that only has commands below has no section."""
    _parser, commands = make_parser()
    parts = [section(name, parser) for name, parser in commands.items() if parser.description]
    return "\n\n".join([HEAD, *parts]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
