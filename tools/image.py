"""Builds the image with buildah, for ``make release`` and for tests/deploy/test_image.py."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parents[1]
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# The stand-in base: a shell, Debian's Python, what they depend on, and what wheels expect of every Linux.
PACKAGES = "base-files,coreutils,dash,libstdc++6,python3,python3-venv,python3-pip,ca-certificates"
# The bytecode that configuring the packages would have written: Python starts several times in each build.
COMPILE = "chroot \"$1\" sh -c 'python3 -m compileall -q /usr/lib/python3*'"
HOUR = 3600.0  # seconds that only a hang reaches


class CommandError(Exception):
    """A command failed. The message has the command and the end of its output."""

    def __init__(self, command: Iterable[str | Path], output: str) -> None:
        super().__init__(f"{' '.join(map(str, command))}\n{output[-4000:].strip()}")


def run(*command: str | Path, environment: dict[str, str] | None = None, folder: Path = TOP) -> str:
    """Run *command* in *folder* and return what it wrote to standard output.

    Raises:
        CommandError: the command failed.
        subprocess.TimeoutExpired: the command hangs.
    """
    done = subprocess.run(  # noqa: S603  # only commands from this folder
        command, check=False, capture_output=True, text=True, timeout=HOUR, cwd=folder, env=environment
    )
    if done.returncode:
        raise CommandError(command, f"{done.stdout}\n{done.stderr}")
    return done.stdout.strip()


def base() -> str:
    """Return the base image of the Dockerfile.

    Raises:
        ValueError: the two stages have different base images: the first stage's venv would not run in the second.
    """
    names = set(re.findall(r"^FROM (\S+)", (TOP / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
    if len(names) != 1:
        msg = f"the stages of the Dockerfile must have the same base image, but have {sorted(names)}"
        raise ValueError(msg)
    return f"docker.io/library/{names.pop()}"


@dataclass(frozen=True, slots=True)
class Store:
    """buildah with its own store of images below *root*, apart from the machine's images."""

    root: Path

    def buildah(self, *arguments: str | Path) -> str:
        """Run a command of buildah and return its output."""
        self.root.mkdir(parents=True, exist_ok=True)
        # An overlay cannot lie on an overlay, and a checkout inside a container lies on one. Elsewhere use overlay: vfs
        # took five times as long.
        driver = "vfs" if run("df", "--output=fstype", self.root).endswith("overlay") else "overlay"
        places = ("--root", self.root / "store", "--runroot", self.root / "run")
        return run("buildah", "--storage-driver", driver, *places, *arguments)

    def make_stand_in(self) -> None:
        """Make a base image without a registry: Debian's own Python, under the name of the real base image.

        mmdebstrap writes into the container, so that nothing is copied. The packages are only unpacked: configuring
        them as well took 24 s of CPU instead of 9, and what is missing is in no image that `make release` publishes.
        """
        if self.buildah("images", "--quiet", "--filter", f"reference={base()}"):
            return
        container = self.buildah("from", "scratch")
        folder = self.buildah("mount", container)
        suite = base().rpartition("-")[2]
        run("mmdebstrap", "--variant=extract", f"--include={PACKAGES}", f"--customize-hook={COMPILE}", suite, folder)
        self.buildah("commit", "--quiet", container, base())
        self.buildah("rm", container)

    def pull_base(self, digest: str = "") -> None:
        """Pull the base image: what its tag names now or, with *digest*, exactly this one."""
        if not digest:
            self.buildah("pull", "--quiet", "--policy", "always", base())
            return
        exact = f"{base().rpartition(':')[0]}@{digest}"
        self.buildah("pull", "--quiet", exact)
        self.buildah("tag", exact, base())
        # Leave the image one name. The history of what is built has the first name, so the two builds would differ.
        self.buildah("rmi", exact)

    def base_digest(self) -> str:
        """Return the digest of the base image in this store."""
        return self.buildah("images", "--format", "{{.Digest}}", base())

    def build(self, name: str, scratch: Path, *arguments: str) -> None:
        """Build the Dockerfile as *name*, on the base image in this store.

        pip in the build gets this machine's pip settings, by a file in *scratch*.
        """
        settings = scratch / "pip.conf"
        settings.write_text(_pip_settings(), encoding="utf-8")
        mounts = [f"--volume={settings}:/etc/pip.conf:ro"]
        if CERTIFICATES.exists():
            mounts.append(f"--volume={CERTIFICATES}:{CERTIFICATES}:ro")
        # No identity label: it has buildah's version, and the image would differ after an upgrade of buildah.
        usual = ("--isolation", "chroot", "--layers", "--pull-never", "--identity-label=false")
        self.buildah("bud", *usual, *mounts, *arguments, "--tag", name, TOP)


def _pip_settings() -> str:
    wanted = ("index-url", "proxy", "trusted-host")
    found = re.findall(r"^global\.([a-z-]+)='(.*)'$", run(sys.executable, "-m", "pip", "config", "list"), re.MULTILINE)
    certificates = [f"cert = {CERTIFICATES}"] if CERTIFICATES.exists() else []
    return "\n".join(["[global]", *certificates, *(f"{key} = {value}" for key, value in found if key in wanted), ""])
