"""The command line: its help in sections, readable defaults, and hints for what is almost right."""

from __future__ import annotations

import re

import pytest

from app.arguments import parse
from app.settings import Settings
from app.settings_text import SECTIONS


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What ``--help`` prints."""
    with pytest.raises(SystemExit) as caught:
        parse([*words, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [["serve"], ["dev"], ["config", "check"]])
def test_settings_stand_in_sections(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Six short lists instead of one of sixty, and defaults as a person writes them."""
    text = help_of(command, capsys)

    titles = [line.removesuffix(":") for line in text.splitlines() if line.removesuffix(":") in SECTIONS.values()]
    assert titles == list(SECTIONS.values())
    flags = re.findall(r"^  --([a-z-]+) \S", text, re.MULTILINE)
    assert flags == [
        name.replace("_", "-") for name in Settings.model_fields if command != ["dev"] or not name.startswith("etcd")
    ]
    flat = " ".join(text.split())
    assert "(default 256MiB); GATEWAY_MAX_FEED_BYTES" in flat
    assert "(default 10m); GATEWAY_LOG_AGE" in flat
    assert "268435456" not in text
    for form in ("--log-age DURATION", "--max-feed-bytes SIZE", "--log-format {auto,human,json}", "--policy-file FILE"):
        assert form in flat
    assert len(text.partition("\n\n")[0].splitlines()) == 1, "the usage is one line, not all flags again"


@pytest.mark.parametrize("words", [[], ["config"], ["policy"], ["policy", "check"], ["check"], ["token"], ["version"]])
def test_every_command_has_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And every command is in the list of its parent."""
    assert help_of(words, capsys).startswith(" ".join(["usage: etcd-watch-gateway", *words]))
    if words:
        assert f"    {words[-1]}" in help_of(words[:-1], capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serv"], "invalid choice: 'serv'"),
        (["serv"], "; did you mean serve?\nTry: etcd-watch-gateway --help\n"),
        (["serve", "--lingr", "1s"], "did you mean --linger?\nTry: etcd-watch-gateway serve --help\n"),
        (["config", "chek"], "did you mean check?\nTry: etcd-watch-gateway config --help\n"),
        (["config", "check", "--prot", "1"], "did you mean --port?\nTry: etcd-watch-gateway config check --help\n"),
        (["policy", "check", "f", "--rol", "x"], "did you mean --role?"),
        (
            ["policy", "check"],
            "the following arguments are required: FILE\nTry: etcd-watch-gateway policy check --help",
        ),
        (["check", "--prefix", "/", "--stream", "7"], "unrecognized arguments: --stream 7; did you mean --streams?"),
        (["serve", "--colour", "red"], "unrecognized arguments: --colour red\nTry:"),
        (["serve", "--pin", "/a/", "--pin=/b/"], "argument --pin: is given twice; give it once, with commas"),
        (["serve", "extra"], "unrecognized arguments: extra\nTry:"),
        (["check", "--prefix", "/", "--rounds", "0"], "argument --rounds: invalid number: '0'; use digits only, at"),
        (["check", "--prefix", "/", "--timeout", "x"], "argument --timeout: invalid duration: 'x'; use seconds"),
        (["check", "--prefx", "/"], "arguments are required: --prefix; did you mean --prefix?\nTry:"),
        (
            [],
            "are required: command (serve, dev, check, config, token, policy, version)\nTry: etcd-watch-gateway --help",
        ),
        (["--port", "80", "serve"], "--port is before the command; write the command first (serve, dev, check,"),
        (["--port=80", "serve"], "--port is before the command; write the command first (serve, dev, check,"),
        (["-x"], "-x is before the command; write the command first (serve, dev, check,"),
        (["config"], "are required: command (check)\nTry: etcd-watch-gateway config --help"),
    ],
)
def test_hints(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What was probably meant, and where the help of this command is."""
    with pytest.raises(SystemExit) as caught:
        parse(words)

    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_help_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Paragraphs are filled to its width, and examples stay as they are."""
    monkeypatch.setenv("COLUMNS", "60")
    text = help_of(["config", "check"], capsys)

    head, _, examples = text.partition("examples:")
    assert max(map(len, head.splitlines())) <= 60
    assert "  etcd-watch-gateway config check --max-feeds 500         and a flag, as serve would get it\n" in examples


def test_values() -> None:
    """Only flags that are given are there, as text: the settings parse them."""
    assert parse(["serve", "--linger", "1s"]) == {"command": "serve", "linger": "1s"}
    assert parse(["config", "check", "--port=9"]) == {"command": "config", "action": "check", "port": "9"}
    assert parse(["serve", "--port", "1", "--port", "2"])["port"] == "2"  # as a wrapper that adds its own flags expects
