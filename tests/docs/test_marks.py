"""Every block of code in the documentation is tried, or says why not. Here: what needs no gateway."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from etcd_watch_client.cli.arguments import make_parser as make_client_parser

from app.arguments import parse
from app.check.options import options_of
from app.dev import sample
from app.settings import load
from tests.docs.snippets import COPIED, KINDS, PAGES, REASONS, SNIPPETS, Snippet, of_kind
from tests.support import chart
from tools import figures

# --- the marks --------------------------------------------------------------------------------------------------------


def test_every_block_is_tried_or_says_why_not() -> None:
    """Each block that a reader may copy has a mark of a known kind. JSON needs none: it is read below."""
    assert [str(block) for block in SNIPPETS if block.kind and block.kind not in KINDS] == []
    unmarked = [block for block in SNIPPETS if block.language in COPIED - {"json"} and not block.kind]
    assert [str(block) for block in unmarked] == []
    assert [str(block) for block in of_kind("not run") if block.text not in REASONS] == []
    assert {block.text for block in of_kind("not run")} == REASONS
    marks = sum(len(re.findall(r"^ *<!-- [a-z -]+: .* -->\n *```", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert marks == sum(bool(block.kind) for block in SNIPPETS), "a mark that belongs to no block"
    assert len(of_kind("run")) > 30


def test_json_is_json() -> None:
    """Each example of an answer can be read."""
    examples = [block for block in SNIPPETS if block.language == "json"]
    for block in examples:
        for line in block.code.splitlines():
            assert json.loads(line), str(block)
    assert len(examples) > 8


def test_figures_are_those_of_the_benchmarks() -> None:
    """`make bench` writes docs/benchmarks.md; what other pages repeat is what that page says."""
    measured = figures.measured(figures.BENCHMARKS.read_text(encoding="utf-8"))
    repeated = 0
    for page in figures.PAGES:
        text = page.read_text(encoding="utf-8")
        assert figures.written(text, measured) == text, "make reference"
        repeated += len(re.findall("<!-- figures?: ", text))
    assert repeated == 9


def test_a_figure_is_written_anew() -> None:
    """In a table and in text, with its unit; a row that is not measured any more is an error."""
    measured = figures.measured(
        "# B\n\n## S\n\n| | a | b |\n|---|---|---|\n| x | 1.5 (1 to 2) | 2,000 (1 to 3), 4 x |\n"
    )
    assert measured["S"]["x"] == ["1.5", "2,000"]
    page = "<!-- figures: S: x -->\n| | a |\n|---|---|\n| we | 9 ms |\n\nAbout 7 MiB<!-- figure: S: x: 2 -->.\n"
    assert figures.written(page, measured) == page.replace("9 ms", "1.5 ms").replace("7 MiB", "2,000 MiB")
    with pytest.raises(KeyError):
        figures.written(page.replace("S: x -->\n|", "S: y -->\n|"), measured)


# --- command lines and settings ---------------------------------------------------------------------------------------


def lines_of(block: Snippet, command: str) -> list[str]:
    """The command lines of a block that run a command, joined where they are continued."""
    joined = block.code.replace("\\\n", " ").splitlines()
    return [line.partition(" | ")[0] for line in joined if re.match(rf"(?:\S*/)?{re.escape(command)} ", line.strip())]


@pytest.mark.parametrize("block", of_kind("flags"), ids=str)
@pytest.mark.usefixtures("clean_environment")
def test_flags(block: Snippet) -> None:
    """The command line takes the flags, and the settings take their values."""
    lines = lines_of(block, "etcd-watch-gateway")
    assert lines
    for line in lines:
        flags = parse(shlex.split(line)[1:])
        command = flags.pop("command")
        assert command in ("check", "serve")
        if command == "check":
            options_of(flags)
        else:
            load(flags)


@pytest.mark.parametrize("block", of_kind("settings"), ids=str)
@pytest.mark.usefixtures("clean_environment")
def test_settings(block: Snippet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway takes the settings, together."""
    for line in block.code.splitlines():
        name, _, value = shlex.split(line, comments=True)[0].partition("=")
        monkeypatch.setenv(name, value)
    settings = load({})
    assert settings.model_fields_set


@pytest.mark.parametrize("block", of_kind("etcd-watch"), ids=str)
def test_etcd_watch(block: Snippet) -> None:
    """The client's command line takes each line; tests/clients runs the commands."""
    parser, _ = make_client_parser({})
    for line in lines_of(block, "etcd-watch"):
        parser.parse_args(shlex.split(line)[1:])


def test_the_sample_keeps_the_keys_of_the_documentation() -> None:
    """Whenever a reader types a command, its key exists; other keys are deleted and come back."""
    turns = [sample.change(turn) for turn in range(1, 4 * 3 * 5 * 7 + 1)]  # then the changes repeat
    gone = [key for changes in turns for key, value in changes.items() if value is None]
    put = {key for changes in turns for key, value in changes.items() if value is not None}
    typed = {key for block in of_kind("run") for key in re.findall(r"[?&]key=(/svc/[^'&\s]+)", block.code)}
    assert typed
    assert put - set(gone) >= typed - {"/svc/api/none", "/svc/mail/none"}  # those shall be absent
    assert len(set(gone)) > 1
    assert set(gone) < put
    assert {len(changes) for changes in turns} == {1, 2}


# --- the chart --------------------------------------------------------------------------------------------------------


def rendered(*arguments: str) -> str:
    """The manifests of the chart; tests/deploy/test_chart.py tests all values, with each Helm."""
    done = chart.run(chart.get_helm(4), "template", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def checked(manifests: str, folder: Path) -> None:
    """Assert that Kubernetes' own schemas know every field. The operator's kinds have none."""
    kept = [item for item in yaml.safe_load_all(manifests) if item and "monitoring" not in item["apiVersion"]]
    (folder / "manifests.yaml").write_text(yaml.safe_dump_all(kept), encoding="utf-8")
    tool = [sys.executable, "-m", "kubernetes_validate", "--strict", "-k", "1.31", "manifests.yaml"]
    done = chart.run("sh", "-c", f"cd {shlex.quote(str(folder))} && {shlex.join(tool)}")
    assert done.returncode == 0, done.stdout + done.stderr


CHART_PAGES = {block.page for block in of_kind("helm", "values")}


def values_of(page: Path, folder: Path) -> list[str]:
    """The page's values as files, and the flags that take the files in the order of the page."""
    flags: list[str] = []
    for block in of_kind("values"):
        if block.page == page:
            file = folder / f"{block.line}.yaml"
            file.write_text(block.code, encoding="utf-8")
            flags += ["-f", str(file)]
    return flags


@pytest.mark.process
def test_the_chart_takes_what_the_documentation_sets(tmp_path: Path) -> None:
    """The chart takes all values of a page together, and each ``kubectl`` of the page names what the chart makes."""
    every = ""
    for page in sorted(CHART_PAGES):
        flags = values_of(page, tmp_path)
        made = rendered("gateway", str(chart.CHART), *chart.CHOICE, *flags)
        every += made
        names = {item["metadata"]["name"] for item in yaml.safe_load_all(made) if item}
        told = re.findall(r"\b(?:deploy|deployment|service)/([\w-]+)", page.read_text(encoding="utf-8"))
        assert set(told) <= names, page
        for line in (line for block in of_kind("helm") if block.page == page for line in lines_of(block, "helm")):
            # `install` also makes the namespace, and "values.yaml" is the page's first block of values.
            words = [word for word in shlex.split(line)[2:] if word != "--create-namespace"]
            words = [flags[1] if word == "values.yaml" else word for word in words]
            assert "kind:" in rendered(*words), line
    checked(every, tmp_path)
