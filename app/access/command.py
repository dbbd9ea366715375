"""The commands ``token`` and ``policy``: they make a token, and try a policy without a running gateway."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from ..core.keys import KeyRange
from ..file_watch import FileError
from ..files import first_bytes
from ..settings import SettingsError
from .identity import ANONYMOUS, STATIC_TOKEN, Identity, subject_of
from .policy import Policy
from .policy_file import MAX_POLICY_FILE, PolicyDocument, parse_policy
from .tokens import MAX_TOKENS_FILE, TokensDocument, make_token, parse_tokens

T = TypeVar("T")

_IDENTITY = re.compile(r"(token|proxy):.+|jwt:[^#]+#.+")


def token() -> tuple[str, int]:
    """Return the text of the command ``token``, and its exit status."""
    made, digest = make_token()
    return f"token:  {made}\nsha256: {digest}\n", 0


def schema(name: str) -> tuple[str, int]:
    """Return the JSON Schema of the policy file or of the tokens file."""
    document = PolicyDocument.model_json_schema() if name == "policy" else TokensDocument.model_json_schema()
    described = {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n", 0


def check_policy(flags: Mapping[str, Any]) -> tuple[str, int]:
    """Check a policy file and, with ``--as``, whether it permits a range. Exit status: 0 if it does, 1 if not.

    Raises:
        SettingsError: a file cannot be used, or a flag is wrong.
    """
    policy = _read(flags["file"], parse_policy, MAX_POLICY_FILE)
    asked = _ranges(flags)
    if flags["identity"] is None:
        if asked:
            raise SettingsError("--prefix and --key: need --as, the identity that asks")
        return f"ok: {len(policy.roles)} roles, {len(policy.bindings)} bindings\n", 0
    identities = _identities(flags)
    if not identities:
        return f"denied: what {flags['tokens_file']} lists as {flags['identity']} has expired\n", 1
    if not asked:
        return _grants(policy, identities), 0
    keys_only = flags["keys_only"]
    permitted = any(policy.permits(one, asked, keys_only=keys_only) for one in identities)
    what = f"{'the keys of ' if keys_only else ''}{' and '.join(map(str, asked))}"
    roles = sorted(frozenset().union(*map(policy.roles_of, identities)))
    verb = "permitted: {} may read {}" if permitted else "denied: {} may not read {}"
    line = f"{verb.format(flags['identity'], what)} (roles: {', '.join(roles) or 'none'})\n"
    if permitted:
        return line, 0
    if not keys_only and any(policy.permits(one, asked, keys_only=True) for one in identities):
        line += "note: the keys alone may be read; check that with --keys-only\n"
    elif not roles and flags["tokens_file"] is not None:
        line += f"note: {flags['tokens_file']} gives no role to {flags['identity']}, and the policy binds none\n"
    elif not roles:
        line += "note: the policy binds no role; add what the credentials bring, by --tokens-file or --role\n"
    return line, 1


def _grants(policy: Policy, identities: Sequence[Identity]) -> str:
    lines = []
    for identity in identities:
        grants = policy.grants(identity)
        lines += [f"roles: {', '.join(sorted(policy.roles_of(identity))) or 'none'}"]
        lines += [f"read: {one}" for one in grants.read] + [f"keys_only: {one}" for one in grants.keys_only]
    return "\n".join(lines) + "\n"


def _ranges(flags: Mapping[str, Any]) -> list[KeyRange]:
    asked = [KeyRange("prefix", unquote_to_bytes(text)) for text in flags["prefix"]]
    return asked + [KeyRange("key", unquote_to_bytes(text)) for text in flags["key"]]


def _identities(flags: Mapping[str, Any]) -> list[Identity]:
    """Return the identities that ``--as`` can mean: one, or one for each entry of the tokens file with this name.

    The list is empty if all of these entries have expired.
    """
    name: str = flags["identity"]
    roles = frozenset(flags["role"])
    if name == ANONYMOUS.name:
        return [ANONYMOUS]
    if name == STATIC_TOKEN.name:
        return [STATIC_TOKEN]
    if _IDENTITY.fullmatch(name) is None:
        raise SettingsError(
            f"--as: {name!r} is not an identity; use token:NAME, jwt:ISSUER#SUBJECT, proxy:NAME, anonymous or "
            "static-token"
        )
    claims = {"sub": subject_of(name)}
    for text in flags["claim"]:
        claim, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--claim: {text!r} is not a claim; use the form name=value")
        claims[claim] = value
    identity = Identity(name, roles, tuple(sorted(claims.items())))
    if flags["tokens_file"] is None:
        return [identity]
    tokens = _read(flags["tokens_file"], parse_tokens, MAX_TOKENS_FILE)
    listed = [one for one in tokens.identities.values() if one.name == name]
    if not listed:
        return [identity]
    now = time.time()
    return [replace(identity, roles=roles | one.roles) for one in listed if not one.expired(now)]


def _read(path: Path, parse: Callable[[bytes], T], most: int) -> T:
    try:
        data = first_bytes(path, most + 1)
        if len(data) > most:
            raise FileError(f"has more than {most} bytes")
        return parse(data)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except FileError as error:
        raise SettingsError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None
