"""``make release`` without image and SBOM, which take minutes and a registry: the packages, the chart, checksums."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest
from etcd_watch_client import __version__ as client_version

from app import __version__
from tests.support.chart import CHART, CHOICE, get_helm, run
from tools.image import Store
from tools.release import NAME, Release, build_all, changelog_faults

EPOCH = 1_700_000_000
JAVASCRIPT = json.loads((CHART.parents[1] / "clients" / "js" / "package.json").read_text(encoding="utf-8"))


def build(folder: Path) -> Release:
    """Build all but the image."""
    get_helm(4)  # skips the test if there is no Helm 4
    release = Release(folder, __version__, EPOCH)
    release.build_python()
    release.build_client()
    release.build_javascript_client()
    release.build_chart()
    release.write_checksums()
    return release


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist")).folder


def metadata(folder: Path, package: str = "etcd_watch_gateway") -> Message:
    """The metadata of a wheel."""
    with zipfile.ZipFile(next(folder.glob(f"{package}-*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(wheel.read(name).decode())


def test_all_is_built(folder: Path) -> None:
    name = NAME.replace("-", "_")
    assert {path.name for path in folder.iterdir()} == {
        f"{name}-{__version__}-py3-none-any.whl",
        f"{name}-{__version__}.tar.gz",
        f"etcd_watch_client-{client_version}-py3-none-any.whl",
        f"etcd_watch_client-{client_version}.tar.gz",
        f"etcd-watch-client-{JAVASCRIPT['version']}.tgz",
        f"{NAME}-{__version__}.tgz",
        "SHA256SUMS",
    }


def test_two_builds_of_a_commit_are_equal(folder: Path, tmp_path: Path) -> None:
    again = build(tmp_path).folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in again.iterdir()
    }


def test_checksums_are_those_of_the_files(folder: Path) -> None:
    done = run("sh", "-c", f"cd '{folder}' && sha256sum --strict --check SHA256SUMS")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK\n") == 6


def test_wheel_says_what_it_is(folder: Path) -> None:
    """The wheel has the metadata that an index shows and a company's licence check reads."""
    found = metadata(folder)
    assert (found["Name"], found["Version"], found["License-Expression"]) == (NAME, __version__, "Apache-2.0")
    assert found["License-File"] == "LICENSE"
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_payload() == (CHART.parents[1] / "README.md").read_text()
    assert found["Author"]
    assert found["Keywords"]
    assert found.get_all("Classifier")


def test_the_client_says_what_it_is(folder: Path) -> None:
    """The client is typed, brings its command, and needs one package."""
    found = metadata(folder, "etcd_watch_client")
    assert (found["Name"], found["Version"]) == ("etcd-watch-client", client_version)
    assert (found["License-Expression"], found["License-File"]) == ("Apache-2.0", "LICENSE")
    assert found.get_payload() == (CHART.parents[1] / "clients" / "python" / "README.md").read_text()
    needed = [one for one in found.get_all("Requires-Dist", []) if "extra ==" not in one]
    assert [re.match(r"[\w-]+", one)[0] for one in needed] == ["httpx"]  # type: ignore[index]
    with zipfile.ZipFile(next(folder.glob("etcd_watch_client-*.whl"))) as wheel:
        names = wheel.namelist()
        scripts = wheel.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert {name.partition("/")[0] for name in names} == {
        "etcd_watch_client", f"etcd_watch_client-{client_version}.dist-info",
    }  # fmt: skip
    assert "etcd_watch_client/py.typed" in names
    assert "etcd-watch = etcd_watch_client.cli.main:entry" in scripts
    with tarfile.open(next(folder.glob("etcd_watch_client-*.tar.gz"))) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "tests/test_mirror.py"} <= packed


def test_the_javascript_client_is_complete(folder: Path) -> None:
    """Every file that the package names is in it; it needs no other package, and has no tests."""
    with tarfile.open(next(folder.glob("etcd-watch-client-*.tgz"))) as package:
        files = {member.name.removeprefix("package/"): member for member in package.getmembers()}
        read = package.extractfile("package/README.md")
        assert read is not None
        readme = read.read()
    assert readme == (CHART.parents[1] / "clients" / "js" / "README.md").read_bytes()
    exported = re.findall(r"\./([\w.-]+\.\w+)", json.dumps(JAVASCRIPT["exports"]))
    assert {"LICENSE", "package.json", *exported} <= set(files)
    assert {member.mtime for member in files.values()} == {EPOCH}
    assert not [name for name in files if "test" in name]
    assert "dependencies" not in JAVASCRIPT


def test_sdist_has_what_a_packager_needs(folder: Path) -> None:
    with tarfile.open(next(folder.glob("etcd_watch_gateway-*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {
        "LICENSE",
        "Makefile",
        "pyproject.toml",
        "app/__init__.py",
        "tests/conftest.py",
        "requirements.txt",
    } <= names
    assert not {name for name in names if name.startswith((".cache", ".venv", "dist/", ".git/"))}


def test_chart_is_that_of_the_checkout(folder: Path) -> None:
    tool = get_helm(4)
    packed = folder / f"{NAME}-{__version__}.tgz"
    from_archive = run(tool, "template", "demo", packed, *CHOICE)
    assert from_archive.returncode == 0, from_archive.stderr
    assert from_archive.stdout == run(tool, "template", "demo", CHART, *CHOICE).stdout
    with tarfile.open(packed) as archive:
        assert not [member for member in archive.getmembers() if "/ci/" in member.name or member.mtime != EPOCH]


@pytest.mark.parametrize(
    ("digest", "pulled"),
    [
        ("", [("pull", "--quiet", "--policy", "always", "docker.io/library/python:3.13-slim-trixie")]),
        (
            "sha256:abc",
            [
                ("pull", "--quiet", "docker.io/library/python@sha256:abc"),
                ("tag", "docker.io/library/python@sha256:abc", "docker.io/library/python:3.13-slim-trixie"),
                ("rmi", "docker.io/library/python@sha256:abc"),
            ],
        ),
    ],
    ids=["of the tag", "of an earlier build"],
)
def test_the_image_says_what_its_base_is(
    digest: str, pulled: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both stages are built on the base that was pulled, and the labels name that base."""
    commands: list[tuple[str, ...]] = []

    def buildah(_store: Store, *arguments: str | Path) -> str:
        commands.append(tuple(map(str, arguments)))
        if arguments[0] == "push":
            with tarfile.open(str(arguments[-1]).removeprefix("oci-archive:").partition(".tar")[0] + ".tar", "w"):
                pass
        return "sha256:def" if arguments[0] == "images" else ""

    monkeypatch.setattr(Store, "buildah", buildah)
    release = Release(tmp_path, __version__, EPOCH, base_digest=digest)
    release.build_image()

    *first, _images, built, _push = commands
    assert first == pulled
    assert {"bud", "--pull-never"} < set(built)
    assert "--label=org.opencontainers.image.base.name=docker.io/library/python:3.13-slim-trixie" in built
    assert "--label=org.opencontainers.image.base.digest=sha256:def" in built
    assert release.image_archive.exists()


def test_what_cannot_be_built_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_release: Release) -> None:
        msg = "buildah"
        raise FileNotFoundError(msg)

    for name in ("build_python", "build_client", "build_javascript_client", "build_chart"):
        monkeypatch.setattr(Release, name, lambda _release: None)
    monkeypatch.setattr(Release, "build_image", refuse)
    assert build_all(Release(tmp_path, __version__, EPOCH)) == ["image", "SBOM of the image"]
    assert capsys.readouterr().out == (
        "NOT BUILT: image: buildah\nNOT BUILT: SBOM of the image: there is no image, so its contents cannot be listed\n"
    )
    assert (tmp_path / "SHA256SUMS").exists()


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("## [Unreleased]\n\n## [1.2.0] - 2026-01-02\n\n### Added\n\n- x\n", 0),
        ("## [1.2.0] - 2026-01-02\n", 0),
        ("## [Unreleased]\n\n### Added\n\n- x\n\n## [1.2.0] - 2026-01-02\n", 1),
        ("## [Unreleased]\n\n## [1.2.0]\n", 1),
        ("## [Unreleased]\n\n- x\n\n## [1.1.0] - 2026-01-02\n", 2),
    ],
)
def test_the_changelog_has_the_version(text: str, faults: int) -> None:
    assert len(list(changelog_faults(text, "1.2.0"))) == faults
