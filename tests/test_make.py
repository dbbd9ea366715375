"""``make`` makes the venv once, however the checkout is reached, and also on macOS."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
# What tools/venv.sh does at its end, without the packages.
STUB = """set -eu
echo "makes $1"
mkdir -p .venv/bin
printf "#!/bin/sh\n" > .venv/bin/python
chmod +x .venv/bin/python
{stamp}
touch ".venv/.$1"
"""
# What GNU Make 3.81, the make of macOS, does not have.
NEWER = re.compile(
    r"\$\((file|let|intcmp|guile) |^\.(ONESHELL|RECIPEPREFIX|SHELLFLAGS|WAIT)\b|&:|!=|::=|^(undefine|private|load) ",
    re.MULTILINE,
)
# What only GNU's tools have, and the tools of macOS do not; and what only Linux has.
GNU = re.compile(
    r"\b(sed -i|grep -\w*P|readlink -f|nproc|stat -c|date -d|xargs -r|timeout \d|sort -V|tac|cp -\w*[al]|df --)|/proc/"
)


@pytest.fixture(name="checkout")
def _checkout(tmp_path: Path) -> Path:
    """A checkout behind a symlink, as /tmp is one on macOS, with venv.sh's own line for the stamp."""
    checkout = tmp_path / "real"
    (checkout / "tools").mkdir(parents=True)
    shutil.copy(TOP / "Makefile", checkout)
    lines = (TOP / "tools/venv.sh").read_text(encoding="utf-8").splitlines()
    stamp = [
        line.strip().replace("$venv", ".venv") for line in lines if line.startswith("top=") or '> "$venv/.run"' in line
    ]
    assert stamp
    (checkout / "tools/venv.sh").write_text(STUB.replace("{stamp}", "\n".join(stamp)), encoding="utf-8")
    locks = (f"requirements-{name}.txt" for name in ("run", "leak", "dev", "build"))
    for name in ("tools/python.sh", *locks):
        (checkout / name).touch()
    (tmp_path / "link").symlink_to(checkout)
    return tmp_path / "link"


def made(checkout: Path, *targets: str) -> list[str]:
    """What ``make`` makes, run by a shell that came through the symlink."""
    done = subprocess.run(
        ["sh", "-c", 'cd "$0" && make -s "$@"', str(checkout), *targets], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("makes ")]


def test_a_checkout_behind_a_symlink_keeps_its_venv(checkout: Path) -> None:
    """Each further run starts from the venv that is there: another terminal may be using it."""
    assert made(checkout, "install") == ["makes run"]
    assert made(checkout, "install") == []
    assert made(checkout, "leak") == ["makes leak"]
    assert made(checkout, "leak") == []
    assert made(checkout, "check") == ["makes dev"]
    assert made(checkout, "check") == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("X := $(file <y)", True),
        ("a b &: c", True),
        (".ONESHELL:", True),
        ("PORT ?= 8080\nifneq ($(shell test -x a),b)\nendif", False),
    ],
)
def test_what_is_newer_than_the_make_of_macos_is_found(source: str, found: bool) -> None:
    assert bool(NEWER.search(source)) == found


def test_make_works_on_macos() -> None:
    """No target uses what macOS lacks: its make is of 2006, and its sed, grep and readlink are BSD's."""
    makefile = (TOP / "Makefile").read_text(encoding="utf-8")
    assert NEWER.findall(makefile) == []
    for path in (TOP / "Makefile", *sorted((TOP / "tools").glob("*.sh"))):
        assert [found[0] for found in GNU.finditer(path.read_text(encoding="utf-8"))] == [], path.name
