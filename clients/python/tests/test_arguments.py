"""The command line."""

from __future__ import annotations

import argparse

import pytest
from etcd_watch_client.cli.arguments import make_parser, ranges, seconds
from etcd_watch_client.cli.completion import COMPLETE, SCRIPTS, candidates
from etcd_watch_client.cli.main import main

PARSER, COMMANDS = make_parser({})


@pytest.mark.parametrize(
    ("words", "prefixes", "keys"),
    [
        ("get /a/ /b", ["/a/"], ["/b"]),
        ("get /a --prefix /b --key /c/", ["/b"], ["/a", "/c/"]),
        ("mirror out /a/", ["/a/"], []),
    ],
)
def test_a_slash_at_the_end_makes_a_prefix(words: str, prefixes: list[str], keys: list[str]) -> None:
    """And the options say it explicitly."""
    assert ranges(PARSER.parse_args(words.split())) == (prefixes, keys)


def test_the_empty_path_is_all_keys() -> None:
    """As the empty prefix is."""
    assert ranges(PARSER.parse_args(["get", ""])) == ([""], [])


@pytest.mark.parametrize(("text", "expected"), [("30", 30), ("1.5s", 1.5), ("500ms", 0.5), ("5m", 300), ("1h", 3600)])
def test_durations(text: str, expected: float) -> None:
    """As the gateway's settings have them."""
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "s", "-1s", "1d", "nan"])
def test_what_is_no_duration(text: str) -> None:
    """The error says how one is written."""
    with pytest.raises(argparse.ArgumentTypeError, match="write 30s"):
        seconds(text)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["folow", "/a/"], "invalid choice: 'folow'; did you mean follow?\nTry: etcd-watch --help"),
        (["get", "/a", "--jsn"], "etcd-watch get: unrecognized arguments: --jsn; did you mean --json?"),
        (["get"], "nothing is selected"),
        (["get", "/a", "--gateway", "localhost:8080"], "write http://HOST:PORT"),
        (["wait", "/a", "--absent", "--value", "x"], "not allowed with"),
        (["completion", "fihs"], "did you mean fish?"),
        (["-g", "http://gw:8080", "get", "/a"], "-g is before the command; write the command first (get, follow,"),
        (
            ["--gateway=http://gw", "get", "/a"],
            "--gateway is before the command; write the command first (get, follow,",
        ),
        ([], "are required: COMMAND (get, follow, wait, mirror, completion)\nTry: etcd-watch --help"),
    ],
)
def test_a_wrong_command_line_says_what_is_meant(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With status 2, on stderr, and with the way to help."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, says in err, "Try: etcd-watch" in err) == ("", True, True), err


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)])
def test_help_teaches(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each help has examples that the parser itself accepts, and fits 120 columns."""
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    examples = [line.strip() for line in out.splitlines() if line.strip().startswith("etcd-watch ")]
    assert examples or words == ["completion"]
    for example in examples:
        command = example.partition("  ")[0].partition(" |")[0].partition(" >")[0].split()
        if command[1] in COMMANDS and "'" not in example:
            PARSER.parse_args(command[1:])


@pytest.mark.parametrize("command", COMMANDS)
def test_prose_fills_the_terminal(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the examples, which are copied, may be longer than a line of a narrow terminal."""
    monkeypatch.setenv("COLUMNS", "70")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 70 and "  etcd-watch " not in line and "completion" not in line] == []
    if command == "follow":
        assert "        The commands run one at a time, in order. A command that" in lines


def test_settings_of_the_environment() -> None:
    """Flags win over them."""
    parser, _ = make_parser({"ETCD_WATCH_GATEWAY": "http://a, http://b", "ETCD_WATCH_TOKEN": "t", "NO_COLOR": "1"})
    found = parser.parse_args(["get", "/a"])
    assert (found.default_gateways, found.token, found.color) == (["http://a", "http://b"], "t", "never")
    assert parser.parse_args(["get", "/a", "-g", "http://c"]).gateways == ["http://c"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fo"], ["follow"]),
        ([""], sorted(COMMANDS)),
        ([], sorted(COMMANDS)),
        (["--v"], ["--version"]),
        (["get", "--js"], ["--json"]),
        (["get", "/a"], []),
        (["get", "/a", "--key", "x", "--tok"], ["--token-file"]),
        (["follow", "--on-error", "s"], ["skip", "stop"]),
        (["follow", "--resume", ""], []),
        (["get", "--cacert", "--"], []),
        (["completion", ""], ["bash", "fish", "zsh"]),
    ],
)
def test_completion(words: list[str], expected: list[str]) -> None:
    """One function completes for all shells. Nothing means files."""
    assert candidates(PARSER, COMMANDS, words) == expected


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts_ask_the_program(shell: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Each script calls the hidden command."""
    assert main(["completion", shell]) == 0
    assert COMPLETE.encode() in capsysbinary.readouterr().out
    assert main([COMPLETE, "wa"]) == 0
    assert capsysbinary.readouterr().out == b"wait\n"
