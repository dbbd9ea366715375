"""Tab completion. One function decides for all shells; each script only asks it."""

from __future__ import annotations

from .arguments import Parser
from .streams import PROGRAM

# The hidden command that the scripts call.
COMPLETE = "__complete"

SCRIPTS = {
    "bash": f"""\
_etcd_watch() {{
    local IFS=$'\\n'
    COMPREPLY=($({PROGRAM} {COMPLETE} "${{COMP_WORDS[@]:1:COMP_CWORD}}" 2>/dev/null))
}}
complete -o default -F _etcd_watch {PROGRAM}
""",
    "zsh": f"""\
#compdef {PROGRAM}
_etcd_watch() {{
    local -a found
    found=("${{(@f)$({PROGRAM} {COMPLETE} "${{(@)words[2,CURRENT]}}" 2>/dev/null)}}")
    if [[ -n "$found" ]]; then compadd -a found; else _files; fi
}}
compdef _etcd_watch {PROGRAM}
""",
    "fish": f"""\
complete -c {PROGRAM} -a '({PROGRAM} {COMPLETE} (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
""",
}


def candidates(parser: Parser, commands: dict[str, Parser], words: list[str]) -> list[str]:
    """Return what the last of *words* may become. Without candidates, the shell offers files."""
    *before, last = words or [""]
    chosen = next((word for word in before if word in commands), None)
    current = commands[chosen] if chosen else parser
    choices = current.choices_of(before[-1]) if before else None
    if choices is not None:
        known = choices
    elif last.startswith("-"):
        known = current.options()
    elif chosen == "completion":
        known = sorted(SCRIPTS)
    else:
        known = [] if chosen else sorted(commands)
    return [one for one in known if one.startswith(last)]
