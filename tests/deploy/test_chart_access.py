"""The chart's access control: where each file comes from, which paths are published, and what the notes say."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.access.policy_file import parse_policy
from app.access.tokens import parse_tokens
from tests.support.chart import (
    CHART,
    CHOICE,
    manifests,
    mounted,
    notes,
    refusal,
    template,
)

pytestmark = pytest.mark.process  # helm is a process


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ("token.existingSecret=a", ["/v1/access"]),
        ("settings.jwtIssuer=https://id.example", ["/v1/access", "/.well-known/oauth-protected-resource"]),
        (
            "token.existingSecret=a,access.existingSecret=b,access.sessionKeysKey=c",
            ["/v1/access", "/v1/session"],
        ),
    ],
)
def test_paths_of_the_access_control(tool: Path, settings: str, more: list[str]) -> None:
    """Clients outside the cluster get the paths that they need for their credentials, by either way."""
    on = f"{settings},ingress.enabled=true,ingress.hosts={{a.example}},httpRoute.enabled=true"
    found = manifests(template(tool, *CHOICE, "--set", on, "--set", "httpRoute.parentRefs[0].name=a"))
    (rule,) = found["Ingress"]["spec"]["rules"]
    routed = [match["path"]["value"] for one in found["HTTPRoute"]["spec"]["rules"] for match in one["matches"]]

    assert [path["path"] for path in rule["http"]["paths"]] == ["/v1/kv", "/v1/watch", *more]
    assert routed == ["/v1/watch", "/v1/kv", *more]


def test_ingress_with_other_paths(tool: Path) -> None:
    """The values' own paths take the place of the chart's."""
    (rule,) = manifests(template(tool, "-f", str(CHART / "ci" / "access-values.yaml")))["Ingress"]["spec"]["rules"]

    assert [(path["path"], path["pathType"]) for path in rule["http"]["paths"]] == [
        ("/v1", "Prefix"),
        ("/docs", "Exact"),
    ]


def test_files_of_the_access_control(tool: Path) -> None:
    """Each comes from a Secret, a ConfigMap or the values, in one folder that changes as a whole; the gateway accepts
    what the chart has made of the values.
    """
    found = manifests(template(tool, "-f", str(CHART / "ci" / "access-values.yaml")))
    own = "demo-etcd-watch-gateway-access"
    policy = parse_policy(found["ConfigMap"]["data"]["policy"].encode())
    tokens = parse_tokens(found["Secret"]["stringData"]["tokens"].encode())
    dash = tokens.find(b"test")

    assert mounted(found["Deployment"]) == {
        "GATEWAY_JWT_JWKS": ("issuer", "jwks.json"),
        "GATEWAY_POLICY_FILE": (own, "policy"),
        "GATEWAY_SESSION_KEY_FILE": ("gateway-sessions", "keys"),
        "GATEWAY_TOKENS_FILE": (own, "tokens"),
    }
    assert dash is not None
    assert [str(one) for one in policy.grants(dash).read] == ["prefix=/svc/", "key=/a"]
    assert found["ConfigMap"]["metadata"]["name"] == found["Secret"]["metadata"]["name"] == own


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("access.existingSecret=a", "needs a key"),
        ("access.policyKey=a", "access.existingSecret is required"),
        ("access.existingConfigMap=a", "needs a key"),
        ("access.configMapKeys.policy=a", "access.existingConfigMap is required"),
        (
            "access.existingSecret=a,access.policyKey=b,access.existingConfigMap=a,access.configMapKeys.policy=b",
            "the policy twice",
        ),
        ("access.existingSecret=a,access.policyKey=b,access.policy.roles.a.read={/a/}", "the policy twice"),
        ("access.policy.rules.a.read={/a/}", "rules"),
        ("access.policy.roles.a.reed={/a/}", "reed"),
        ("access.tokens[0].name=a,access.tokens[0].sha256=secret", "sha256"),
        (
            f"access.existingSecret=a,access.tokensKey=b,access.tokens[0].name=a,access.tokens[0].sha256={64 * 'a'}",
            "the tokens twice",
        ),
        (
            "access.existingConfigMap=a,access.configMapKeys.jwks=b,settings.jwtJwks=https://id.example/jwks",
            "set one of them",
        ),
        ("access.existingSecret=a,access.sessionKeysKey=b", "needs bearer tokens"),
    ],
)
def test_access_that_would_have_no_effect(tool: Path, settings: str, why: str) -> None:
    """Each file has one source and each source a file; a policy with a misspelling is refused."""
    assert why in refusal(tool, *CHOICE, "--set", settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("access.existingSecret=a,access.tokensKey=b", "Clients with credentials may read every key"),
        ("settings.jwtIssuer=https://id.example", "Clients with credentials may read every key"),
        ("settings.authProxyHeader=X-User", "Clients with credentials may read every key"),
        ("access.existingSecret=a,access.policyKey=b", "The policy in the Secret a decides"),
        ("access.existingConfigMap=a,access.configMapKeys.policy=b", "The policy in the ConfigMap a decides"),
        ("access.policy.roles.a.read={/a/}", "The policy in access.policy decides"),
    ],
)
def test_notes_of_the_access_control(settings: str, said: str) -> None:
    """The notes do not call a gateway open that asks for credentials."""
    text = notes("--set-json", 'allowPrefixes=[""]', "--set", settings)

    assert said in text
    assert "everyone" not in text


TOKEN = '-H "Authorization: Bearer $TOKEN"'


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        (
            f"access.tokens[0].name=a,access.tokens[0].sha256={64 * 'a'},adminPort=0",
            ["read -rs TOKEN", f"curl -N {TOKEN} 'http://", "same port. They need the role operator."],
            ["everyone", "$(kubectl"],
        ),
        (
            "settings.jwtIssuer=https://id.example,helmTest.tokenSecret=a,helmTest.tokenKey=b",
            ["get secret a ", 'index .data "b"', f"curl -N {TOKEN} 'http://", "curl http://127.0.0.1:8081/v1/feeds"],
            ["read -rs"],
        ),
        (
            "token.existingSecret=a,adminPort=0",
            [
                f"curl -N {TOKEN} 'http://",
                "/metrics is for everyone who reaches the Service, /v1/feeds needs the token.",
            ],
            ["operator", "They are"],
        ),
        ("settings.authProxyHeader=X-User", ["the proxy that sends X-User"], ["curl -N"]),
        ("access.policy.roles.a.read={/a/},access.policy.anonymous={a}", ["curl -N 'http://"], ["TOKEN"]),
        (
            "tls.existingSecret=a,tls.clientCaSecret=b",
            ["curl -k --cert client.crt --key client.key -N 'https://", "curl -k https://127.0.0.1:8081/v1/feeds"],
            ["helm test", "everyone"],
        ),
        (
            "helmTest.enabled=false,adminPort=0",
            ["curl -N 'http://", "same port. They are for everyone who reaches the Service."],
            ["helm test", "operator"],
        ),
    ],
)
def test_commands_of_the_notes(settings: str, said: list[str], unsaid: list[str]) -> None:
    """A command works as it is printed, and what is on the public port is named with what guards it."""
    text = notes(*CHOICE, "--set", settings)

    assert [one for one in said if one not in text] == []
    assert [one for one in unsaid if one in text] == []
