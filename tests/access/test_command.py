"""The commands ``token`` and ``policy``."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path

import pytest

from app.cli import main

POLICY = """
roles:
  reader: {read: ["/svc/"], keys_only: ["/audit/"]}
  tenant: {read: ["/tenants/{sub}/", "/orgs/{org}/", "/b%ff/"]}
bindings:
  - {identity: "jwt:https://id.example#*", roles: [tenant]}
anonymous: [reader]
"""
ALICE = ["--as", "jwt:https://id.example#alice"]


@pytest.fixture(name="policy")
def _policy(tmp_path: Path) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return str(path)


def test_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints a new token and its hash, and nothing else."""
    assert main(["token"]) == 0
    first = capsys.readouterr().out
    main(["token"])
    match = re.fullmatch(r"token:  ([A-Za-z0-9_-]{43})\nsha256: ([0-9a-f]{64})\n", first)

    assert match is not None
    assert sha256(match[1].encode()).hexdigest() == match[2]
    assert capsys.readouterr().out != first


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 0, "ok: 2 roles, 1 bindings"),
        ([*ALICE, "--prefix", "/tenants/alice/"], 0, "permitted: jwt:https://id.example#alice may read"),
        ([*ALICE, "--prefix", "/tenants/alice"], 1, "denied: jwt:https://id.example#alice may not read"),
        ([*ALICE, "--prefix", "/tenants/bob/"], 1, "denied"),
        ([*ALICE, "--prefix", "/b%FF/x"], 0, "permitted"),
        ([*ALICE, "--key", "/tenants/alice/x"], 0, "key=/tenants/alice/x"),
        ([*ALICE, "--prefix", "/tenants/alice/", "--prefix", "/svc/"], 1, "and prefix=/svc/"),
        ([*ALICE, "--prefix", "/svc/", "--role", "reader"], 0, "(roles: reader, tenant)"),
        ([*ALICE, "--prefix", "/orgs/o/"], 1, "denied"),
        ([*ALICE, "--prefix", "/orgs/o/", "--claim", "org=o"], 0, "permitted"),
        (["--as", "jwt:https://id.example.evil#alice", "--prefix", "/tenants/alice/"], 1, "(roles: none)"),
        (["--as", "jwt:https://id.example#..", "--prefix", "/"], 1, "denied"),
        (["--as", "anonymous", "--prefix", "/svc/"], 0, "permitted"),
        (["--as", "anonymous", "--prefix", "/audit/"], 1, "denied"),
        (["--as", "anonymous", "--prefix", "/audit/", "--keys-only"], 0, "the keys of prefix=/audit/"),
        (["--as", "static-token", "--prefix", "/svc/"], 0, "permitted"),
        (["--as", "token:dash", "--prefix", "/svc/"], 1, "(roles: none)\nnote: the policy binds no role; add"),
        ([*ALICE, "--prefix", "/audit/", "--role", "reader"], 1, "note: the keys alone may be read"),
        (["--as", "anonymous"], 0, "read: prefix=/svc/\nkeys_only: prefix=/audit/"),
    ],
)
def test_check(policy: str, arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit status says whether the identity may read; the text says why."""
    assert main(["policy", "check", policy, *arguments]) == status
    assert said in capsys.readouterr().out


def test_roles_of_a_token(policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the tokens file, a token's own roles count."""
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"tokens: [{{name: dash, sha256: {'a' * 64}, roles: [reader]}}]")
    asked = ["--as", "token:dash", "--prefix", "/svc/", "--tokens-file", str(tokens)]

    assert main(["policy", "check", policy, *asked]) == 0
    assert "(roles: reader)" in capsys.readouterr().out
    assert main(["policy", "check", policy, *asked, "--as", "token:other"]) == 1
    assert f"note: {tokens} gives no role to token:other" in capsys.readouterr().out


def test_an_expired_token(policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The gateway answers it with 401, whatever the policy binds to its name. The other entry of the name counts."""
    tokens = tmp_path / "tokens.yaml"
    old = f"{{name: dash, sha256: {'a' * 64}, roles: [reader], expires: '2001-01-01T00:00:00Z'}}"
    asked = ["--as", "token:dash", "--prefix", "/svc/", "--tokens-file", str(tokens)]

    tokens.write_text(f"tokens: [{old}]")
    assert main(["policy", "check", policy, *asked]) == 1
    assert capsys.readouterr().out == f"denied: what {tokens} lists as token:dash has expired\n"
    tokens.write_text(f"tokens: [{old}, {{name: dash, sha256: {'b' * 64}, roles: [reader]}}]")
    assert main(["policy", "check", policy, *asked]) == 0


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        ("roles: [", [], "is not YAML"),
        ("roles: {r: {read: ['/a*']}}\nbindings: [{}]", [], "bindings[0].identity: Field required"),
        (None, [], "cannot be read: No such file"),
        ("x" * (2 << 20), [], "has more than"),
        (POLICY, ["--as", "alice"], "--as: 'alice' is not an identity"),
        (POLICY, ["--as", "jwt:alice"], "is not an identity"),
        (POLICY, ["--prefix", "/a/"], "need --as"),
        (POLICY, ["--as", "token:a", "--claim", "x"], "--claim: 'x' is not a claim"),
    ],
)
def test_what_is_wrong(
    tmp_path: Path, content: str | None, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file or a flag that is wrong gives status 2, and a line for each fault on standard error."""
    path = tmp_path / "policy.yaml"
    if content is not None:
        path.write_text(content)

    assert main(["policy", "check", str(path), *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("more", "title"), [([], "PolicyDocument"), (["--tokens"], "TokensDocument")])
def test_schema(more: list[str], title: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The schemas of both files are printed as JSON."""
    assert main(["policy", "schema", *more]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == title
