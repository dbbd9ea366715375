"""``make`` makes the venv once, however the checkout is reached."""

from __future__ import annotations

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
