"""The ways out of the chart's own values: names, labels, security contexts, extra parts and objects, further rules."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from tests.support.chart import (
    CHART,
    CHOICE,
    KUBERNETES,
    Manifest,
    container,
    environment,
    get_helm,
    manifests,
    refusal,
    run,
    template,
    unknown_fields,
    validated,
)

pytestmark = pytest.mark.process  # helm is a process


# OpenShift's restricted-v2 requires that the chart sets no ids.
IDS = ("runAsUser", "runAsGroup", "fsGroup")


NO_IDS = tuple(f"--set=podSecurityContext.{name}=null" for name in IDS)


@pytest.mark.parametrize(
    "arguments", [NO_IDS, ("--set-json", "podSecurityContext=null"), ("-f", "FILE")], ids=["each", "whole", "file"]
)
def test_ids_of_the_cluster(tool: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """null removes the chart's ids, also from the pod of `helm test`; the other restrictions stay."""
    file = tmp_path / "values.yaml"
    file.write_text("podSecurityContext: {runAsUser: null, runAsGroup: null, fsGroup: null}\n")
    found = manifests(template(tool, *CHOICE, *(str(file) if each == "FILE" else each for each in arguments)))

    for spec in (found["Deployment"]["spec"]["template"]["spec"], found["Pod"]["spec"]):
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_ids_of_ones_own(tool: Path) -> None:
    """Each id can be set alone; a number that OpenShift gives stays a number, and the group 0 stays 0."""
    ids = "podSecurityContext.runAsUser=1000680000,podSecurityContext.runAsGroup=0,podSecurityContext.fsGroup=null"
    pod = manifests(template(tool, *CHOICE, "--set", ids))["Deployment"]["spec"]["template"]["spec"]

    assert {name: value for name, value in pod["securityContext"].items() if name in IDS} == {
        "runAsUser": 1000680000,
        "runAsGroup": 0,
    }


def test_openshift(tool: Path) -> None:
    """Nothing names a user or a group, and no annotation is for another controller."""
    found = manifests(template(tool, "-f", str(CHART / "ci" / "openshift-values.yaml")))
    kept = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}

    for spec in (found["Deployment"]["spec"]["template"]["spec"], found["Pod"]["spec"]):
        assert spec["securityContext"] == kept
        assert not set(IDS) & set(spec["containers"][0]["securityContext"])
    assert all("openshift.io/" in name for name in found["Ingress"]["metadata"]["annotations"])


@pytest.fixture(name="extras")
def _extras() -> dict[str, Manifest]:
    """What the values of ci/extras-values.yaml make."""
    return manifests(template(get_helm(4), "-f", str(CHART / "ci" / "extras-values.yaml")))


def test_the_extras_of_the_pod(extras: dict[str, Manifest]) -> None:
    """Volumes, mounts, containers and further fields are in the pod as they were given, beside the chart's own."""
    given = yaml.safe_load((CHART / "ci" / "extras-values.yaml").read_text())
    spec = extras["Deployment"]["spec"]["template"]["spec"]
    own, proxy = spec["containers"]

    assert spec["volumes"] == given["extraVolumes"]
    assert own["volumeMounts"] == given["extraVolumeMounts"]
    assert proxy == given["extraContainers"][0]
    assert spec["initContainers"] == given["extraInitContainers"]
    assert given["extraPodSpec"].items() <= spec.items()
    assert spec["serviceAccountName"] == extras["ServiceAccount"]["metadata"]["name"] == "demo-gateway"
    assert spec["automountServiceAccountToken"] is extras["ServiceAccount"]["automountServiceAccountToken"] is False
    zone, host = spec["topologySpreadConstraints"]
    assert zone["labelSelector"] == extras["Deployment"]["spec"]["selector"]
    assert host["labelSelector"] == {"matchLabels": {"tier": "edge"}}
    assert own["startupProbe"]["failureThreshold"] == 60
    assert own["readinessProbe"]["initialDelaySeconds"] == 1
    assert own["livenessProbe"]["httpGet"]["path"] == "/livez"
    together = manifests(
        template(get_helm(4), "-f", str(CHART / "ci" / "extras-values.yaml"), "--set", "token.existingSecret=a")
    )["Deployment"]["spec"]["template"]["spec"]
    assert [volume["name"] for volume in together["volumes"]] == ["token", "ca"]
    assert [mount["name"] for mount in together["containers"][0]["volumeMounts"]] == ["token", "ca"]


def test_security_contexts(extras: dict[str, Manifest]) -> None:
    """Fields are added, and null removes one; large numbers stay numbers."""
    spec = extras["Deployment"]["spec"]["template"]["spec"]

    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "fsGroupChangePolicy": "OnRootMismatch",
        "supplementalGroups": [1000680000],
        "seLinuxOptions": {"level": "s0:c26,c5"},
    }
    assert spec["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        "runAsUser": 1000680000,
    }
    assert extras["Pod"]["spec"]["securityContext"] == spec["securityContext"]


def test_rollouts(tool: Path, extras: dict[str, Manifest]) -> None:
    """The strategy, the pace and the history are the values'; Recreate has no parameters."""
    spec = extras["Deployment"]["spec"]
    recreated = manifests(template(tool, *CHOICE, "--set", "strategy.type=Recreate"))["Deployment"]["spec"]

    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "50%", "maxUnavailable": 1}}
    assert (spec["minReadySeconds"], spec["revisionHistoryLimit"]) == (0, 0)
    assert extras["Deployment"]["metadata"]["annotations"] == {"example.com/reload": "true"}
    assert recreated["strategy"] == {"type": "Recreate"}
    assert "revisionHistoryLimit" not in recreated
    assert extras["PodDisruptionBudget"]["spec"]["minAvailable"] == "60%"
    assert "maxUnavailable" not in extras["PodDisruptionBudget"]["spec"]


def test_names_and_labels(tool: Path, extras: dict[str, Manifest]) -> None:
    """All objects have the labels, and no selector has them: a selector cannot change later."""
    for kind, found in extras.items():
        assert found["metadata"]["name"].startswith("demo-gateway"), kind
        if kind != "ConfigMap":  # an extra object says itself what it has
            assert found["metadata"]["labels"]["team"] == "platform", kind
    pods = extras["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selector = {"app.kubernetes.io/name": "gateway", "app.kubernetes.io/instance": "demo"}
    assert {"team": "platform", "sidecar.istio.io/inject": "false"}.items() <= pods.items()
    assert extras["Deployment"]["spec"]["selector"]["matchLabels"] == selector
    assert extras["Service"]["spec"]["selector"] == selector
    assert not selector.items() <= extras["Pod"]["metadata"]["labels"].items()
    for values, name in (
        ("fullnameOverride=edge", "edge"),
        ("nameOverride=demo", "demo"),
        ("nameOverride=b,fullnameOverride=a", "a"),
        (f"nameOverride={'n' * 63}", f"demo-{'n' * 58}"),
    ):
        found = manifests(template(tool, *CHOICE, "--set", values))
        assert {one["metadata"]["name"] for one in found.values() if one["kind"] != "Pod"} == {name}


# Texts that YAML reads as a number or as a truth if nothing quotes them.
UNLIKE_TEXT = """
allowPrefixes: [/svc/]
fullnameOverride: "123"
nameOverride: "1e3"
priorityClassName: "123"
serviceAccount: {create: true, name: "123"}
image: {pullSecrets: ["123"]}
etcd: {endpoints: ["https://etcd:2379"], tls: {existingSecret: "123"}, auth: {existingSecret: "123"}}
tls: {existingSecret: "123", clientCaSecret: CLIENT_CA}
token: {existingSecret: "123", key: "on"}
access:
  existingSecret: "123"
  tokensKey: "on"
  policyKey: "1"
  existingConfigMap: "123"
  configMapKeys: {jwks: "no"}
service: {loadBalancerClass: "123", clusterIP: "123", trafficDistribution: "on"}
ingress: {enabled: true, className: "123", hosts: ["123"], tlsSecret: "123", paths: [{path: "/a #b"}]}
networkPolicy: {enabled: true, clients: [{podSelector: {matchLabels: {a: "1"}}}]}
helmTest: {tokenSecret: "123", tokenKey: "on"}
prometheusRule: {enabled: true, severities: {critical: "1", warning: "on"}}
"""
UPSTREAM = (
    'upstream: {urls: ["https://a:1"], caSecret: "1", clientCertificateSecret: "1", tokenSecret: "1", tokenKey: "1"}'
)


@pytest.mark.parametrize(
    "values",
    [
        UNLIKE_TEXT.replace("CLIENT_CA", '""'),
        UNLIKE_TEXT.replace("CLIENT_CA", '"123"'),
        f"allowPrefixes: [/svc/]\n{UPSTREAM}",
    ],
    ids=["plain", "client-ca", "upstream"],
)
def test_text_stays_text(tool: Path, tmp_path: Path, values: str) -> None:
    """A release, a Secret, a key or a severity may have a name of digits: Kubernetes gets a text, not a number."""
    file = tmp_path / "values.yaml"
    file.write_text(values)
    done = run(tool, "template", "123", CHART, "-f", file)

    assert done.returncode == 0, done.stderr
    found = manifests(done.stdout)
    assert validated(done.stdout, KUBERNETES[1]) == set(found) - {"PrometheusRule"}
    assert all(one["metadata"]["labels"]["app.kubernetes.io/instance"] == "123" for one in found.values())
    if rules := found.get("PrometheusRule"):
        severities = {rule["labels"]["severity"] for group in rules["spec"]["groups"] for rule in group["rules"]}
        assert severities == {"1", "on"}


@pytest.mark.parametrize("matcher", ['job="a: b"', 'job="a #b"'])
def test_any_matcher_of_series(tool: Path, matcher: str) -> None:
    """What YAML would read as a comment or as a key stays in the rule's expression."""
    found = manifests(template(tool, *CHOICE, "--set", "prometheusRule.enabled=true", *selected(matcher)))

    rules = [rule for group in found["PrometheusRule"]["spec"]["groups"] for rule in group["rules"]]
    assert len(rules) > 20
    assert [rule["alert"] for rule in rules if matcher not in rule["expr"]] == []
    assert [rule["alert"] for rule in rules if rule["expr"].count("(") != rule["expr"].count(")")] == []


def selected(matcher: str) -> list[str]:
    return [f"--set-string=prometheusRule.{name}={matcher}" for name in ("selector", "etcdSelector")]


@pytest.mark.parametrize("replicas", ["3", "2", "20"])
@pytest.mark.parametrize("share", ["50%", "66%", "67%", "90%", "95%", "96%", "99%"])
def test_share_of_pods_that_stay(tool: Path, replicas: str, share: str) -> None:
    """Kubernetes rounds the share up, and one pod must be left to evict."""
    given = ("--set", f"replicas={replicas},podDisruptionBudget.minAvailable={share}")
    stay = math.ceil(int(share.rstrip("%")) * int(replicas) / 100)

    if stay == int(replicas):
        assert f"({share} of {replicas} pods: {stay})" in refusal(tool, *CHOICE, *given)
    else:
        budget = manifests(template(tool, *CHOICE, *given))["PodDisruptionBudget"]
        assert budget["spec"]["minAvailable"] == share


def test_service(tool: Path, extras: dict[str, Manifest]) -> None:
    """Further fields are in the Service's spec; without them, there are none."""
    given = yaml.safe_load((CHART / "ci" / "extras-values.yaml").read_text())["service"]
    plain = manifests(template(tool, *CHOICE))["Service"]["spec"]
    balanced = manifests(
        template(tool, *CHOICE, "--set", "service.type=LoadBalancer,service.loadBalancerSourceRanges={10.0.0.0/8}")
    )["Service"]["spec"]

    (port,) = extras["Service"]["spec"]["ports"]
    assert port["nodePort"] == given.pop("nodePort")
    assert given.items() <= extras["Service"]["spec"].items()
    assert set(plain) == {"type", "selector", "ports"}
    assert "nodePort" not in plain["ports"][0]
    assert balanced["loadBalancerSourceRanges"] == ["10.0.0.0/8"]


def test_extra_objects(extras: dict[str, Manifest]) -> None:
    """They are rendered with the chart's own templates, as YAML and as text."""
    assert extras["ConfigMap"]["metadata"]["name"] == "demo-gateway-more"
    assert extras["ConfigMap"]["data"] == {"release": "demo"}
    assert extras["LimitRange"]["metadata"]["labels"]["app.kubernetes.io/name"] == "gateway"


EXTRA = """
extraEnv:
  - {name: TZ, value: Europe/Berlin}
  - {name: EMPTY, value: ""}
  - {name: HTTPS_PROXY, valueFrom: {secretKeyRef: {name: proxy, key: url, optional: true}}}
  - {name: GRPC_VERBOSITY, valueFrom: {configMapKeyRef: {name: grpc, key: verbosity}}}
  - {name: GATEWAY_INSTANCE, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  - {name: MEMORY_LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
extraEnvFrom:
  - {prefix: TRACE_, configMapRef: {name: trace, optional: true}}
  - {secretRef: {name: more}}
"""


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_further_environment(tool: Path, tmp_path: Path, kubernetes: str) -> None:
    """Further variables come after the chart's own, unchanged, and Kubernetes knows every field of them."""
    (tmp_path / "values.yaml").write_text(EXTRA)
    text = template(tool, *CHOICE, "-f", str(tmp_path / "values.yaml"), "--kube-version", kubernetes)
    given = yaml.safe_load(EXTRA)
    only = container(manifests(text)["Deployment"])
    assert only["env"][-len(given["extraEnv"]) :] == given["extraEnv"]
    assert only["env"][0]["name"] == "GATEWAY_HOST"
    assert only["envFrom"] == given["extraEnvFrom"]
    assert "envFrom" not in container(manifests(template(tool, *CHOICE))["Deployment"])

    assert "Deployment" in validated(text, kubernetes)


def test_further_environment_says_nothing_twice() -> None:
    """Every variable that the chart sets is refused: of two variables with one name Kubernetes takes the last, and
    loses one of them at the next upgrade.
    """
    tool, values = get_helm(4), CHART / "ci" / "full-values.yaml"
    own = list(environment(manifests(template(tool, "-f", str(values)))["Deployment"]))
    lower = "gateway_allow_prefixes"  # the gateway reads it as the chart's own
    for names, wrong in (([*own, "TZ", "OTHER", lower, "TZ"], [*own, lower, "TZ"]), ([own[0]], [own[0]])):
        given = ",".join(f"extraEnv[{at}].name={name}" for at, name in enumerate(names))
        assert f"extraEnv must not set {', '.join(wrong)}: " in refusal(tool, "-f", str(values), "--set", given)


def test_further_rules_of_the_network(tool: Path, extras: dict[str, Manifest]) -> None:
    """The issuer's keys can be fetched, from its peers and at its port alone; further rules come after the chart's."""
    given = yaml.safe_load((CHART / "ci" / "extras-values.yaml").read_text())["networkPolicy"]
    spec = extras["NetworkPolicy"]["spec"]
    on = "networkPolicy.enabled=true,settings.jwtJwks=/etc/jwks"
    file = manifests(template(tool, *CHOICE, "--set", on))["NetworkPolicy"]["spec"]

    assert spec["ingress"][-1:] == given["extraIngress"]
    assert spec["egress"][-2:] == [
        {"ports": [{"port": 8443, "protocol": "TCP"}], "to": given["issuer"]},
        *given["extraEgress"],
    ]
    assert len(file["egress"]) == 3


def test_how_prometheus_scrapes(extras: dict[str, Manifest]) -> None:
    """The endpoint has the values' timeout, credentials and relabelings, and the operator knows their fields."""
    given = yaml.safe_load((CHART / "ci" / "extras-values.yaml").read_text())["serviceMonitor"]
    (endpoint,) = extras["ServiceMonitor"]["spec"]["endpoints"]
    del given["enabled"]

    assert given.items() <= endpoint.items()
    assert unknown_fields(extras["ServiceMonitor"]) == []


def test_the_token_of_the_test_pod(tool: Path, extras: dict[str, Manifest]) -> None:
    """`helm test` needs a token where clients need one: its own, or that of all; and it can be left out."""
    (only,) = extras["Pod"]["spec"]["containers"]
    of_all = manifests(template(tool, *CHOICE, "--set", "token.existingSecret=a,token.key=b"))["Pod"]["spec"]

    def secret(one: Manifest) -> object:
        (found,) = [item["valueFrom"]["secretKeyRef"] for item in one["env"] if item["name"] == "GATEWAY_TOKEN"]
        return found

    assert secret(only) == {"name": "tester", "key": "bearer"}
    assert secret(of_all["containers"][0]) == {"name": "a", "key": "b"}
    assert "Pod" not in manifests(template(tool, *CHOICE, "--set", "helmTest.enabled=false"))


@pytest.mark.parametrize(
    ("values", "workers"),
    [
        ((), None),
        (("resources.limits.cpu=2",), "auto"),
        (("resources.limits.cpu=2", "settings.workers=1"), "1"),
        (("settings.workers=3",), "3"),
        (("settings.workers=auto",), "auto"),
        (("extraEnv[0].name=GATEWAY_WORKERS", "extraEnv[0].value=auto"), "auto"),
    ],
)
def test_workers(tool: Path, values: tuple[str, ...], workers: str | None) -> None:
    """A CPU limit sets them, unless they are set; the hub's socket needs a folder, because the image is read-only."""
    chosen = [word for value in values for word in ("--set", value)]
    deployment = manifests(template(tool, *CHOICE, *chosen))["Deployment"]
    assert environment(deployment).get("GATEWAY_WORKERS") == workers
    mounts = {mount["name"]: mount["mountPath"] for mount in container(deployment).get("volumeMounts", [])}
    assert mounts.get("tmp") == ("/tmp" if workers not in (None, "1") else None)  # noqa: S108  # the chart's
