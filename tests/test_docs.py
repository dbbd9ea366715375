"""The documentation agrees with the code: names, defaults, codes, reasons, pictures. tests/docs runs its commands."""

from __future__ import annotations

import ast
import json
import re
import ssl
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import httpx
import pytest
import yaml
from pydantic_core import PydanticUndefined

from app import __version__
from app.api.schemas import EVENTS, SCHEMAS
from app.core import errors
from app.core.backfill import Stage
from app.core.feed import State
from app.core.feed_messages import BackfillInput, FeedInput, WatchInput
from app.core.reasons import CLOSE_REASONS, END_REASONS, QUOTA_REASONS, REFUSAL_REASONS, RESET_REASONS
from app.metrics import ACCESS_FILES, NAMESPACE
from app.settings import ALIASES, PREFIX, Settings, load
from app.tls import FAILURES
from tests.support.certificates import Ca
from tests.support.gateway import GatewayProcess, gateway
from tools import draw_map, draw_states
from tools.sources import nodes_of, tree_of

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
APP = ROOT / "app"


def read(name: str) -> str:
    """The text of a document in docs/."""
    return (DOCS / name).read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    """The text under a heading of a document, up to the next heading of the same or a higher level."""
    lines = read(name).splitlines()
    start = lines.index(heading) + 1
    level = len(heading) - len(heading.lstrip("#"))
    for end in range(start, len(lines)):
        if re.match(rf"#{{1,{level}}} ", lines[end]):
            return "\n".join(lines[start:end])
    return "\n".join(lines[start:])


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows whose first cell is one word of code."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and re.fullmatch(r"`[^`]+`", cells[0]):
            found.append([cells[0].strip("`"), *cells[1:]])
    return found


def keys(text: str) -> list[str]:
    """The first cells."""
    return [row[0] for row in rows(text)]


def nodes(*, but: str = "") -> Iterator[ast.AST]:
    """The syntax tree of everything in app/, except the files in *but*."""
    for path in sorted(APP.rglob("*.py")):
        if path.name == but:
            continue
        yield from nodes_of(path)


# --- problems ---------------------------------------------------------------------------------------------------------


@cache
def emitted() -> dict[str, tuple[int, bool]]:
    """Every problem code that app/ creates an error with: its status, and whether it is transient."""
    found: dict[str, tuple[int, bool]] = {}
    for node in nodes():
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        kind = getattr(errors, node.func.id, None)
        if not isinstance(kind, type) or not issubclass(kind, errors.GatewayError):
            continue
        given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        if given and isinstance(given[0], ast.JoinedStr):  # put together from a quota's names
            found |= dict.fromkeys(QUOTA_REASONS, (kind.status, issubclass(kind, errors.TransientError)))
            continue
        code = ast.literal_eval(given[0]) if given else kind.code
        found[code] = (kind.status, issubclass(kind, errors.TransientError))
    return found


@pytest.mark.process
def test_problems_are_those_that_the_code_makes() -> None:
    known = emitted()
    assert len(known) > 10
    documented = {row[0]: row for row in rows(read("problems.md"))}
    assert set(documented) == set(known)
    assert {code: int(row[1]) for code, row in documented.items()} == {code: known[code][0] for code in known}
    assert all(row[2] and row[3] for row in documented.values())


def test_transient_problems_stand_apart() -> None:
    transient = {code for code, (_status, passes) in emitted().items() if passes}
    assert set(keys(section("problems.md", "## Not now"))) == transient | {"too-large"}


# --- configuration ----------------------------------------------------------------------------------------------------


def meant(name: str, text: str) -> Any:
    """The value of the default in a table's cell, parsed as the setting itself would be."""
    field = Settings.model_fields[name]
    match text:
        case "none":
            return None if NoneType in get_args(field.annotation) else ()
        case "empty":
            return ""
        case _:
            return getattr(load({name: text.strip("`")}), name)


def test_every_setting_is_documented_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"{PREFIX}{name.upper()}", raising=False)
    table = rows(section("configuration.md", "## Settings"))
    names = [row[0].removeprefix(PREFIX).lower() for row in table]
    assert sorted(names) == sorted(Settings.model_fields)
    for name, (_variable, default, text) in zip(names, table, strict=True):
        actual = Settings.model_fields[name].default
        assert actual is not PydanticUndefined
        assert meant(name, default) == actual, name
        assert text


def test_settings_that_are_spoken_of_exist() -> None:
    known = {*ALIASES, *(f"{PREFIX}{name.upper()}" for name in Settings.model_fields)}
    for path in DOCS.rglob("*.md"):
        named = set(re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]\b(?!_?\*)", path.read_text(encoding="utf-8")))
        assert named <= known, path.name


async def test_the_example_of_a_problem_is_an_answer(server: GatewayProcess) -> None:
    shown = re.search(r"```json\n(.*?)\n```", read("problems.md"))
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{server.base}/v1/watch?prefix=/svc/&foo=1")
    assert shown is not None
    assert answer.json() == json.loads(shown[1])


# --- metrics ----------------------------------------------------------------------------------------------------------


def ours(name: str) -> bool:
    """Whether the metric is ours, not the instrumentator's."""
    return name.startswith(f"{NAMESPACE}_") and not name.startswith(f"{NAMESPACE}_http_")


async def test_metrics_are_those_of_a_scrape(server: GatewayProcess, tmp_path: Path) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        scraped = (await client.get(f"{server.base}/metrics")).text
    # Some metrics exist only with TLS.
    ca = Ca(tmp_path)
    pair = ca.sign("gateway")
    files = {"GATEWAY_TLS_CERT": str(pair.cert), "GATEWAY_TLS_KEY": str(pair.key)}
    secured = gateway("http://127.0.0.1:1", settings=files)
    trust = ssl.create_default_context(cafile=str(ca.cert))
    async with secured as other, httpx.AsyncClient(trust_env=False, verify=trust) as client:
        scraped += (await client.get(f"{other.base}/metrics")).text
    labels: dict[str, set[str]] = {}
    for line in scraped.splitlines():
        sample = re.match(r"([a-z_]+)(?:\{(.*)\})? ", line)
        if sample is not None and ours(sample[1]):
            labels.setdefault(sample[1], set()).update(re.findall(r'(\w+)="', sample[2] or ""))
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", scraped, re.MULTILINE))
    documented = [row for row in rows(read("metrics.md")) if ours(row[0]) and len(row) == 3 and "," not in row[0]]
    tables = {row[0]: row[1] for row in documented if row[1].partition(",")[0] in ("gauge", "counter")}
    assert set(tables) == set(labels)
    for name, kind in tables.items():
        assert kind.partition(",")[0] == types[name], name
        assert set(re.findall(r"`(\w+)`", kind)) == labels[name], name
    # Names in prose count, too.
    mentioned = {name for name in re.findall(rf"{NAMESPACE}_[a-z_]+\b", read("metrics.md")) if ours(name)}
    assert mentioned == set(labels)


def test_every_value_of_a_label_is_explained() -> None:
    """Those that no other list has: files of the access control, handshakes, and the ends of streams."""
    text = read("metrics.md")
    assert {name for name in (*ACCESS_FILES.values(), *FAILURES) if f"`{name}`" not in text} == set()
    assert {name for name in END_REASONS if name not in CLOSE_REASONS and f"`{name}`" not in text} == set()
    entry = section("runbook.md", "### GatewayAccessFileUnusable")
    assert {name for name in ACCESS_FILES.values() if not re.search(rf'[`"]{name}[`"]', entry)} == set()


# --- the wire contract ------------------------------------------------------------------------------------------------


def test_reasons_are_those_of_the_code() -> None:
    assert set(keys(section("wire-contract.md", "## Reset reasons"))) == set(RESET_REASONS)
    assert set(keys(section("wire-contract.md", "## Close reasons"))) == set(CLOSE_REASONS)


def test_every_reason_is_given_somewhere() -> None:
    """mypy allows no other reason. A reason that the code no longer gives is out of date."""
    given = {node.value for node in nodes(but="reasons.py") if isinstance(node, ast.Constant)}
    assert {*RESET_REASONS, *CLOSE_REASONS, *END_REASONS} <= given


def test_every_refusal_is_a_problem() -> None:
    assert set(REFUSAL_REASONS) <= set(emitted())


def test_every_event_has_a_section() -> None:
    kinds = {"put", "delete"}  # created by encoding.event_body
    for node in nodes():
        match node:
            case ast.Call(func=ast.Name(id="control"), args=[_form, ast.Constant(value=str(kind)), *_rest]):
                kinds.add(kind)
    assert kinds == {"put", "delete", "reset", "synced", "bookmark", "status", "close"}
    assert {f"### `{kind}`" for kind in kinds} <= set(read("wire-contract.md").splitlines())


@pytest.mark.parametrize(
    ("heading", "schemas"),
    [
        ("## `/v1/feeds`", ("FeedsAnswer", "Feed", "Channel", "Pin", "Subscriber")),
        ("## `/readyz`", ("Readiness", "Pin")),
        ("## `/v1/access`", ("Access",)),
        ("### `/v1/progress`", ("Progress",)),
    ],
)
def test_every_member_of_an_answer_is_documented(heading: str, schemas: tuple[str, ...]) -> None:
    text = section("wire-contract.md", heading)
    for name in schemas:
        for member, schema in SCHEMAS[name]["properties"].items():
            assert re.search(rf'["`]{member}["`]', text), member
            named = schema.get("enum", ()) if member == "status" else ()
            assert [value for value in named if f"`{value}`" not in text] == []


def test_every_member_of_an_event_is_documented() -> None:
    """In the event's own section, or where all events are described."""
    common = section("wire-contract.md", "## Items") + section("wire-contract.md", "### `more`") + "`cursor`, `type`"
    for kind, schema in ((schema["properties"]["type"]["const"], schema) for schema in EVENTS.values()):
        text = common + section("wire-contract.md", f"### `{kind}`")
        assert [name for name in schema["properties"] if not re.search(rf'["`]{name}["`]', text)] == [], kind


def test_every_temporary_refusal_of_a_stream_is_listed() -> None:
    """A client that opens an EventSource must know which problems come as a stream that is held open."""
    text = section("wire-contract.md", "## Temporary refusals").partition("depends on the")[0]
    of_reads = {"too-many-reads", "too-many-ranges"}
    # Its status is always the real one: it is raised before anybody knows whether the client is an EventSource.
    assert set(re.findall(r"`([a-z-]+)`", text)) == {
        code for code, (_status, passes) in emitted().items() if passes
    } - of_reads - {"issuer-unavailable"} - set(QUOTA_REASONS) | {"too-large"}


@pytest.mark.parametrize(
    ("module", "heading"), [("kv_request", "### `/v1/kv`"), ("watch_query", "### `/v1/watch`")], ids=["kv", "watch"]
)
def test_every_parameter_is_documented(module: str, heading: str) -> None:
    tree = tree_of(APP / "api" / f"{module}.py")
    (known,) = (
        ast.literal_eval(node.value.args[0])
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "_KNOWN"
        and isinstance(node.value, ast.Call)
    )
    table = "\n".join(line for line in section("wire-contract.md", heading).splitlines() if line.startswith("| "))
    first = "\n".join(line.split("|")[1] for line in table.splitlines())
    assert set(re.findall(r"`([A-Za-z_]+)`", first)) == known


# --- the picture ------------------------------------------------------------------------------------------------------


def test_the_state_diagram_is_drawn_from_the_table() -> None:
    text = read("architecture.md")
    assert draw_states.drawn(text) == text, "python -m tools.draw_states"
    assert all(draw_states.is_drawn(machine) for machine in (draw_states.LIFE, draw_states.HISTORY))


def test_the_map_is_drawn_from_the_imports() -> None:
    assert draw_map.PICTURE.read_text(encoding="utf-8") == draw_map.picture(), "make map"


def test_every_state_and_input_is_explained() -> None:
    text = section("architecture.md", "## The life of a feed").partition(draw_states.END)[2]
    assert keys(text) == [state.value for state in State]
    missing = [kind.__name__ for kind in get_args(FeedInput) if f"`{kind.__name__}`" not in text]
    assert missing == []


def test_every_stage_and_input_of_history_is_explained() -> None:
    text = section("architecture.md", "## History for old cursors").partition(draw_states.HISTORY.end_mark)[2]
    assert keys(text) == [stage.value for stage in Stage]
    own = set(get_args(BackfillInput)) - set(get_args(WatchInput))
    assert [kind.__name__ for kind in own if f"`{kind.__name__}`" not in text] == []


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as forges make them."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    checked = 0
    for path in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]:
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http://", "https://")):
                continue
            file, _, anchor = target.partition("#")
            led = path.parent / file if file else path
            assert led.exists(), f"{path.name}: {target}"
            assert not anchor or anchor in anchors(led), f"{path.name}: {target}"
            checked += 1
    assert checked > 20


def test_the_index_of_decisions_is_complete() -> None:
    index = (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")
    for path in sorted((DOCS / "decisions").glob("0*.md")):
        head, _, status, *_rest = path.read_text(encoding="utf-8").split("\n")
        number, _, title = head.removeprefix("# ").partition(". ")
        date, _, state = status.strip("*").partition(", ")
        assert f"| [{number}]({path.name}) | {title} | {date} | {state} |" in index.split("\n"), path.name


def test_the_index_of_the_docs_is_complete() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)", read("README.md")))
    pages = {path for path in DOCS.rglob("*.md") if path.parent.name != "decisions"}
    assert {path.relative_to(DOCS).as_posix() for path in pages} - {"README.md"} <= linked


# --- facts that stand in several files --------------------------------------------------------------------------------

PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "helm").rglob("*.md"), *(ROOT / ".github").rglob("*.md")]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_version_is_the_same_everywhere() -> None:
    """app/__init__.py has the version; ``make chart`` writes it into the chart."""
    chart = yaml.safe_load((ROOT / "helm" / "etcd-watch-gateway" / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__), "make chart"
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert f"\n## [{__version__}] - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_make_targets_that_are_spoken_of_exist() -> None:
    """The test reads targets from code, where a command stands; prose may contain "make sure"."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        code = re.findall(r"```sh\n(.*?)```|`(make [^`]*)`", text, re.DOTALL)
        named = {name for part in code for name in re.findall(r"(?:^|&& )make ([a-z]+)", "".join(part), re.MULTILINE)}
        assert named <= TARGETS, path.name
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == TARGETS | {"FORCE"}


def test_python_versions_are_the_same_everywhere() -> None:
    prefix = "Programming Language :: Python :: 3."
    minors = {int(line.removeprefix(prefix)) for line in PROJECT["project"]["classifiers"] if line.startswith(prefix)}
    oldest = min(minors)
    assert PROJECT["project"]["requires-python"] == f">=3.{oldest}"
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py3{oldest}"
    tools = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tools").glob("*.sh")}
    assert {int(minor) for minor in re.findall(r"\bpython3\.(\d+)", tools["python.sh"])} == minors
    assert set(re.findall(r"--python-version (\S+)", tools["lock.sh"])) == {f"3.{oldest}"}
    for text in (MAKEFILE, tools["python.sh"], *(path.read_text(encoding="utf-8") for path in PAGES)):
        least = re.findall(r"Python (?:≥|>=) 3\.(\d+)|Python 3\.(\d+) or (?:later|newer)", text)
        assert {int("".join(found)) for found in least} <= {oldest}


def test_the_base_image_is_the_same_everywhere() -> None:
    (base,) = set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in PAGES:
        named = set(re.findall(r"\bpython:3[\w.-]+", path.read_text(encoding="utf-8")))
        assert named <= {base}, path.name


def test_every_file_beside_the_rooms_is_in_the_architecture() -> None:
    """The rooms have a row each, and the files directly in ``app/`` share one."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| `app/` \|(.*)$", text, re.MULTILINE)
    names = {path.stem for path in APP.glob("*.py")} - {"__init__"}
    assert {name for name in names if f"`{name}`" not in row} == set()


def test_tests_that_are_spoken_of_exist() -> None:
    """A page names tests as a proof of what it says: a test's file, or a test of any file."""
    files = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "tests").rglob("*.py")}
    names = {path.name for path in files.values()}
    functions = {name for path in files.values() for name in re.findall(r"def (test_\w+)\(", path.read_text())}
    for page in PAGES:
        if "decisions" in page.parts or page.name == "CHANGELOG.md":  # of the past
            continue
        text = page.read_text(encoding="utf-8")
        assert {name for name in re.findall(r"[`:](test_\w+)`", text) if name not in functions} == set(), page.name
        assert {name for name in re.findall(r"[`/](test_\w+\.py)\b", text) if name not in names} == set(), page.name
        assert {name for name in re.findall(r"`(tests/[\w/]+\.py)\b", text) if name not in files} == set(), page.name


def test_metrics_that_are_spoken_of_exist() -> None:
    """On every page: docs/metrics.md, which another test compares with a scrape, has them all."""
    known = set(re.findall(rf"{NAMESPACE}_[a-z_]+[a-z]", read("metrics.md")))
    for page in PAGES:
        if "decisions" in page.parts or page.name == "CHANGELOG.md":
            continue
        named = set(re.findall(rf"`({NAMESPACE}_[a-z_]+[a-z])\b", page.read_text(encoding="utf-8")))
        assert named <= known, page.name


def test_every_room_has_a_row_in_contributing() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {path.name for path in APP.iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert set(re.findall(r"^\| `app/(\w+)/` ", text, re.MULTILINE)) == rooms
    for path in re.findall(r"`((?:app|tests|tools|docs|helm|benchmarks)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
