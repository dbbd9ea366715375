"""The Helm chart, rendered."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import pytest
import yaml
from pydantic import BaseModel

from tests.support import helm
from tests.support.waiting import HANG

TOP = Path(__file__).parents[2]
CHART = TOP / "helm" / "etcd-watch-gateway"
CHOICE = ("--set", "allowPrefixes={/svc/}")

# The oldest version that Chart.yaml allows, one in the middle, and the newest that kubernetes-validate 1.37.0 has.
KUBERNETES = ("1.25", "1.31", "1.37")

Manifest = dict[str, Any]


def get_helm(major: int) -> Path:
    """The Helm of that major version; without it the test is skipped, with a message."""
    try:
        return helm.ensure(major)
    except helm.NotToBeHadError as error:
        pytest.skip(f"NOT RUN: {error}")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command at the top of the checkout."""
    # Helm lives for 0.1 s. Collecting Go's garbage is a fifth of its CPU.
    env = {**os.environ, "GOGC": "off"}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG, cwd=TOP, env=env)


@cache
def template(tool: Path, *arguments: str) -> str:
    """The output of `helm template` for a release named demo."""
    done = run(tool, "template", "demo", CHART, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifests(text: str) -> dict[str, Manifest]:
    """The manifests by kind; the chart has one manifest of each kind."""
    documents = [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]  # in C: a tenth of the CPU
    found = {document["kind"]: document for document in documents}
    assert len(found) == len(documents)
    return found


def refusal(tool: Path, *arguments: str) -> str:
    done = run(tool, "template", "demo", CHART, *arguments)
    assert done.returncode != 0, done.stdout
    return done.stderr


def refusals(tool: Path, settings: Sequence[str]) -> dict[str, str]:
    """What the schema of the values says to each of *settings*, alone beside ``CHOICE``; one that it accepts is absent.

    One Helm is asked for all: a chart that has this chart once per setting, under an alias. 200 runs took 14 s of CPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(CHART, Path(folder) / "charts" / CHART.name)
        one = {"name": CHART.name, "version": "*", "repository": ""}
        many = [{**one, "alias": f"v{at}"} for at in range(len(settings))]
        whole = {"apiVersion": "v2", "name": "many", "version": "0.0.0", "dependencies": many}
        (Path(folder) / "Chart.yaml").write_text(yaml.safe_dump(whole))
        given = [
            word for at, one in enumerate(settings) for each in (CHOICE[1], one) for word in ("--set", f"v{at}.{each}")
        ]
        done = run(tool, "template", "demo", folder, *given)
    assert done.returncode != 0, done.stdout
    parts = re.split(r"^v(\d+):$", done.stderr, flags=re.MULTILINE)
    return {settings[int(at)]: text for at, text in zip(parts[1::2], parts[2::2], strict=True)}


def container(deployment: Manifest) -> Manifest:
    first = deployment["spec"]["template"]["spec"]["containers"][0]
    assert isinstance(first, dict)
    return first


def environment(deployment: Manifest) -> dict[str, str]:
    """The environment of the process; the values from a Secret are unknown here."""
    return {item["name"]: item.get("value", "of-a-secret") for item in container(deployment)["env"]}


def notes(*arguments: str) -> str:
    """The text that `helm install` ends with. Helm 3 needs a cluster for the text, Helm 4 does not."""
    done = run(get_helm(4), "install", "demo", CHART, "--namespace", "here", "--dry-run=client", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:\n")[2]


def validated(text: str, kubernetes: str) -> set[str]:
    """The kinds whose objects Kubernetes' own schemas accept; other kinds have no schema there.

    Raises:
        ValidationError: an object has a field that Kubernetes does not know, or a value of the wrong type.
    """
    return {
        kind
        for kind, manifest in manifests(text).items()
        if _is_known(json.dumps(manifest, sort_keys=True), kubernetes)
    }


@cache
def _is_known(manifest: str, kubernetes: str) -> bool:
    """Whether Kubernetes has a schema for an object, which then accepts the object. Both Helms make equal objects."""
    try:
        kubernetes_validate.validate(json.loads(manifest), kubernetes, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return False
    return True


def vanished(given: object, kept: object, path: str = "") -> Iterator[str]:
    """The paths of what is in *given* and not in *kept*."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for name, inner in given.items():
            if name in kept:
                yield from vanished(inner, kept[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}"
    elif isinstance(given, list) and isinstance(kept, list):
        for number, (inner, other) in enumerate(zip(given, kept, strict=True)):
            yield from vanished(inner, other, f"{path}[{number}]")


def unknown_fields(manifest: Manifest) -> list[str]:
    """Fields that the operator's kind does not have: its models accept them silently, and drop them."""
    # Imported here, because these models take 4 s of CPU and every worker imports every test file.
    from cloudcoil.models.prometheus_operator import v1

    kind: type[BaseModel] = getattr(v1, manifest["kind"])
    model = kind.model_validate(manifest)
    return list(vanished(manifest, model.model_dump(by_alias=True, mode="json", exclude_unset=True)))


def mounted(deployment: Manifest) -> dict[str, tuple[str, str]]:
    """The variables that name a file, and the Secret or ConfigMap and its key that the file is. No other file is
    mounted.
    """
    files = {}
    for volume in deployment["spec"]["template"]["spec"]["volumes"]:
        if "emptyDir" in volume:  # for the socket between the hub and its workers
            continue
        (path,) = (m["mountPath"] for m in container(deployment)["volumeMounts"] if m["name"] == volume["name"])
        sources = volume["projected"]["sources"] if "projected" in volume else [volume]
        for source in sources:
            kept = source.get("secret") or source["configMap"]
            for item in kept["items"]:
                files[f"{path}/{item['path']}"] = (kept.get("secretName") or kept["name"], item["key"])
    named = {name: value for name, value in environment(deployment).items() if value.startswith("/etc/")}
    assert sorted(files) == sorted(named.values())
    return {name: files[value] for name, value in named.items()}
