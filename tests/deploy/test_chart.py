"""The Helm chart, with Helm 3 and 4, and the lint of the Dockerfile."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import pytest
import yaml

from app.settings import Settings
from tests.support import gateway_api
from tests.support.chart import (
    CHART,
    CHOICE,
    KUBERNETES,
    TOP,
    Manifest,
    container,
    environment,
    get_helm,
    manifests,
    mounted,
    notes,
    refusal,
    refusals,
    run,
    template,
    unknown_fields,
    validated,
)
from tests.support.embedded import EmbeddedEtcd
from tests.support.gateway import gateway
from tests.support.waiting import HANG
from tools import chart

pytestmark = pytest.mark.process  # helm is a process

VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
# The Prometheus operator's kinds.
OPERATOR = ("ServiceMonitor", "PrometheusRule")
# The kinds that are always there, and what `helm test` adds.
ALWAYS = {"Deployment", "Service", "PodDisruptionBudget", "Pod"}
# What the files in ci/ add.
ON_DEMAND = {
    "access-values": {"ConfigMap", "Ingress", "Secret"},
    "extras-values": {"ConfigMap", "LimitRange", "NetworkPolicy", "ServiceAccount"},
    "openshift-values": {"Ingress"},
    "upstream-values": {"NetworkPolicy"},
    "full-values": {"ConfigMap", "HorizontalPodAutoscaler", "Ingress", "NetworkPolicy"},
}


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_lint(tool: Path, values: Path) -> None:
    """`helm lint --strict` finds no fault with the values of ci/."""
    done = run(tool, "lint", "--strict", CHART, "-f", values)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout


@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_manifests(tool: Path, values: Path, kubernetes: str) -> None:
    """Kubernetes' own schemas know every field that the chart writes."""
    text = template(tool, "-f", str(values), "--kube-version", kubernetes)
    known = set(manifests(text)) - set(OPERATOR) - {"HTTPRoute"}

    assert validated(text, kubernetes) == known
    assert known == ALWAYS | ON_DEMAND.get(values.stem, set())


def test_kubernetes_validate_bites(tool: Path) -> None:
    """The check above finds a misspelling."""
    with pytest.raises(kubernetes_validate.ValidationError, match="minReadySecond"):
        validated(template(tool, *CHOICE).replace("minReadySeconds", "minReadySecond"), KUBERNETES[1])


@pytest.mark.parametrize("admin_port", [0, 9090])
@pytest.mark.parametrize("kind", OPERATOR)
def test_kinds_of_the_operator(tool: Path, kind: str, admin_port: int) -> None:
    """The Prometheus operator's own kinds know every field; these objects exist only if the values ask for them."""
    values = str(CHART / "ci" / "full-values.yaml")
    manifest = manifests(template(tool, "-f", values, "--set", f"adminPort={admin_port}"))[kind]

    assert unknown_fields(manifest) == []
    assert manifest["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    assert set(manifests(template(tool, *CHOICE))) == ALWAYS


def test_kinds_of_the_operator_are_checked(tool: Path) -> None:
    """The check of kinds finds a misspelling, also deep inside, and a value of the wrong type."""
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
    """The monitor selects the Service, and names a port that the Service has, or that only the pods have."""
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
    """Without a choice of prefixes nothing is rendered, and the message tells what to do."""
    assert "allowPrefixes is required" in refusal(tool)
    assert "allowPrefixes is required" in refusal(tool, "--set-json", "allowPrefixes=[]")

    everything = manifests(template(tool, "--set-json", 'allowPrefixes=[""]'))

    assert environment(everything["Deployment"])["GATEWAY_ALLOW_PREFIXES"] == ""


def objects(schema: Manifest, path: str = "") -> Iterator[tuple[str, Manifest]]:
    """Every object schema, with its path."""
    if "object" in (schema.get("type"), *schema.get("type", [])):
        yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from objects(inner, f"{path}.{name}")
    for name, inner in schema.get("$defs", {}).items():
        yield from objects(inner, name)
    for inner in schema.get("anyOf", []):
        yield from objects(inner, path)
    if "items" in schema:
        yield from objects(schema["items"], f"{path}[]")


def test_schema_is_closed() -> None:
    """Our own objects accept no unknown names; an open object belongs to Kubernetes or to the installer."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    opened = {path for path, found in objects(schema) if found.get("additionalProperties") is not False}

    assert opened == {
        ".commonLabels", ".deploymentAnnotations", ".extraObjects[]", ".extraPodSpec", ".global", ".nodeSelector",
        ".podAnnotations", ".podLabels",
        "ContainerSecurityContext.appArmorProfile", "ContainerSecurityContext.seLinuxOptions",
        "ContainerSecurityContext.seccompProfile", "Named", "PodSecurityContext.appArmorProfile",
        "PodSecurityContext.seLinuxOptions", "PodSecurityContext.seccompProfile", "ServiceAccount.annotations",
        "TopologySpreadConstraint",
        "NetworkPolicy.extraEgress[]", "NetworkPolicy.extraIngress[]", "PolicyDocument.roles",
        "Affinity.nodeAffinity", "Affinity.podAffinity", "Affinity.podAntiAffinity",
        "Dashboard.annotations", "Dashboard.labels", "HttpRoute.annotations", "Ingress.annotations",
        "PrometheusRule.labels", "Selector.matchLabels", "Service.annotations", "ServiceMonitor.labels",
    }  # fmt: skip


def test_generated_files_are_current() -> None:
    """`make chart` would leave the schema and the README unchanged; so every value has a type."""
    text = (CHART / "README.md").read_text()

    assert chart.schema() == (CHART / "values.schema.json").read_text()
    assert chart.readme(text) == text
    chart.root().model_validate(yaml.safe_load((CHART / "values.yaml").read_text()))
    with pytest.raises(ValueError, match="nope"):
        chart.root().model_validate({**yaml.safe_load((CHART / "values.yaml").read_text()), "nope": 1})


README = (CHART / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("values", re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
def test_examples_of_the_readme(values: str, tmp_path: Path) -> None:
    """The chart takes each, and Kubernetes knows what it makes of them."""
    (tmp_path / "values.yaml").write_text(values)
    text = template(get_helm(4), *CHOICE, "-f", str(tmp_path / "values.yaml"))

    assert "Deployment" in validated(text, KUBERNETES[-1])


def test_readme_has_every_value() -> None:
    """Each value of values.yaml has a line in the README, with its default."""
    text = (CHART / "README.md").read_text()

    assert "| `etcd.tls.clientCertificate` | `false` | Show etcd" in text
    assert "| `replicas` | `3` | Two replicas survive" in text
    assert "| `settings.linger` | `null` | how long a feed stays" in text
    for name in yaml.safe_load((CHART / "values.yaml").read_text()):
        assert f"`{name}" in text or f"**{name}**" in text


REFUSED = [
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
    "pin=/svc/",
    "pin[0]=/a\\,/b",
    "pin={}",
    "gzipPrefixes=/svc/",
    "gzipPrefixes[0]=/a\\,/b",
    "settings.gzipPrefixes={/svc/}",
    "settings.pin={/svc/}",
    "settings.maxChannels=0",
    "etcd.endpoints={}",
    "etcd.endpoints={etcd}",
    "etcd.endpoints={https://a:1,http://b:1}",
    "etcd.endpoints={https://a:1,b:1}",
    "etcd.tls.nope=1",
    "etcd.tls.existingSecret=etcd-client",
    "etcd.tls.clientCertificate=true",
    "etcd.tls.clientCertificate=sure",
    "etcd.auth.nope=1",
    "tls.nope=1",
    "tls.clientCaSecret=a",
    "serviceMonitor.tlsConfig.nope=1",
    "etcd.shared=perhaps",
    "serviceMonitor.nope=1",
    "serviceMonitor.interval=30",
    "prometheusRule.nope=1",
    "prometheusRule.selector={job=a}",
    "prometheusRule.etcdSelector=job=etcd",
    "prometheusRule.runbookUrl=https://a/b#c",
    "prometheusRule.runbookUrl=docs/runbook.md",
    "prometheusRule.severities.page=page",
    "serviceMonitor.relabelings[0].source=a",
    "serviceMonitor.scrapeTimeout=soon",
    "prometheusRule.thresholds.nope=1",
    "prometheusRule.thresholds.brokenFor=soon",
    "prometheusRule.thresholds.nearCap=80",
    "prometheusRule.thresholds.resets=0",
    "dashboard.nope=1",
    "ingress.nope=1",
    "ingress.enabled=true",
    "ingress.hosts[0]=https://a",
    "ingress.hosts={a/b}",
    "httpRoute.nope=1",
    "httpRoute.enabled=true",
    "httpRoute.parentRefs[0].nam=a",
    "networkPolicy.nope=1",
    "networkPolicy.clients[0].namespaceSelectr.a=b",
    "networkPolicy.clients[0].podSelector.matchLabel.a=b",
    "networkPolicy.etcd[0].ipBlock.cdr=10.0.0.0/8",
    "autoscaling.nope=1",
    "autoscaling.cpu=lots",
    "autoscaling.minReplicas=0",
    "podDisruptionBudget.nope=1",
    "podDisruptionBudget.maxUnavailable=0",
    "podDisruptionBudget.minAvailable=0",
    "podDisruptionBudget.minAvailable=3",  # of three replicas: no node could be drained
    "podDisruptionBudget.minAvailable=75%",  # the same: a share is rounded up
    "settings.maxFeedBytes=9223372036854775807",  # helm wrote it as a negative number
    "settings.maxSubscribers=9223372036854775807",
    "settings.workers=0",
    "settings.workers=257",
    "host=127.0.0.1",
    "host=localhost",
    "host=::1",
    "strategy.type=Roll",
    "strategy.rollingUpdate.maxSurge=lots",
    "strategy.rollingUpdate.maxSurge=0",  # maxUnavailable is 0, too: no pod could be replaced
    "strategy.rollingUpdate.maxSurge=0%",
    "probes.liveness.httpGet=a",
    "probes.liveness.periodSeconds=0",
    "nameOverride=A_b",
    "fullnameOverride=a.b",
    "commonLabels.app\\.kubernetes\\.io/name=a",
    "podLabels.app\\.kubernetes\\.io/instance=a",
    "serviceAccount.nope=1",
    "service.nodePort=0",
    "service.externalTrafficPolicy=Here",
    "extraVolumes[0].name[0]=a",
    "extraVolumeMounts[0].name=nope,extraVolumeMounts[0].mountPath=/a",
    "extraContainers[0].name=gateway",
    "extraInitContainers[0].name[0]=a",
    "extraPodSpec.volumes=a",
    "topologySpreadConstraints[0].whenUnsatisfiable=a",
    "containerSecurityContext.privileged=true",
    "containerSecurityContext.runAsUser=0",
    "podSecurityContext.hostPID=true",
    "ingress.paths[0].path=v1",
    "helmTest.nope=1",
    "trustedProxies=10.0.0.0/8",
    "settings.drainPace=0",
    "settings.linger=soon",
    "host=a b",
    "host=http://a",
    "extraEnv[0].value=a",
    "extraEnv[0].name=A=B",
    "extraEnv[0].nam=A",
    "extraEnv={A}",
    "extraEnvFrom[0].secretRef.nam=a",
    "extraEnvFrom[0].secret=a",
    "podSecurityContext.runAsUser=0",
    "podSecurityContext.runAsNonRoot=false",
    "podSecurityContext.fsGroup=nobody",
    "settings.sendBuffer=64KB",
    "settings.logLevel=loud",
    "adminPort=70000",
    "adminPort=8080",
    "preStopSeconds=25",
    "drainWindowSeconds=50",
    "drainTimeoutSeconds=30",
]


# What is missing, where that is the mistake.
WITHOUT = {"extraEnv[0].value=a": "name"}


@cache
def refused_by_the_schema(tool: Path) -> dict[str, str]:
    """What the schema says to each value that sets one thing; to some it says nothing."""
    return refusals(tool, [setting for setting in REFUSED if setting.count("=") == 1])


@pytest.mark.parametrize("setting", REFUSED)
def test_refused_values(tool: Path, setting: str) -> None:
    """A value that the gateway would not understand, or that nothing would read, is refused before the installation."""
    # What the schema accepts is refused by a template. Helm stops at the first of these.
    message = refused_by_the_schema(tool).get(setting) or refusal(tool, *CHOICE, "--set", setting)

    name = setting.replace("\\.", "·").partition("=")[0].rpartition(".")[2].partition("[")[0].replace("·", ".")
    assert WITHOUT.get(setting, name) in message


def test_hardened(tool: Path) -> None:
    """The pod meets the restricted Pod Security Standard, and a little more."""
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


@pytest.mark.parametrize("host", ["", "::", "10.0.0.1"])
def test_host(tool: Path, host: str) -> None:
    """The pod listens on both address families, unless the values name one."""
    arguments = ("--set-string", f"host={host}") if host else ()
    told = environment(manifests(template(tool, *CHOICE, *arguments))["Deployment"])

    assert told["GATEWAY_HOST"] == host


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_drain_fits(tool: Path, values: Path) -> None:
    """The grace period of a pod is longer than its drain."""
    deployment = manifests(template(tool, "-f", str(values)))["Deployment"]
    pause = container(deployment).get("lifecycle", {"preStop": {"exec": {"command": ["sleep", "0"]}}})
    sleep, seconds = pause["preStop"]["exec"]["command"]

    assert sleep == "sleep"
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    told = environment(deployment)
    assert grace > int(seconds) + int(told["GATEWAY_DRAIN_WINDOW"]) + int(told["GATEWAY_DRAIN_TIMEOUT"])


def test_service_finds_the_pods(tool: Path) -> None:
    """The Service selects the Deployment's pods, and names a port that the container has."""
    found = manifests(template(tool, *CHOICE))
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    (port,) = found["Service"]["spec"]["ports"]

    assert found["Service"]["spec"]["selector"].items() <= labels.items()
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == found["Service"]["spec"]["selector"]
    assert port["targetPort"] in {item["name"] for item in container(found["Deployment"])["ports"]}
    assert found["Deployment"]["spec"]["replicas"] == 3


@pytest.mark.parametrize(
    ("settings", "there"),
    [
        ("replicas=1", False),
        ("replicas=2", True),
        ("podDisruptionBudget.enabled=false", False),
        ("replicas=1,autoscaling.enabled=true", True),
        ("autoscaling.enabled=true,autoscaling.minReplicas=1", True),
        ("autoscaling.enabled=true,autoscaling.minReplicas=1,autoscaling.maxReplicas=1", False),
        ("autoscaling.enabled=true,autoscaling.minReplicas=1,podDisruptionBudget.minAvailable=1", False),
    ],
)
def test_disruption_budget(tool: Path, settings: str, there: bool) -> None:
    """A single replica has no budget: `minAvailable` would keep its node from being drained."""
    found = manifests(template(tool, *CHOICE, "--set", settings))

    assert ("PodDisruptionBudget" in found) == there
    if there:
        spec = found["PodDisruptionBudget"]["spec"]
        assert spec["maxUnavailable"] == 1
        assert spec["selector"] == found["Deployment"]["spec"]["selector"]


@pytest.mark.parametrize(("kubernetes", "said"), [("1.25", None), ("1.27", "AlwaysAllow")])
def test_eviction_of_what_is_not_ready(tool: Path, kubernetes: str, said: str | None) -> None:
    """Where Kubernetes has the field by default, a pod that is not ready does not keep its node from being drained."""
    found = manifests(template(tool, *CHOICE, "--kube-version", kubernetes))

    assert found["PodDisruptionBudget"]["spec"].get("unhealthyPodEvictionPolicy") == said


def test_autoscaling(tool: Path) -> None:
    """The autoscaler scales the Deployment, which then sets no number of replicas that would conflict."""
    found = manifests(template(tool, *CHOICE, "--set", "autoscaling.enabled=true"))
    spec = found["HorizontalPodAutoscaler"]["spec"]
    target = {key: found["Deployment"][key] for key in ("apiVersion", "kind")}

    assert spec["scaleTargetRef"] == {**target, "name": found["Deployment"]["metadata"]["name"]}
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 10)
    assert spec["metrics"][0]["resource"]["target"] == {"type": "AverageValue", "averageValue": "700m"}
    assert "replicas" not in found["Deployment"]["spec"]
    assert "minReplicas (11)" in refusal(tool, *CHOICE, "--set", "autoscaling.enabled=true,autoscaling.minReplicas=11")


def test_ingress(tool: Path) -> None:
    """The Ingress has exactly two paths for each host, to the Service's port, and ingress-nginx' stream settings."""
    found = manifests(template(tool, *CHOICE, "--set", "ingress.enabled=true,ingress.hosts={a.example,b.example}"))
    ingress, service = found["Ingress"], found["Service"]

    assert [rule["host"] for rule in ingress["spec"]["rules"]] == ["a.example", "b.example"]
    for rule in ingress["spec"]["rules"]:
        assert [(path["path"], path["pathType"]) for path in rule["http"]["paths"]] == [
            ("/v1/kv", "Exact"),
            ("/v1/watch", "Exact"),
        ]
        for path in rule["http"]["paths"]:
            backend = path["backend"]["service"]
            assert backend["name"] == service["metadata"]["name"]
            assert backend["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
    notes = ingress["metadata"]["annotations"]
    assert (
        int(notes["nginx.ingress.kubernetes.io/proxy-read-timeout"]) >= 4 * Settings.model_fields["heartbeat"].default
    )
    assert notes["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert "tls" not in ingress["spec"]
    assert "ingressClassName" not in ingress["spec"]


def test_ingress_over_tls(tool: Path) -> None:
    """The certificate is for all hosts; an annotation that is null is removed."""
    ingress = manifests(template(tool, "-f", str(CHART / "ci" / "full-values.yaml")))["Ingress"]
    names = {name.rpartition("/")[2] for name in ingress["metadata"]["annotations"]}

    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["spec"]["tls"] == [{"secretName": "gateway-tls", "hosts": ["gateway.example", "*.other.example"]}]
    assert names == {"proxy-read-timeout", "proxy-send-timeout", "proxy-next-upstream", "backend-protocol"}


def test_http_route(tool: Path) -> None:
    """The route has the same two paths, and no timeout for a stream or for a held answer."""
    values = str(CHART / "ci" / "full-values.yaml")
    found = manifests(template(tool, "-f", values))
    route = gateway_api.HTTPRoute.model_validate(found["HTTPRoute"])

    paths = {match.path.value: rule for rule in route.spec.rules for match in rule.matches}
    assert {match.path.type for rule in route.spec.rules for match in rule.matches} == {"Exact"}
    more = {"/v1/access", "/v1/session", "/.well-known/oauth-protected-resource"}
    assert set(paths) == {"/v1/kv", "/v1/watch", *more}
    for path in ("/v1/watch", "/v1/kv"):
        assert paths[path].timeouts == gateway_api.Timeouts(request="0s")
    (port,) = found["Service"]["spec"]["ports"]
    for rule in route.spec.rules:
        assert rule.backendRefs == [
            gateway_api.BackendRef(name=found["Service"]["metadata"]["name"], port=port["port"])
        ]
    assert route.spec.parentRefs == [gateway_api.ParentRef(name="public", namespace="gateways", sectionName="https")]

    found["HTTPRoute"]["spec"]["rules"][0]["timeouts"]["reqest"] = "0s"
    with pytest.raises(ValueError, match="reqest"):
        gateway_api.HTTPRoute.model_validate(found["HTTPRoute"])


def test_network_policy(tool: Path) -> None:
    """Clients may reach the public port, Prometheus the admin port, the gateway DNS and etcd; nothing else is open.

    OpenShift's DNS pods listen on another port than their Service, and a policy applies to that of the pods.
    """
    found = manifests(template(tool, "-f", str(CHART / "ci" / "full-values.yaml")))
    spec = found["NetworkPolicy"]["spec"]
    clients, metrics = spec["ingress"]
    names, of_openshift, etcd, issuer = spec["egress"]

    assert spec["podSelector"] == found["Deployment"]["spec"]["selector"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert clients["ports"] == [{"port": "http", "protocol": "TCP"}]
    tester = {"podSelector": {"matchLabels": clients["from"][-1]["podSelector"]["matchLabels"]}}
    assert tester["podSelector"]["matchLabels"].items() <= found["Pod"]["metadata"]["labels"].items()
    assert len(clients["from"]) == 3
    assert metrics == {
        "ports": [{"port": "admin", "protocol": "TCP"}],
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    }
    assert {"port", "protocol"} == set(names["ports"][0])
    assert {port["port"] for port in names["ports"]} == {53}
    assert of_openshift == {
        "ports": [{"port": 5353, "protocol": "UDP"}, {"port": 5353, "protocol": "TCP"}],
        "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "openshift-dns"}}}],
    }
    assert etcd == {
        "ports": [{"port": 2379, "protocol": "TCP"}],
        "to": [{"podSelector": {"matchLabels": {"app": "etcd"}}}],
    }
    assert issuer == {"ports": [{"port": 443, "protocol": "TCP"}]}
    assert {"http", "admin"} <= {port["name"] for port in container(found["Deployment"])["ports"]}


def test_network_policy_without_peers(tool: Path) -> None:
    """Without peers, all may reach the public port, none the admin port, and the gateway the ports of all endpoints."""
    endpoints = "etcd.endpoints={http://a:2379,http://b:2379,http://c:4001}"
    found = manifests(template(tool, *CHOICE, "--set", "networkPolicy.enabled=true", "--set", endpoints))
    spec = found["NetworkPolicy"]["spec"]

    assert spec["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    assert [port["port"] for port in spec["egress"][2]["ports"]] == [2379, 4001]
    assert "to" not in spec["egress"][2]


def test_network_policy_without_admin_port(tool: Path) -> None:
    """Without an admin port Prometheus may reach the public port, even if the values name the clients."""
    values = str(CHART / "ci" / "full-values.yaml")
    (only,) = manifests(template(tool, "-f", values, "--set", "adminPort=0"))["NetworkPolicy"]["spec"]["ingress"]

    assert only["ports"] == [{"port": "http", "protocol": "TCP"}]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}} in only["from"]
    assert len(only["from"]) == 4


def test_the_test_pod_gets_no_clients(tool: Path) -> None:
    """`helm test` adds a pod that is hardened like the others, and that the Service sends no clients to."""
    found = manifests(template(tool, "-f", str(CHART / "ci" / "full-values.yaml")))
    pod, deployment = found["Pod"], found["Deployment"]["spec"]["template"]["spec"]

    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert not found["Service"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["securityContext"] == deployment["securityContext"]
    assert pod["spec"]["tolerations"] == deployment["tolerations"]
    assert pod["spec"]["imagePullSecrets"] == deployment["imagePullSecrets"]
    (only,) = pod["spec"]["containers"]
    assert only["securityContext"] == deployment["containers"][0]["securityContext"]
    assert only["image"] == deployment["containers"][0]["image"]
    assert environment({"spec": {"template": pod}})["GATEWAY_URL"] == (
        "https://demo-etcd-watch-gateway.default.svc:8081"
    )


def follow(tool: Path, url: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run what the pod of `helm test` runs, here, with the gateway at *url*."""
    pod = manifests(template(tool, *CHOICE, *arguments))["Pod"]
    (only,) = pod["spec"]["containers"]
    told = {item["name"]: item["value"] for item in only["env"] if "value" in item}
    (script,) = only["args"]
    assert only["command"] == ["python3", "-c"]
    return subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=HANG,
        env={**told, "GATEWAY_URL": url, **more},
    )  # fmt: skip


@pytest.mark.etcd
async def test_what_helm_test_runs(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """The `helm test` script passes with a gateway, and fails with the gateway's own text where it may not read."""
    tool = get_helm(4)
    (tmp_path / "token").write_text("secret")
    settings = {"GATEWAY_ALLOW_PREFIXES": "/svc/", "GATEWAY_TOKEN_FILE": str(tmp_path / "token")}
    async with gateway(etcd.endpoint, settings=settings) as server:
        good = await asyncio.to_thread(follow, tool, server.base, GATEWAY_TOKEN="secret")
        unknown = await asyncio.to_thread(follow, tool, server.base)
        elsewhere = ("--set", "allowPrefixes={/no/}")
        refused = await asyncio.to_thread(follow, tool, server.base, *elsewhere, GATEWAY_TOKEN="secret")
    away = await asyncio.to_thread(follow, tool, server.base)

    assert good.returncode == 0, good.stderr
    assert re.fullmatch(r"read at revision \d+, 0 keys\nsynced at revision \d+\n", good.stdout)
    for failed, word in ((unknown, "unauthorized"), (refused, "forbidden"), (away, server.base)):
        assert failed.returncode == 1
        assert word in failed.stderr
        assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("stream", "printed", "why"),
    [
        (b'\n\n{"type":"synced","revision":7}\n', "synced at revision 7\n", ""),
        (b"\n", "", "closed before it was synced: no event"),
    ],
)
def test_a_stream_that_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stream: bytes, printed: str, why: str
) -> None:
    """A stream has empty lines while the gateway has no state; the `helm test` script skips them."""
    answers = iter([b'{"revision":5,"count":0,"cursor":"a-5"}\n', stream])
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(next(answers)))
    monkeypatch.setenv("GATEWAY_URL", "http://gateway")
    monkeypatch.setenv("GATEWAY_PREFIX", "/svc/")
    with pytest.raises(SystemExit, match=why) if why else contextlib.nullcontext():
        exec((CHART / "files" / "follow.py").read_text(), {})  # noqa: S102 - the pod runs it by `python3 -c`
    assert capsys.readouterr().out == f"read at revision 5, 0 keys\n{printed}"


def test_a_gateway_behind_a_gateway(tool: Path) -> None:
    """Nothing names etcd then, which the gateway would refuse; and the network policy opens the upstream's ports."""
    found = manifests(template(tool, "-f", str(CHART / "ci" / "upstream-values.yaml")))
    told = environment(found["Deployment"])

    assert told["GATEWAY_UPSTREAM"] == "https://gateway.example:443,https://10.0.0.1:8443"
    assert mounted(found["Deployment"]) == {
        "GATEWAY_UPSTREAM_CACERT": ("company-ca", "ca.crt"),
        "GATEWAY_UPSTREAM_CERT": ("edge-certificate", "tls.crt"),
        "GATEWAY_UPSTREAM_KEY": ("edge-certificate", "tls.key"),
        "GATEWAY_UPSTREAM_TOKEN_FILE": ("upstream", "bearer"),
    }
    assert not [name for name in told if name.startswith("GATEWAY_ETCD")]
    assert [port["port"] for port in found["NetworkPolicy"]["spec"]["egress"][2]["ports"]] == [443, 8443]
    mixed = "upstream.urls={https://a:1,http://b:1}"
    assert "must not mix" in refusal(tool, *CHOICE, "--set", mixed)
    assert "upstream.urls is required" in refusal(tool, *CHOICE, "--set", "upstream.caSecret=a")


def test_admin_port(tool: Path) -> None:
    """With an admin port, the probes use that port, and the Service does not have it."""
    found = manifests(template(tool, *CHOICE, "--set", "adminPort=9090"))
    gateway = container(found["Deployment"])

    assert environment(found["Deployment"])["GATEWAY_ADMIN_PORT"] == "9090"
    assert {"name": "admin", "containerPort": 9090} in gateway["ports"]
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert gateway[probe]["httpGet"] == {"path": path, "port": "admin", "scheme": "HTTP"}
    assert [port["name"] for port in found["Service"]["spec"]["ports"]] == ["http"]


def test_tls(tool: Path) -> None:
    """With a certificate, the kubelet, Prometheus, ingress-nginx, `helm test` and the NOTES use HTTPS."""
    on = "tls.existingSecret=a,serviceMonitor.enabled=true,ingress.enabled=true,ingress.hosts={a.example}"
    found = manifests(template(tool, *CHOICE, "--set", on, "--api-versions", "monitoring.coreos.com/v1"))
    gateway = container(found["Deployment"])
    (endpoint,) = found["ServiceMonitor"]["spec"]["endpoints"]
    annotations = found["Ingress"]["metadata"]["annotations"]
    said = notes(*CHOICE, "--set", on)

    assert {gateway[probe]["httpGet"]["scheme"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")} == {
        "HTTPS"
    }
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"] == {"serverName": "demo-etcd-watch-gateway.default.svc"}
    assert annotations["nginx.ingress.kubernetes.io/backend-protocol"] == "HTTPS"
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert environment({"spec": {"template": found["Pod"]}})["GATEWAY_URL"].startswith("https://demo-")
    assert "http://127" not in said
    assert "curl -k -N 'https://127.0.0.1:8080" in said


def test_client_certificates(tool: Path) -> None:
    """The pod of `helm test` has no client certificate, and the probes have none: they need the admin port."""
    secrets = "tls.existingSecret=a,tls.clientCaSecret=b"
    found = manifests(template(tool, *CHOICE, "--set", secrets))
    volumes = {
        volume["name"]: volume["secret"] for volume in found["Deployment"]["spec"]["template"]["spec"]["volumes"]
    }

    assert "Pod" not in found
    assert environment(found["Deployment"])["GATEWAY_TLS_CLIENT_CA"] == "/etc/etcd-watch-gateway/tls-client-ca/ca.crt"
    assert volumes["tls-client-ca"]["secretName"] == "b"
    assert "needs an adminPort" in refusal(tool, *CHOICE, "--set", f"{secrets},adminPort=0")


def test_secrets_for_etcd(tool: Path) -> None:
    """Each file that a variable names is mounted from a Secret, as a folder that changes with the Secret; otherwise
    nothing is mounted.
    """
    found = manifests(template(tool, "-f", str(CHART / "ci" / "full-values.yaml")))["Deployment"]
    assert mounted(found) == {
        "GATEWAY_TLS_CERT": ("gateway-tls", "tls.crt"),
        "GATEWAY_TLS_KEY": ("gateway-tls", "tls.key"),
        "GATEWAY_TOKEN_FILE": ("gateway-token", "bearer"),
        "GATEWAY_TOKENS_FILE": ("gateway-access", "tokens.yaml"),
        "GATEWAY_POLICY_FILE": ("gateway-access", "policy.yaml"),
        "GATEWAY_JWT_SECRET_FILE": ("gateway-access", "hmac"),
        "GATEWAY_SESSION_KEY_FILE": ("gateway-access", "sessions"),
        "GATEWAY_ETCD_CACERT": ("etcd-client", "ca.crt"),
        "GATEWAY_ETCD_CERT": ("etcd-client", "tls.crt"),
        "GATEWAY_ETCD_KEY": ("etcd-client", "tls.key"),
        "GATEWAY_ETCD_PASSWORD_FILE": ("etcd-user", "password"),
    }
    (user,) = (item for item in container(found)["env"] if item["name"] == "GATEWAY_ETCD_USER")
    assert user["valueFrom"] == {"secretKeyRef": {"name": "etcd-user", "key": "username"}}
    writable = [mount["mountPath"] for mount in container(found)["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/tmp"]  # noqa: S108  # for the socket between the hub and its workers
    assert not any("subPath" in mount for mount in container(found)["volumeMounts"])
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
    """Each Secret works without the others."""
    endpoints = "etcd.endpoints={https://a:1}"
    found = manifests(template(tool, *CHOICE, "--set", endpoints, "--set", settings))["Deployment"]

    assert {name for name in environment(found) if name.startswith("GATEWAY_ETCD_")} == names
    assert len(found["spec"]["template"]["spec"]["volumes"]) == len(container(found)["volumeMounts"]) == 1


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_environment_is_understood(tool: Path, values: Path) -> None:
    """Each variable is a setting of the gateway, and the gateway accepts its value."""
    deployment = manifests(template(tool, "-f", str(values)))["Deployment"]
    told = environment(deployment)
    full = values.stem == "full-values"
    assert told.get("GATEWAY_TRUSTED_PROXIES") == ("10.0.0.0/8,192.0.2.1" if full else None)
    fields = {name.removeprefix("GATEWAY_").lower(): value for name, value in told.items()}

    assert set(fields) <= set(Settings.model_fields)
    taken = Settings.model_validate(fields)
    if values.stem == "full-values":
        assert taken.max_feed_bytes == 268435456
        assert taken.linger == 0
        assert taken.allowed == (b"/svc/", b"/bin/\xff", b"/a&b/")
        assert taken.pins == (b"/svc/", b"/bin/\xff")
        assert taken.gzipped == (b"/svc/", b"/bin/\xff")
        assert taken.max_channels == 5000
        assert len(taken.etcd) == 3


def test_every_setting_has_a_value() -> None:
    """The chart has a value for every setting of the gateway."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    named = {re.sub("[A-Z]", lambda match: f"_{match[0].lower()}", name) for name in values["settings"]}
    full = ("-f", str(CHART / "ci" / "full-values.yaml"), "--set", "tls.clientCaSecret=clients")
    told = set()
    for arguments in (full, ("-f", str(CHART / "ci" / "upstream-values.yaml"))):
        deployment = manifests(template(get_helm(4), *arguments))["Deployment"]
        told |= {name.removeprefix("GATEWAY_").lower() for name in environment(deployment)}

    assert named == set(Settings.model_fields) - chart.ELSEWHERE
    assert set(Settings.model_fields) - told == {"instance"}  # the pod's name, which is its hostname


def test_notes() -> None:
    """The notes after an installation name what is there: names, ports, prefixes, and what is open."""
    text = notes(*CHOICE)

    assert "port-forward service/demo-etcd-watch-gateway 8080:80" in text
    assert "curl -N 'http://127.0.0.1:8080/v1/watch?prefix=/svc/'" in text
    assert "No image is published" in text
    assert "No token is required" in text
    assert "port-forward deployment/demo-etcd-watch-gateway 8081:8081" in text
    assert "curl http://127.0.0.1:8081/v1/feeds" in text
    assert "helm test demo --namespace here" in text
    assert "every key" not in text
    assert "outside" not in text
    assert "{{" not in text


def test_notes_follow_the_values() -> None:
    """Every sentence of the notes depends on the chosen values."""
    text = notes("-f", str(CHART / "ci" / "full-values.yaml"))

    assert "No image is published" not in text
    assert "No token" not in text
    assert text.count("curl ") == text.count('-H "Authorization: Bearer $TOKEN" ') == 2
    assert """{{ index .data "bearer" | base64decode }}""" in text
    assert "port-forward deployment/demo-etcd-watch-gateway 9090:9090" in text
    assert "same port" not in text
    assert "same port" in notes(*CHOICE, "--set", "adminPort=0")
    assert "  https://gateway.example/v1/watch?prefix=/svc/\n  https://*.other.example/v1/watch?prefix=/svc/\n" in text
    assert "2 to 6 replicas" in text
    assert "Without a token, everyone who reaches the Service may read every key" in notes(
        "--set-json", 'allowPrefixes=[""]'
    )


def test_dockerfile() -> None:
    """hadolint finds no fault."""
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
