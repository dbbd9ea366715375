"""Writes the generated files of the chart: values.schema.json from the types below, README.md's table from the comments
of values.yaml, and the versions in Chart.yaml (the chart has the gateway's version).

Usage: ``python tools/chart.py``, or ``make chart``. A test fails if a file differs from what this command would write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import yaml
from annotated_types import Le
from pydantic import BaseModel, ConfigDict, Field, create_model

from app import __version__
from app.access.policy_file import PolicyDocument
from app.access.tokens import TokenEntry
from app.settings import Seconds, Settings, Size
from app.units import MOST_WORKERS

CHART = Path(__file__).parents[1] / "helm" / "etcd-watch-gateway"
BEGIN, END = "<!-- values: written by `make chart` -->\n", "<!-- end of values -->\n"

Texts: TypeAlias = dict[str, str]
Port: TypeAlias = Annotated[int, Field(ge=1, le=65535)]
Name: TypeAlias = Annotated[str, Field(min_length=1)]
# The formats of the gateway's settings.
Duration: TypeAlias = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)?$")]
Amount: TypeAlias = Annotated[str, Field(pattern=r"^[0-9]+(B|KiB|MiB|GiB)?$")]
# Prometheus' formats of durations and, without the braces, of selectors.
Period: TypeAlias = Annotated[str, Field(pattern=r"^[1-9][0-9]*(s|m|h)$")]
_MATCHER = r'[a-zA-Z_][a-zA-Z0-9_]*(=|!=|=~|!~)"[^"]*"'
Matchers: TypeAlias = Annotated[str, Field(pattern=rf"^({_MATCHER}(,{_MATCHER})*)?$")]
# Kubernetes' format of amounts of CPU and memory.
Quantity: TypeAlias = (
    Annotated[float, Field(ge=0)] | Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi)?$")]
)
Share: TypeAlias = Annotated[str, Field(pattern="^[0-9]{1,2}%$|^100%$")]
Pods: TypeAlias = Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern="^[1-9][0-9]?%$")]
NonNegative: TypeAlias = Annotated[int, Field(ge=0)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
ObjectName: TypeAlias = Annotated[str, Field(pattern="^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?$")]
Host: TypeAlias = Annotated[str, Field(pattern=r"^(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]


class Values(BaseModel):
    """A part of the values. Every field is required, and no other name is allowed."""

    model_config = ConfigDict(extra="forbid")


class Image(Values):
    repository: Name
    tag: str
    digest: Annotated[str, Field(pattern="^(sha256:[0-9a-f]{64})?$")]
    pullPolicy: Literal["Always", "IfNotPresent", "Never"]  # noqa: N815  # names from values.yaml, here and below
    pullSecrets: list[Name]  # noqa: N815


class Autoscaling(Values):
    enabled: bool
    minReplicas: Annotated[int, Field(ge=1)]  # noqa: N815
    maxReplicas: Annotated[int, Field(ge=1)]  # noqa: N815
    cpu: Quantity


class PodDisruptionBudget(Values):
    enabled: bool
    maxUnavailable: Pods  # noqa: N815
    minAvailable: Pods | None = None  # noqa: N815


class RollingUpdate(Values):
    maxSurge: NonNegative | Share  # noqa: N815
    maxUnavailable: NonNegative | Share  # noqa: N815


class Strategy(Values):
    type: Literal["RollingUpdate", "Recreate"]
    rollingUpdate: RollingUpdate | None = None  # noqa: N815


class Probe(Values):
    periodSeconds: Annotated[int, Field(ge=1)]  # noqa: N815
    timeoutSeconds: Annotated[int, Field(ge=1)]  # noqa: N815
    failureThreshold: Annotated[int, Field(ge=1)]  # noqa: N815
    initialDelaySeconds: NonNegative | None = None  # noqa: N815


class Probes(Values):
    startup: Probe
    liveness: Probe
    readiness: Probe


class ServiceAccount(Values):
    create: bool
    name: str
    annotations: Texts
    automountToken: bool  # noqa: N815


class HelmTest(Values):
    enabled: bool
    tokenSecret: str  # noqa: N815
    tokenKey: Name  # noqa: N815


class Named(BaseModel):
    """A volume or a container. Only the name is checked. Kubernetes itself checks the rest."""

    model_config = ConfigDict(extra="allow")
    name: Name


class VolumeMount(Values):
    name: Name
    mountPath: Name  # noqa: N815
    subPath: str | None = None  # noqa: N815
    subPathExpr: str | None = None  # noqa: N815
    readOnly: bool | None = None  # noqa: N815
    mountPropagation: Literal["None", "HostToContainer", "Bidirectional"] | None = None  # noqa: N815


class TopologySpreadConstraint(BaseModel):
    """Only what Kubernetes requires is checked here."""

    model_config = ConfigDict(extra="allow")
    maxSkew: Annotated[int, Field(ge=1)]  # noqa: N815
    topologyKey: Name  # noqa: N815
    whenUnsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]  # noqa: N815


class EtcdTls(Values):
    existingSecret: str  # noqa: N815
    clientCertificate: bool  # noqa: N815


class EtcdAuth(Values):
    existingSecret: str  # noqa: N815


class Etcd(Values):
    endpoints: Annotated[list[Annotated[str, Field(pattern=r"^(https?://)?[^,\s/]+:[0-9]+$")]], Field(min_length=1)]
    tls: EtcdTls
    auth: EtcdAuth
    shared: bool


class Upstream(Values):
    urls: list[Annotated[str, Field(pattern=r"^https?://[^,\s/]+:[0-9]+$")]]
    caSecret: str  # noqa: N815
    clientCertificateSecret: str  # noqa: N815
    tokenSecret: str  # noqa: N815
    tokenKey: Name  # noqa: N815


class Tls(Values):
    existingSecret: str  # noqa: N815
    clientCaSecret: str  # noqa: N815


class Token(Values):
    existingSecret: str  # noqa: N815
    key: Name


class AccessConfigMapKeys(Values):
    policy: str
    jwks: str


class Access(Values):
    existingSecret: str  # noqa: N815
    tokensKey: str  # noqa: N815
    policyKey: str  # noqa: N815
    jwtSecretKey: str  # noqa: N815
    sessionKeysKey: str  # noqa: N815
    existingConfigMap: str  # noqa: N815
    configMapKeys: AccessConfigMapKeys  # noqa: N815
    policy: PolicyDocument | None = None  # Helm drops a null
    tokens: list[TokenEntry]


class KeyRef(Values):
    name: Name
    key: Name
    optional: bool | None = None


class FieldRef(Values):
    fieldPath: Name  # noqa: N815
    apiVersion: Name | None = None  # noqa: N815


class ResourceFieldRef(Values):
    resource: Name
    containerName: Name | None = None  # noqa: N815
    divisor: Quantity | None = None


class ValueFrom(Values):
    secretKeyRef: KeyRef | None = None  # noqa: N815
    configMapKeyRef: KeyRef | None = None  # noqa: N815
    fieldRef: FieldRef | None = None  # noqa: N815
    resourceFieldRef: ResourceFieldRef | None = None  # noqa: N815


class EnvVar(Values):
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
    value: str | None = None
    valueFrom: ValueFrom | None = None  # noqa: N815


class WholeRef(Values):
    name: Name
    optional: bool | None = None


class EnvFrom(Values):
    prefix: str | None = None
    secretRef: WholeRef | None = None  # noqa: N815
    configMapRef: WholeRef | None = None  # noqa: N815


class AnySecurityContext(Values):
    """What a pod and a container have in common. Only the names of the parts are checked. Neither may be root."""

    runAsNonRoot: Literal[True] | None = None  # noqa: N815
    runAsUser: Annotated[int, Field(ge=1)] | None = None  # noqa: N815
    runAsGroup: NonNegative | None = None  # noqa: N815
    seccompProfile: dict[str, Any] | None = None  # noqa: N815
    seLinuxOptions: dict[str, Any] | None = None  # noqa: N815
    appArmorProfile: dict[str, Any] | None = None  # noqa: N815


class PodSecurityContext(AnySecurityContext):
    fsGroup: NonNegative | None = None  # noqa: N815
    fsGroupChangePolicy: Literal["OnRootMismatch", "Always"] | None = None  # noqa: N815
    supplementalGroups: list[NonNegative] | None = None  # noqa: N815


class Capabilities(Values):
    drop: list[Name] | None = None
    add: list[Name] | None = None


class ContainerSecurityContext(AnySecurityContext):
    allowPrivilegeEscalation: bool | None = None  # noqa: N815
    readOnlyRootFilesystem: bool | None = None  # noqa: N815
    capabilities: Capabilities | None = None


class Service(Values):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"]
    port: Port
    annotations: Texts
    nodePort: Port | None = None  # noqa: N815
    clusterIP: Name | None = None  # noqa: N815
    loadBalancerClass: Name | None = None  # noqa: N815
    loadBalancerSourceRanges: list[Name] | None = None  # noqa: N815
    externalTrafficPolicy: Literal["Cluster", "Local"] | None = None  # noqa: N815
    internalTrafficPolicy: Literal["Cluster", "Local"] | None = None  # noqa: N815
    sessionAffinity: Literal["None", "ClientIP"] | None = None  # noqa: N815
    ipFamilyPolicy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] | None = None  # noqa: N815
    ipFamilies: list[Literal["IPv4", "IPv6"]] | None = None  # noqa: N815
    trafficDistribution: Name | None = None  # noqa: N815


class IngressPath(Values):
    path: Annotated[str, Field(pattern="^/")]
    pathType: Literal["Exact", "Prefix", "ImplementationSpecific"] | None = None  # noqa: N815


class Ingress(Values):
    enabled: bool
    className: str  # noqa: N815
    paths: list[IngressPath]
    hosts: list[Host]
    tlsSecret: str  # noqa: N815
    annotations: dict[str, str | None]  # null removes one of the chart's own annotations


class ParentRef(Values):
    name: Name
    namespace: Name | None = None
    sectionName: Name | None = None  # noqa: N815
    port: Port | None = None
    group: str | None = None
    kind: Name | None = None


class HttpRoute(Values):
    enabled: bool
    parentRefs: list[ParentRef]  # noqa: N815
    hostnames: list[Host]
    annotations: Texts


class Expression(Values):
    key: Name
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] | None = None


class Selector(Values):
    matchLabels: Texts | None = None  # noqa: N815
    matchExpressions: list[Expression] | None = None  # noqa: N815


IpBlock = create_model("IpBlock", __base__=Values, cidr=(Name, ...), **{"except": (list[Name] | None, None)})  # type: ignore[call-overload]  # the field's name, except, is a keyword of Python


class Peer(Values):
    podSelector: Selector | None = None  # noqa: N815
    namespaceSelector: Selector | None = None  # noqa: N815
    ipBlock: IpBlock | None = None  # type: ignore[valid-type]  # noqa: N815  # made two lines above


class NetworkPolicy(Values):
    enabled: bool
    clients: list[Peer]
    metrics: list[Peer]
    etcd: list[Peer]
    issuer: list[Peer]
    extraIngress: list[dict[str, Any]]  # noqa: N815
    extraEgress: list[dict[str, Any]]  # noqa: N815


class Amounts(Values):
    cpu: Quantity | None = None
    memory: Quantity | None = None


class Resources(Values):
    requests: Amounts | None = None
    limits: Amounts | None = None


class Toleration(Values):
    key: str | None = None
    operator: Literal["Equal", "Exists"] | None = None
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    tolerationSeconds: int | None = None  # noqa: N815


class Affinity(Values):
    """Only the names of the parts are checked. Kubernetes itself checks the rest."""

    nodeAffinity: dict[str, Any] | None = None  # noqa: N815
    podAffinity: dict[str, Any] | None = None  # noqa: N815
    podAntiAffinity: dict[str, Any] | None = None  # noqa: N815


class SecretOrConfigMap(Values):
    secret: KeyRef | None = None
    configMap: KeyRef | None = None  # noqa: N815


class TlsConfig(Values):
    ca: SecretOrConfigMap | None = None
    cert: SecretOrConfigMap | None = None
    keySecret: KeyRef | None = None  # noqa: N815
    caFile: str | None = None  # noqa: N815
    certFile: str | None = None  # noqa: N815
    keyFile: str | None = None  # noqa: N815
    serverName: str | None = None  # noqa: N815
    insecureSkipVerify: bool | None = None  # noqa: N815


class Authorization(Values):
    type: Name | None = None
    credentials: KeyRef | None = None


class Relabeling(Values):
    action: Name | None = None
    modulus: int | None = None
    regex: str | None = None
    replacement: str | None = None
    separator: str | None = None
    sourceLabels: list[Name] | None = None  # noqa: N815
    targetLabel: Name | None = None  # noqa: N815


class ServiceMonitor(Values):
    enabled: bool
    labels: Texts
    interval: Period
    scrapeTimeout: Period | None = None  # noqa: N815
    authorization: Authorization
    relabelings: list[Relabeling]
    metricRelabelings: list[Relabeling]  # noqa: N815
    tlsConfig: TlsConfig  # noqa: N815


class Thresholds(Values):
    brokenFor: Period  # noqa: N815
    feedGrowth: Positive  # noqa: N815
    staleFor: Period  # noqa: N815
    resetsPerSubscriber: Positive  # noqa: N815
    resets: Positive
    foreignStreams: Positive  # noqa: N815
    foreignWatchers: Positive  # noqa: N815
    nearCap: Annotated[float, Field(gt=0, le=1)]  # noqa: N815


class Severities(Values):
    critical: Name
    warning: Name


class PrometheusRule(Values):
    enabled: bool
    labels: Texts
    severities: Severities
    runbookUrl: Annotated[str, Field(pattern=r"^(https?://[^\s#]+)?$")]  # noqa: N815
    selector: Matchers
    etcdMetrics: bool  # noqa: N815
    etcdSelector: Matchers  # noqa: N815
    etcdGatewaySelector: Matchers  # noqa: N815
    thresholds: Thresholds


class Dashboard(Values):
    enabled: bool
    labels: Texts
    annotations: Texts


# Settings of the gateway that the chart sets by a value with another name, or without a value: GATEWAY_INSTANCE is the
# pod's name by default.
ELSEWHERE = frozenset({
    "etcd", "etcd_cacert", "etcd_cert", "etcd_key", "etcd_user", "etcd_password_file", "host", "port", "admin_port",
    "tls_cert", "tls_key", "tls_client_ca", "allow_prefixes", "token_file", "tokens_file", "policy_file",
    "jwt_secret_file", "session_key_file", "cors_origins", "gzip_prefixes", "pin", "epoch", "drain_window",
    "drain_timeout", "instance", "trusted_proxies", "upstream", "upstream_cacert",
    "upstream_cert", "upstream_key", "upstream_token_file",
})  # fmt: skip
# Helm reads a number as a float, which holds integers exactly up to here. It wrote 2^63 - 1 as -9223372036854775808.
EXACT = 2**53 - 1
_SECONDS, _SIZE = (get_args(kind)[1] for kind in (Seconds, Size))


def camel(name: str) -> str:
    """Return a setting's name in the chart: camel case."""
    return re.sub("_(.)", lambda match: match[1].upper(), name)


def _kind(name: str) -> Any:
    if name == "workers":
        return Annotated[int, Field(ge=1, le=MOST_WORKERS)] | Literal["auto"] | None
    field = Settings.model_fields[name]
    bounds = [item for item in field.metadata if item not in (_SECONDS, _SIZE)]
    if field.annotation is int:
        most = min(EXACT, *(item.le for item in bounds if isinstance(item, Le) and isinstance(item.le, int)))
        bounds = [Le(most), *(item for item in bounds if not isinstance(item, Le))]
    if _SECONDS in field.metadata:
        return Annotated[int, *bounds] | Duration | None
    if _SIZE in field.metadata:
        return Annotated[int, *bounds] | Amount | None
    return (Annotated[field.annotation, *bounds] if bounds else field.annotation) | None  # type: ignore[operator]


def root() -> type[Values]:
    """Return the type of the whole values.yaml."""
    settings = {camel(name): (_kind(name), None) for name in Settings.model_fields if name not in ELSEWHERE}
    kinds: dict[str, Any] = {
        "allowPrefixes": list[Annotated[str, Field(pattern=r"^[^,\s]*$")]],
        "nameOverride": ObjectName,
        "fullnameOverride": ObjectName,
        "commonLabels": Texts,
        "image": Image,
        "replicas": Annotated[int, Field(ge=0)],
        "autoscaling": Autoscaling,
        "podDisruptionBudget": PodDisruptionBudget,
        "etcd": Etcd,
        "upstream": Upstream,
        "tls": Tls,
        "token": Token,
        "access": Access,
        "pin": list[Annotated[str, Field(pattern=r"^[^,\s]+$")]],
        "gzipPrefixes": list[Annotated[str, Field(pattern=r"^[^,\s]+$")]],
        "corsOrigins": list[Annotated[str, Field(pattern=r"^(\*|https?://[^,\s/]+)$")]],
        "host": Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]*$")],
        "epoch": Annotated[str, Field(max_length=64)],
        "adminPort": Annotated[int, Field(ge=0, le=65535)],
        "trustedProxies": list[Annotated[str, Field(pattern=r"^[^,\s]+$")]],
        "settings": create_model("Settings", __base__=Values, **settings),  # type: ignore[call-overload]
        **dict.fromkeys(
            ("preStopSeconds", "drainWindowSeconds", "drainTimeoutSeconds", "terminationGracePeriodSeconds"),
            Annotated[int, Field(ge=0)],
        ),
        "extraEnv": list[EnvVar],
        "extraEnvFrom": list[EnvFrom],
        "extraVolumes": list[Named],
        "extraVolumeMounts": list[VolumeMount],
        "extraContainers": list[Named],
        "extraInitContainers": list[Named],
        "extraPodSpec": dict[str, Any],
        "extraObjects": list[dict[str, Any] | str],
        "serviceAccount": ServiceAccount,
        "strategy": Strategy,
        "minReadySeconds": NonNegative,
        "probes": Probes,
        "containerSecurityContext": ContainerSecurityContext,
        "topologySpreadConstraints": list[TopologySpreadConstraint],
        "deploymentAnnotations": Texts,
        "helmTest": HelmTest,
        "service": Service,
        "ingress": Ingress,
        "httpRoute": HttpRoute,
        "networkPolicy": NetworkPolicy,
        "resources": Resources,
        "podAnnotations": Texts,
        "podLabels": Texts,
        "priorityClassName": str,
        "nodeSelector": Texts,
        "tolerations": list[Toleration],
        "affinity": Affinity,
        "serviceMonitor": ServiceMonitor,
        "prometheusRule": PrometheusRule,
        "dashboard": Dashboard,
    }
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in kinds.items()}
    # podSecurityContext may also be null as a whole. A parent chart shares "global" with its subcharts: this chart does
    # not read it, and values.yaml does not have it.
    fields["podSecurityContext"] = (PodSecurityContext | None, None)
    fields["revisionHistoryLimit"] = (NonNegative | None, None)
    fields["global"] = (dict[str, Any] | None, None)
    return create_model("Whole", __base__=Values, **fields)


def _plain(node: Any) -> Any:
    """Return the schema without titles and defaults, and with `null` in the list of types.

    Helm's messages are then short.
    """
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept: dict[str, Any] = {}
    for name, inner in node.items():
        if name in ("properties", "$defs"):
            kept[name] = {key: _plain(value) for key, value in inner.items()}
        elif name not in ("title", "default", "description"):
            kept[name] = _plain(inner)
    choices = kept.get("anyOf", [])
    if len(choices) == 2 and choices[1] == {"type": "null"} and isinstance(choices[0].get("type"), str):
        del kept["anyOf"]
        kept |= choices[0] | {"type": [choices[0]["type"], "null"]}
        if "enum" in kept:
            kept["enum"] = [*kept["enum"], None]
    return kept


def schema() -> str:
    """Return the text of values.schema.json."""
    written = _plain(root().model_json_schema())
    first = {"$schema": "http://json-schema.org/draft-07/schema#"}  # the version that Helm 3 and Helm 4 both read
    return json.dumps(first | written, indent=2, ensure_ascii=False) + "\n"


def _comment(lines: list[str], line: int, column: int) -> str:
    """Return the comment directly above *line* (counted from 0), with the same indentation."""
    found: list[str] = []
    mark = " " * column + "# "
    while line and lines[line - 1].startswith(mark):
        line -= 1
        found.insert(0, lines[line].removeprefix(mark).strip())
    return " ".join(found)


# The settings' own descriptions, for values without a comment.
_SAID = {f"settings.{camel(name)}": field.description or "" for name, field in Settings.model_fields.items()}


def _rows(node: yaml.MappingNode, lines: list[str], path: str) -> Iterator[str]:
    for key, value in node.value:
        name = f"{path}{key.value}"
        comment = _comment(lines, key.start_mark.line, key.start_mark.column) or _SAID.get(name, "")
        is_part = isinstance(value, yaml.MappingNode) and value.value
        if is_part and not name.endswith(("annotations", "labels")):
            if comment:
                yield f"| **{name}** | | {comment} |"
            yield from _rows(value, lines, f"{name}.")
        else:
            default = "as in values.yaml" if is_part else f"`{json.dumps(yaml.safe_load(yaml.serialize(value)))}`"
            yield f"| `{name}` | {default} | {comment} |".replace("  ", " ")


def readme(old: str) -> str:
    """Return README.md with a new table between its markers, made from values.yaml."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.MappingNode)
    table = "\n".join(["| value | default | |", "|---|---|---|", *_rows(node, text.splitlines(), "")])
    before, _, rest = old.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n\n{END}{rest.partition(END)[2]}"


def versions(old: str) -> str:
    """Return Chart.yaml with the version of app/__init__.py."""
    new = re.sub(r"^version: .*$", f"version: {__version__}", old, count=1, flags=re.MULTILINE)
    return re.sub(r"^appVersion: .*$", f'appVersion: "{__version__}"', new, count=1, flags=re.MULTILINE)


def main() -> None:
    """Write the three files."""
    chart = CHART / "Chart.yaml"
    chart.write_text(versions(chart.read_text(encoding="utf-8")), encoding="utf-8")
    (CHART / "values.schema.json").write_text(schema(), encoding="utf-8")
    path = CHART / "README.md"
    path.write_text(readme(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
