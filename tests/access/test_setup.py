"""The access control that the settings describe: which settings belong together, and what is refused at the start."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from app.access.control import SOURCES, AccessControl
from app.access.identity import ANONYMOUS
from app.access.setup import make_access_control
from app.core.errors import BadRequestError
from app.core.keys import KeyRange
from app.settings import SettingsError, load
from tests.access.issuer import AUDIENCE, ISSUER, ec_key, jwks

pytestmark = pytest.mark.usefixtures("clean_environment")

JWT = {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
PROXY = {"auth_proxy_header": "X-User", "auth_proxies": "10.0.0.1"}


def make(**settings: Any) -> AccessControl:
    """The access control of these settings."""
    return make_access_control(load(settings), clock=lambda: 0.0, wall=lambda: 0.0, draw=lambda: 0.0)


def refused(**settings: Any) -> list[str]:
    """The lines that refuse these settings."""
    with pytest.raises(SettingsError) as caught:
        make(**settings)
    return str(caught.value).splitlines()


@pytest.fixture(name="keys")
def _keys(tmp_path: Path) -> str:
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks(ec_key()))
    return str(path)


@pytest.fixture(name="secret")
def _secret(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_bytes(b"x" * 64)
    return str(path)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"jwt_issuer": ISSUER}, ["GATEWAY_JWT_AUDIENCE", "GATEWAY_JWT_JWKS"]),
        ({"jwt_audience": "a"}, ["GATEWAY_JWT_ISSUER", "GATEWAY_JWT_JWKS"]),
        ({"jwt_jwks": "https://a/b"}, ["GATEWAY_JWT_ISSUER", "GATEWAY_JWT_AUDIENCE"]),
        (
            {"jwt_algorithms": "RS256"},
            ["GATEWAY_JWT_ISSUER", "GATEWAY_JWT_AUDIENCE", "GATEWAY_JWT_JWKS", "GATEWAY_JWT_ALGORITHMS"],
        ),
        (JWT, ["GATEWAY_JWT_JWKS"]),
        ({**JWT, "jwt_jwks": "https://a/b", "jwt_algorithms": "HS256"}, ["GATEWAY_JWT_ALGORITHMS"]),
        ({**JWT, "jwt_secret_file": "/s", "jwt_algorithms": "RS256,HS256"}, ["GATEWAY_JWT_ALGORITHMS"]),
        (
            {**JWT, "jwt_jwks": "https://a/b", "jwt_secret_file": "/s", "jwt_algorithms": "RS256"},
            ["GATEWAY_JWT_SECRET_FILE"],
        ),
        ({**JWT, "jwt_jwks": "ftp://a/b"}, ["GATEWAY_JWT_JWKS"]),
        ({**JWT, "jwt_jwks": "https://user:secret@a/b"}, ["GATEWAY_JWT_JWKS"]),
        ({**JWT, "jwt_jwks": "https://a:x/b"}, ["GATEWAY_JWT_JWKS"]),
        ({**JWT, "jwt_jwks": "https:///b"}, ["GATEWAY_JWT_JWKS"]),
        ({**JWT, "jwt_jwks": "file://host/b"}, ["GATEWAY_JWT_JWKS"]),
        ({"auth_proxy_header": "X-User"}, ["GATEWAY_AUTH_PROXY_HEADER"]),
        ({"auth_proxies": "10.0.0.1"}, ["GATEWAY_AUTH_PROXIES"]),
        ({"auth_proxy_roles_header": "X-Roles"}, ["GATEWAY_AUTH_PROXY_ROLES_HEADER"]),
        ({**JWT, "jwt_jwks": "https://a/b", "jwt_algorithms": "none"}, ["GATEWAY_JWT_ALGORITHMS"]),
        ({**JWT, "jwt_jwks": "https://a/b", "jwt_algorithms": "RS256,rs256"}, ["GATEWAY_JWT_ALGORITHMS"]),
        ({**PROXY, "auth_proxies": "0.0.0.0/0"}, ["GATEWAY_AUTH_PROXIES"]),
        ({**PROXY, "auth_proxies": "::/0,10.0.0.1/24"}, ["GATEWAY_AUTH_PROXIES", "GATEWAY_AUTH_PROXIES"]),
        ({**PROXY, "auth_proxies": "*"}, ["GATEWAY_AUTH_PROXIES"]),
        ({**PROXY, "auth_proxy_header": "Authorization"}, ["GATEWAY_AUTH_PROXY_HEADER"]),
        ({**PROXY, "auth_proxy_roles_header": "cookie"}, ["GATEWAY_AUTH_PROXY_ROLES_HEADER"]),
        ({**PROXY, "auth_proxy_roles_header": "x-user"}, ["GATEWAY_AUTH_PROXY_ROLES_HEADER"]),
        ({"trusted_proxies": "10.0.0.1/24,proxy,*"}, ["GATEWAY_TRUSTED_PROXIES"] * 3),
        ({"tokens_file": "/nowhere"}, ["GATEWAY_TOKENS_FILE"]),
        ({"policy_file": "/nowhere"}, ["GATEWAY_POLICY_FILE"]),
        ({**JWT, "jwt_jwks": "/nowhere"}, ["GATEWAY_JWT_JWKS"]),
        ({**JWT, "jwt_secret_file": "/nowhere"}, ["GATEWAY_JWT_SECRET_FILE"]),
        ({"session_key_file": "/s"}, ["GATEWAY_SESSION_KEY_FILE"]),
        ({**PROXY, "session_key_file": "/s"}, ["GATEWAY_SESSION_KEY_FILE"]),
        ({**JWT, "jwt_jwks": "https://a/b", "session_key_file": "/nowhere"}, ["GATEWAY_SESSION_KEY_FILE"]),
    ],
)
def test_settings_that_do_not_work(settings: dict[str, str], names: list[str]) -> None:
    """A setting without its partner would have no effect, and somebody relies on it; no message shows a password."""
    lines = refused(**settings)

    assert [line.split()[0] for line in lines] == names
    assert "user:secret" not in str(lines)


def test_what_guards_metrics(tmp_path: Path, keys: str, secret: str) -> None:
    """Each mode but the static token alone guards the metrics and the feeds."""
    (tmp_path / "token").write_text("x")
    (tmp_path / "tokens").write_text("tokens: []")
    (tmp_path / "policy").write_text("roles: {}")
    token = {"token_file": str(tmp_path / "token")}

    assert not make().guarded
    (tmp_path / "sessions").write_text("k" * 32)
    assert not make(**token).guarded
    assert not make(**token, session_key_file=str(tmp_path / "sessions")).guarded
    for mode in (
        {"tokens_file": str(tmp_path / "tokens")},
        {"policy_file": str(tmp_path / "policy")},
        {**JWT, "jwt_jwks": keys},
        {**JWT, "jwt_jwks": "https://id.example/jwks"},
        {**JWT, "jwt_secret_file": secret},
        PROXY,
        {**PROXY, "auth_proxy_roles_header": "X-Roles"},
    ):
        assert make(**mode).guarded, mode
        assert make(**mode, **token).guarded, mode


def test_ready_with_the_issuers_keys(keys: str) -> None:
    """Keys in a file are there at the start; keys at a URL must be fetched first."""
    assert make(**JWT, jwt_jwks=keys).ready
    assert make(**JWT, jwt_jwks=f"file://{keys}").ready
    fetched = make(**JWT, jwt_jwks="https://id.example/jwks")

    assert not fetched.ready
    assert {name: text for name, text in fetched.troubles().items() if text} == {"jwt_jwks": "not fetched yet"}


async def test_every_source_has_a_metric(tmp_path: Path, keys: str, secret: str) -> None:
    """The names of the sources are known before they are set: a metric is present from the start."""
    (tmp_path / "tokens").write_text("tokens: []")
    (tmp_path / "policy").write_text("roles: {}")
    files = {"tokens_file": str(tmp_path / "tokens"), "policy_file": str(tmp_path / "policy")}
    (tmp_path / "sessions").write_text("k" * 32)
    sessions = str(tmp_path / "sessions")
    everything = make(**files, **JWT, jwt_jwks=keys, jwt_secret_file=secret, session_key_file=sessions)

    assert make().troubles() == everything.troubles() == dict.fromkeys(SOURCES, "")
    assert set(await everything.reload()) == set(SOURCES)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, []),
        ({"host": "0.0.0.0", "allow_prefixes": "/svc/"}, ["no access control"]),
        ({"host": "0.0.0.0", "allow_prefixes": "/svc/", **PROXY}, []),
        ({**JWT, "jwt_jwks": "http://id.example/jwks"}, ["the issuer's keys are fetched in plain text"]),
        ({**JWT, "jwt_jwks": "http://127.0.0.1:9/jwks"}, []),
        ({**JWT, "jwt_jwks": "https://id.example/jwks"}, []),
    ],
)
def test_warnings(settings: dict[str, str], said: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """An open gateway, and keys that anybody on the network could replace, are warned about."""
    with caplog.at_level(logging.WARNING, "gateway"):
        make(**settings)

    found = [record.getMessage() for record in caplog.records]
    assert len(found) == len(said)
    assert all(message.startswith(text) for message, text in zip(found, said, strict=True))


def test_no_line_has_the_secret_of_a_url(caplog: pytest.LogCaptureFixture) -> None:
    """Some issuers' keys have a URL with a key in its query."""
    make(**JWT, jwt_jwks="http://id.example/jwks?code=hunter2")

    assert [vars(record)["url"] for record in caplog.records] == ["http://id.example/jwks?***"]


@pytest.mark.parametrize("proxies", ["", "*", "10.0.0.7,10.1.0.0/16,fd00::/8"])
def test_trusted_proxies(proxies: str) -> None:
    """Nobody, everybody, and a list can be trusted for addresses."""
    make(trusted_proxies=proxies)


def test_the_minimum_of_a_prefix() -> None:
    """The length is in bytes, and concerns prefixes alone: a key is one key, however short."""
    control = make(min_prefix=4, allow_prefixes="")
    control.authorize(ANONYMOUS, [KeyRange("prefix", "/ä/".encode()), KeyRange("key", b"k")])
    for short in (b"", b"/a/"):
        with pytest.raises(BadRequestError, match="at least 4 bytes") as caught:
            control.authorize(ANONYMOUS, [KeyRange("prefix", b"/svc/"), KeyRange("prefix", short)])
        assert (caught.value.code, caught.value.parameter) == ("prefix-too-short", "prefix")
