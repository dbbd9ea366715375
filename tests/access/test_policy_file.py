"""The policy file: its form, its faults, and the schema that is published for it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from app.access.identity import ANONYMOUS, make_identity
from app.access.policy_file import parse_policy
from app.core.keys import KeyRange
from app.file_watch import FileError
from tools import schemas

EXAMPLE = """
roles:
  reader: {read: ["/svc/"], keys_only: ["/audit/"]}
  tenant: {read: ["/tenants/{sub}/"]}
  operator: {}
bindings:
  - {identity: "jwt:https://id.example#*", roles: [tenant]}
anonymous: []          # roles
"""


def test_the_example() -> None:
    """The example of the documentation means what it says."""
    policy = parse_policy(EXAMPLE.encode())
    alice = make_identity("jwt", "alice", issuer="https://id.example")
    dash = make_identity("token", "dash", roles=frozenset({"reader"}))

    assert policy.grants(alice).read == (KeyRange("prefix", b"/tenants/alice/"),)
    assert policy.grants(dash).read == (KeyRange("prefix", b"/svc/"),)
    assert policy.grants(dash).keys_only == (KeyRange("prefix", b"/audit/"),)
    assert policy.grants(ANONYMOUS).read == ()


@pytest.mark.parametrize("text", ["roles: {}", "roles: {a: }\nbindings:\nanonymous:", "roles: {a: {read: null}}"])
def test_empty_parts(text: str) -> None:
    """Empty parts permit nothing."""
    assert parse_policy(text.encode()).grants(ANONYMOUS).read == ()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must be a mapping"),
        ("bindings: []", "roles: Field required"),
        ("roles: {r: {read: /svc/}}", r"roles.r.read"),
        ("roles: {r: {read: ['/a*']}}", r"roles.r.read\[0\]: '/a\*' ends with"),
        ("roles: {r: {read: ['/a/{b}']}}", "whole segment"),
        ("roles: {r: {read: ['', '/a/']}}", "would permit every key"),
        ("roles: {r: {read: ['/a/', 'prefix=']}}", "would permit every key"),
        ("roles: {r: {read: ['/a/', ]}}\nroles: {}", "appears twice"),
        ("roles: {r: {write: ['/a/']}}", "is not a name that this file knows"),
        ("roles: {'r*': {}}", "roles"),
        ("roles: {}\nbindings: [{identity: 'token:a', roles: [r]}]", r"bindings\[0\].roles: r is not a role"),
        ("roles: {}\nbindings: [{identity: 'a', roles: []}]", "does not name identities"),
        ("roles: {}\nanonymous: [r]", "anonymous: r is not a role"),
    ],
)
def test_what_is_not_a_policy(text: str, why: str) -> None:
    """A policy that would permit something else than it seems to is refused."""
    with pytest.raises(FileError, match=why):
        parse_policy(text.encode())


def test_half_a_file() -> None:
    """No beginning of the example that ends in the middle of a line before ``bindings`` is taken for a policy that
    permits more.
    """
    whole = parse_policy(EXAMPLE.encode())
    alice = make_identity("jwt", "alice", issuer="https://id.example")
    for end in range(len(EXAMPLE)):
        try:
            part = parse_policy(EXAMPLE[:end].encode())
        except FileError:
            continue
        assert set(part.grants(alice).read) <= set(whole.grants(alice).read)


def test_operator_needs_no_entry() -> None:
    """The role ``operator`` is known without being listed."""
    policy = parse_policy(b"roles: {}\nbindings: [{identity: 'token:ops', roles: [operator]}]")

    assert policy.roles_of(make_identity("token", "ops")) == {"operator"}


@pytest.mark.parametrize("name", ["policy", "tokens"])
def test_the_schema_is_published(name: str) -> None:
    """The published schemas are those of the code: ``python -m tools.schemas`` writes them."""
    assert schemas.path_of(name).read_text() == schemas.schema_of(name)


def test_the_schema_agrees_with_the_code() -> None:
    """An editor that checks the example with the schema accepts it, and finds a misspelt name."""
    schema = json.loads(schemas.path_of("policy").read_text())
    example = yaml.safe_load(EXAMPLE)

    jsonschema.validate(example, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(example | {"binding": []}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"roles": {"r": {"reed": []}}}, schema)


def test_the_schemas_lie_with_the_documentation() -> None:
    """The folder has the schemas, and nothing else."""
    assert {path.name for path in Path(schemas.FOLDER).iterdir()} == {"policy.json", "tokens.json"}
