"""The Helm chart, with Helm 3 and 4, and the Dockerfile's lint."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor
from pydantic import BaseModel

from tests.support import helm
from tests.support.chart import CHART, CHOICE, TOP, Manifest, get_helm, manifests, run, template

VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
# The oldest that Chart.yaml allows, one in the middle, the newest that kubernetes-validate 1.37.0 has.
KUBERNETES = ("1.25", "1.31", "1.37")
# Kinds of the Prometheus operator.
OPERATOR: dict[str, type[BaseModel]] = {"ServiceMonitor": ServiceMonitor, "PrometheusRule": PrometheusRule}


@pytest.fixture(name="tool", params=sorted(helm.WHEELS), ids="helm{}".format)
def _tool(request: pytest.FixtureRequest) -> Path:
    return get_helm(request.param)


def refusal(tool: Path, *arguments: str) -> str:
    done = run(tool, "template", "demo", CHART, *arguments)
    assert done.returncode != 0, done.stdout
    return done.stderr


def container(deployment: Manifest) -> Manifest:
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def environment(deployment: Manifest) -> dict[str, str]:
    """What the process sees; what a Secret holds is not known here."""
    return {item["name"]: item.get("value", "of-a-secret") for item in container(deployment)["env"]}


def notes(*arguments: str) -> str:
    """The text that `helm install` ends with. Helm 3 needs a cluster for it, Helm 4 does not."""
    done = run(get_helm(4), "install", "demo", CHART, "--namespace", "here", "--dry-run=client", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:\n")[2]


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_lint(tool: Path, values: Path) -> None:
    """`helm lint --strict` has nothing to say about the values of ci/."""
    done = run(tool, "lint", "--strict", CHART, "-f", values)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout


@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_manifests(tool: Path, values: Path, kubernetes: str, tmp_path: Path) -> None:
    """Kubernetes' own schemas know every field that the chart writes."""
    text = template(tool, "-f", str(values), "--kube-version", kubernetes)
    (tmp_path / "rendered.yaml").write_text(text, encoding="utf-8")
    done = run(sys.executable, "-m", "kubernetes_validate", "--strict", "-k", kubernetes, tmp_path / "rendered.yaml")

    assert done.returncode == 0, done.stdout + done.stderr
    # A kind without a schema is a warning with status 0, so the passes are counted.
    said = done.stdout + done.stderr
    known = set(manifests(text)) - set(OPERATOR)
    assert said.count(" passed for resource ") == len(known), said
    assert known == {"Deployment", "Service"} | ({"ConfigMap"} if values.stem == "full-values" else set())


def test_kubernetes_validate_bites(tool: Path, tmp_path: Path) -> None:
    """The check above would see a misspelling."""
    (tmp_path / "bad.yaml").write_text(template(tool, *CHOICE).replace("minReadySeconds", "minReadySecond"))
    done = run(sys.executable, "-m", "kubernetes_validate", "--strict", "-k", KUBERNETES[0], tmp_path / "bad.yaml")

    assert done.returncode != 0
    assert "minReadySecond" in done.stdout + done.stderr


def vanished(given: object, kept: object, path: str = "") -> Iterator[str]:
    """Paths of what is in *given* and not in *kept*."""
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
    """Fields that the operator's kind does not have: its models take them without a word, and drop them."""
    model = OPERATOR[manifest["kind"]].model_validate(manifest)
    return list(vanished(manifest, model.model_dump(by_alias=True, mode="json", exclude_unset=True)))


@pytest.mark.parametrize("admin_port", [0, 9090])
@pytest.mark.parametrize("kind", OPERATOR)
def test_kinds_of_the_operator(tool: Path, kind: str, admin_port: int) -> None:
    """The Prometheus operator's own kinds know every field; they are there only when they are asked for."""
    values = str(CHART / "ci" / "full-values.yaml")
    manifest = manifests(template(tool, "-f", values, "--set", f"adminPort={admin_port}"))[kind]

    assert unknown_fields(manifest) == []
    assert manifest["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    assert set(manifests(template(tool, *CHOICE))) == {"Deployment", "Service"}


def test_the_check_of_kinds_bites(tool: Path) -> None:
    """It would see a misspelling, also deep inside, and a value of the wrong type."""
    found = manifests(template(tool, "-f", str(CHART / "ci" / "full-values.yaml")))
    monitor, rules = found["ServiceMonitor"], found["PrometheusRule"]
    monitor["spec"]["endpoints"][0]["intervall"] = "30s"
    rules["spec"]["groups"][0]["rules"][1]["annotation"] = {}

    assert unknown_fields(monitor) == [".spec.endpoints[0].intervall"]
    assert unknown_fields(rules) == [".spec.groups[0].rules[1].annotation"]
    monitor["spec"]["endpoints"] = "http"
    with pytest.raises(ValueError, match="endpoints"):
        unknown_fields(monitor)


@pytest.mark.parametrize(("admin_port", "where"), [(0, {"port": "http"}), (9090, {"targetPort": "admin"})])
def test_monitor_finds_the_metrics(tool: Path, admin_port: int, where: dict[str, str]) -> None:
    """It selects the Service, and names a port that the Service, or behind it the pod, has."""
    chosen = f"serviceMonitor.enabled=true,adminPort={admin_port}"
    found = manifests(template(tool, *CHOICE, "--set", chosen))
    spec = found["ServiceMonitor"]["spec"]

    assert spec["selector"]["matchLabels"].items() <= found["Service"]["metadata"]["labels"].items()
    assert spec["endpoints"] == [{**where, "path": "/metrics", "interval": "30s"}]
    ports = {port["name"] for port in found["Service"]["spec"]["ports"]}
    pods = {port["name"] for port in container(found["Deployment"])["ports"]}
    assert where.get("port", "http") in ports
    assert where.get("targetPort", "http") in pods


def test_required_choice(tool: Path) -> None:
    """Without a word about the prefixes nothing is rendered, and the message says what to do."""
    assert "allowPrefixes is required" in refusal(tool)
    assert "allowPrefixes is required" in refusal(tool, "--set-json", "allowPrefixes=[]")

    everything = manifests(template(tool, "--set-json", 'allowPrefixes=[""]'))

    assert environment(everything["Deployment"])["GATEWAY_ALLOW_PREFIXES"] == ""


def objects(schema: Manifest, path: str = "") -> Iterator[tuple[str, Manifest]]:
    """Every object schema, with its path."""
    if schema.get("type") == "object":
        yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from objects(inner, f"{path}.{name}")
    if "items" in schema:
        yield from objects(schema["items"], f"{path}[]")


def test_schema_is_closed() -> None:
    """No object of ours takes names that nobody reads; what is open belongs to Kubernetes or to the installer."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    nested = {**schema, "properties": {**schema["properties"], **schema["definitions"]}}
    opened = {path for path, found in objects(nested) if found.get("additionalProperties") is not False}

    assert opened == {
        ".texts",
        ".global",
        ".affinity.nodeAffinity",
        ".affinity.podAffinity",
        ".affinity.podAntiAffinity",
    }


def test_schema_has_every_value() -> None:
    """Each value is in the schema, and each name of the schema has its default in values.yaml."""
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    assert set(schema) - {"global"} == set(values)
    closed = ("image", "etcd", "token", "settings", "service", "serviceMonitor", "prometheusRule", "dashboard")
    for name in closed:
        assert set(schema[name]["properties"]) == set(values[name])
    thresholds = schema["prometheusRule"]["properties"]["thresholds"]["properties"]
    assert set(thresholds) == set(values["prometheusRule"]["thresholds"])


@pytest.mark.parametrize(
    "setting",
    [
        "nope=1",
        "image.nope=1",
        "etcd.nope=1",
        "token.nope=1",
        "settings.maxFeed=1",
        "service.nope=1",
        "resources.limit=1",
        "resources.limits.memroy=1Gi",
        "affinity.nope=1",
        "tolerations[0].kee=a",
        "replicas=many",
        "allowPrefixes=/svc/",
        "allowPrefixes[0]=/a\\,/b",
        "etcd.endpoints={}",
        "etcd.endpoints={etcd}",
        "etcd.endpoints={https://a:1,http://b:1}",
        "etcd.endpoints={https://a:1,b:1}",
        "etcd.tls.nope=1",
        "etcd.tls.existingSecret=etcd-client",
        "etcd.tls.clientCertificate=true",
        "etcd.tls.clientCertificate=sure",
        "etcd.auth.nope=1",
        "etcd.shared=perhaps",
        "serviceMonitor.nope=1",
        "serviceMonitor.interval=30",
        "prometheusRule.nope=1",
        "prometheusRule.selector={job=a}",
        "prometheusRule.etcdSelector=job=etcd",
        "prometheusRule.runbookUrl=a#b",
        "prometheusRule.thresholds.nope=1",
        "prometheusRule.thresholds.brokenFor=soon",
        "prometheusRule.thresholds.nearCap=80",
        "prometheusRule.thresholds.resets=0",
        "dashboard.nope=1",
        "settings.linger=soon",
        "settings.sendBuffer=64KB",
        "settings.logLevel=loud",
        "adminPort=70000",
        "adminPort=8080",
        "preStopSeconds=25",
        "drainWindowSeconds=50",
        "drainTimeoutSeconds=30",
    ],
)
def test_refused_values(tool: Path, setting: str) -> None:
    """What the gateway would not understand, or nobody would read, is refused before it is installed."""
    message = refusal(tool, *CHOICE, "--set", setting)

    assert setting.partition("=")[0].rpartition(".")[2].partition("[")[0] in message


def test_hardened(tool: Path) -> None:
    """The pod is what the restricted Pod Security Standard asks for, and a little more."""
    pod = manifests(template(tool, *CHOICE))["Deployment"]["spec"]["template"]["spec"]
    (only,) = pod["containers"]

    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_drain_fits(tool: Path, values: Path) -> None:
    """A pod is killed later than it has to be done with its streams."""
    deployment = manifests(template(tool, "-f", str(values)))["Deployment"]
    pause = container(deployment).get("lifecycle", {"preStop": {"exec": {"command": ["sleep", "0"]}}})
    sleep, seconds = pause["preStop"]["exec"]["command"]

    assert sleep == "sleep"
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    told = environment(deployment)
    assert grace > int(seconds) + int(told["GATEWAY_DRAIN_WINDOW"]) + int(told["GATEWAY_DRAIN_TIMEOUT"])


def test_service_finds_the_pods(tool: Path) -> None:
    """The Service selects what the Deployment makes, and names a port that the container has."""
    found = manifests(template(tool, *CHOICE))
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    (port,) = found["Service"]["spec"]["ports"]

    assert found["Service"]["spec"]["selector"].items() <= labels.items()
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == found["Service"]["spec"]["selector"]
    assert port["targetPort"] in {item["name"] for item in container(found["Deployment"])["ports"]}
    assert found["Deployment"]["spec"]["replicas"] == 3


def test_admin_port(tool: Path) -> None:
    """With an admin port the probes ask there, and the Service does not have it."""
    found = manifests(template(tool, *CHOICE, "--set", "adminPort=9090"))
    gateway = container(found["Deployment"])

    assert environment(found["Deployment"])["GATEWAY_ADMIN_PORT"] == "9090"
    assert {"name": "admin", "containerPort": 9090} in gateway["ports"]
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert gateway[probe]["httpGet"] == {"path": path, "port": "admin"}
    assert [port["name"] for port in found["Service"]["spec"]["ports"]] == ["http"]


def test_secrets_for_etcd(tool: Path) -> None:
    """Each file that a variable names is mounted from a Secret, as a folder that changes with it; else none is."""
    found = manifests(template(tool, "-f", str(CHART / "ci" / "full-values.yaml")))["Deployment"]
    volumes = {volume["name"]: volume["secret"] for volume in found["spec"]["template"]["spec"]["volumes"]}
    files = {
        f"{mount['mountPath']}/{item['path']}": (volumes[mount["name"]]["secretName"], item["key"])
        for mount in container(found)["volumeMounts"]
        for item in volumes[mount["name"]]["items"]
    }
    named = {name: value for name, value in environment(found).items() if value.startswith("/etc/")}

    assert {name: files[value] for name, value in named.items()} == {
        "GATEWAY_TOKEN_FILE": ("gateway-token", "bearer"),
        "GATEWAY_ETCD_CACERT": ("etcd-client", "ca.crt"),
        "GATEWAY_ETCD_CERT": ("etcd-client", "tls.crt"),
        "GATEWAY_ETCD_KEY": ("etcd-client", "tls.key"),
        "GATEWAY_ETCD_PASSWORD_FILE": ("etcd-user", "password"),
    }
    assert len(files) == len(named)
    (user,) = (item for item in container(found)["env"] if item["name"] == "GATEWAY_ETCD_USER")
    assert user["valueFrom"] == {"secretKeyRef": {"name": "etcd-user", "key": "username"}}
    assert not any("subPath" in mount or not mount["readOnly"] for mount in container(found)["volumeMounts"])
    plain = manifests(template(tool, *CHOICE))["Deployment"]
    assert "volumes" not in plain["spec"]["template"]["spec"]
    assert not any(name.startswith("GATEWAY_ETCD_") for name in environment(plain))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ("etcd.tls.existingSecret=a", {"GATEWAY_ETCD_CACERT"}),
        (
            "etcd.tls.existingSecret=a,etcd.tls.clientCertificate=true",
            {"GATEWAY_ETCD_CACERT", "GATEWAY_ETCD_CERT", "GATEWAY_ETCD_KEY"},
        ),
        ("etcd.auth.existingSecret=a", {"GATEWAY_ETCD_USER", "GATEWAY_ETCD_PASSWORD_FILE"}),
    ],
    ids=["ca", "certificate", "user"],
)
def test_one_secret_alone(tool: Path, settings: str, names: set[str]) -> None:
    """Each goes without the others."""
    endpoints = "etcd.endpoints={https://a:1}"
    found = manifests(template(tool, *CHOICE, "--set", endpoints, "--set", settings))["Deployment"]

    assert {name for name in environment(found) if name.startswith("GATEWAY_ETCD_")} == names
    assert len(found["spec"]["template"]["spec"]["volumes"]) == len(container(found)["volumeMounts"]) == 1


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_environment_is_understood(tool: Path, values: Path) -> None:
    """Each variable is a setting of the gateway, and the gateway takes its value."""
    from app.settings import Settings

    deployment = manifests(template(tool, "-f", str(values)))["Deployment"]
    fields = {name.removeprefix("GATEWAY_").lower(): value for name, value in environment(deployment).items()}

    assert set(fields) <= set(Settings.model_fields)
    taken = Settings.model_validate(fields)
    if values.stem == "full-values":
        assert taken.max_feed_bytes == 268435456
        assert taken.linger == 0
        assert taken.allowed == (b"/svc/", b"/bin/\xff", b"/a&b/")
        assert len(taken.etcd) == 3


def test_every_setting_has_a_value() -> None:
    """What the gateway can be told, the chart can tell it."""
    from app.settings import Settings

    elsewhere = {"etcd", "host", "port", "admin_port", "allow_prefixes", "token_file", "cors_origins", "epoch"}
    elsewhere |= {"etcd_cacert", "etcd_cert", "etcd_key", "etcd_user", "etcd_password_file"}  # etcd.tls, etcd.auth
    own = {"drain_window", "drain_timeout", "instance"}  # drainWindowSeconds, drainTimeoutSeconds; the pod's name
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    named = {re.sub("[A-Z]", lambda match: f"_{match[0].lower()}", name) for name in values["settings"]}

    assert named == set(Settings.model_fields) - elsewhere - own


def test_notes() -> None:
    """The text after an installation says what is there: names, ports, prefixes, and what is open."""
    text = notes(*CHOICE)

    assert "port-forward service/demo-etcd-watch-gateway 8080:80" in text
    assert "curl -N 'http://127.0.0.1:8080/v1/watch?prefix=/svc/'" in text
    assert "No image is published" in text
    assert "No token is asked for" in text
    assert "same port" in text
    assert "Every key" not in text
    assert "{{" not in text


def test_notes_follow_the_values() -> None:
    """Every sentence goes with what was chosen."""
    text = notes("-f", str(CHART / "ci" / "full-values.yaml"))

    assert "No image is published" not in text
    assert "No token" not in text
    assert 'Authorization: Bearer $TOKEN" ' in text
    assert """{{ index .data "bearer" | base64decode }}""" in text
    assert "port-forward deployment/demo-etcd-watch-gateway 9090:9090" in text
    assert "same port" not in text
    assert "without a token: allowPrefixes has an empty prefix" in notes("--set-json", 'allowPrefixes=[""]')


def test_version() -> None:
    """The image's default tag is the version of the package."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert chart["appVersion"] == tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"]


def test_dockerfile() -> None:
    """hadolint has nothing to say."""
    done = run(Path(sys.executable).parent / "hadolint", TOP / "Dockerfile")

    assert done.returncode == 0, done.stdout + done.stderr


def test_image_and_chart_agree(tool: Path) -> None:
    """The chart's user and port are those of the image."""
    dockerfile = (TOP / "Dockerfile").read_text()
    deployment = manifests(template(tool, *CHOICE))["Deployment"]
    context = deployment["spec"]["template"]["spec"]["securityContext"]

    assert f"USER {context['runAsUser']}:{context['runAsGroup']}\n" in dockerfile
    assert f"EXPOSE {container(deployment)['ports'][0]['containerPort']}\n" in dockerfile
    assert 'ENTRYPOINT ["etcd-watch-gateway"]\n' in dockerfile
    assert container(deployment)["args"] == ["serve"]
