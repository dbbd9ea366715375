"""Settings: which values are accepted, which are refused and how clearly, and that each setting is used."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import ValidationError

import app
from app.access.jwt import JwtSettings
from app.core.quotas import QuotaSettings
from app.etcd.credentials import Credentials
from app.settings import PREFIX, Settings, SettingsError, load, unknown_variables
from app.stream.streams import StreamSettings
from app.watch.limits import Limits
from tools.sources import nodes_of


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every setting from the environment of the tests."""
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)


def refused(**flags: Any) -> list[str]:
    """The lines that refuse *flags*."""
    with pytest.raises(SettingsError) as caught:
        load(flags)
    return str(caught.value).splitlines()


def test_defaults() -> None:
    """The defaults are the design's: on a loopback address, everything may be read."""
    settings = load({})

    assert settings.etcd == ("http://127.0.0.1:2379",)
    assert (settings.host, settings.port, settings.admin_port) == ("127.0.0.1", 8080, None)
    assert settings.allowed == (b"",)
    assert settings.token_file is None
    assert settings.cors_origins == ()
    assert (settings.max_subscribers, settings.max_feeds, settings.max_ranges) == (20_000, 1_000, 32)
    assert settings.max_feed_bytes == 256 * 1024 * 1024
    assert (settings.linger, settings.heartbeat, settings.stale_after, settings.sync_timeout) == (30, 15, 10, 5)
    assert (settings.log_batches, settings.log_bytes, settings.log_age) == (4096, 16 * 1024 * 1024, 600)
    assert (settings.reach_back, settings.send_timeout, settings.send_buffer) == (10_000, 30, 64 * 1024)
    assert (settings.max_age, settings.epoch) == (0, "")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("30s", 30), ("0.5", 0.5), ("500ms", 0.5), ("5m", 300), ("1h", 3600), (" 2 s ", 2), ("1.5m", 90)],
)
def test_durations(text: str, seconds: float) -> None:
    """A duration is in seconds, with or without a unit."""
    assert load({"linger": text}).linger == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1d", "1 2", "1e3", "inf", "nan", "30S", "1h30m", "0x10", "1,5", "½"])
def test_no_durations(text: str) -> None:
    """A text that is not a duration is refused, with an example of a duration."""
    (line,) = refused(linger=text)

    assert line == f"GATEWAY_LINGER (--linger): {text!r} is not a duration; use seconds, or 500ms, 30s, 5m, 1h"


@pytest.mark.parametrize("text", ["", "3.5.16", "3.6.0", "10.20.300"])
def test_versions_of_etcd(text: str) -> None:
    """The whole version, or nothing."""
    assert load({"etcd_version": text}).etcd_version == text


@pytest.mark.parametrize("text", ["3.5", "v3.5.16", "3.5.x", "3.5.16-rc.1", " 3.5.16", "3.5.16\n", "latest", "٣.5.1"])
def test_no_versions_of_etcd(text: str) -> None:
    """A version that does not say which fixes it has is refused."""
    (line,) = refused(etcd_version=text)

    assert line.startswith("GATEWAY_ETCD_VERSION (--etcd-version): ")
    assert line.endswith(f"{text!r} is not a version of etcd; use three numbers, like 3.5.16")


@pytest.mark.parametrize(
    ("text", "size"), [("65536", 65536), ("64KiB", 65536), ("16MiB", 16 << 20), ("1GiB", 1 << 30), ("4096 B", 4096)]
)
def test_sizes(text: str, size: int) -> None:
    """A size is in bytes, with or without a unit."""
    assert load({"send_buffer": text}).send_buffer == size


@pytest.mark.parametrize("text", ["", "x", "64K", "64KB", "64kib", "1.5MiB", "-1", "1TiB"])
def test_no_sizes(text: str) -> None:
    """An ambiguous kilobyte is not a size."""
    (line,) = refused(send_buffer=text)

    assert line == f"GATEWAY_SEND_BUFFER (--send-buffer): {text!r} is not a size; use bytes, or 64KiB, 16MiB, 1GiB"


# Any text is accepted, and checked when it is used.
FREE_TEXT = {
    *("host", "epoch", "token_file", "tokens_file", "policy_file", "jwt_secret_file", "session_key_file"),
    *("jwt_issuer", "jwt_audience", "jwt_jwks", "jwt_roles_claim"),
    *("jwt_algorithms", "auth_proxies", "auth_proxy_header", "auth_proxy_roles_header", "trusted_proxies"),
}
TOGETHER = {
    "etcd_cacert",
    "etcd_cert",
    "etcd_key",
    "etcd_user",
    "etcd_password_file",
    "tls_cert",
    "tls_key",
    "tls_client_ca",
    "upstream_cacert",
    "upstream_cert",
    "upstream_key",
    "upstream_token_file",
}  # checked with each other, below
BAD = {"instance": "two words", "allow_prefixes": "/svc/,", "pin": "/svc/,", "gzip_prefixes": "/svc/,"}


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - FREE_TEXT - TOGETHER))
@pytest.mark.parametrize("source", ["flag", "environment"])
def test_every_bad_value_is_named(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad value is named with its variable, its flag, and the text."""
    value = BAD.get(name, "rubbish!")
    if source == "environment":
        monkeypatch.setenv(f"{PREFIX}{name.upper()}", value)
    (line,) = refused(**({name: value} if source == "flag" else {}))

    assert line.startswith(f"{PREFIX}{name.upper()} (--{name.replace('_', '-')}): ")
    assert repr(value) in line
    assert line.count(value) == 1
    assert "pydantic" not in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"),
        ("port", "-1"),
        ("admin_port", "70000"),
        ("max_subscribers", "0"),
        ("max_feeds", "0"),
        ("max_feed_bytes", "0"),
        ("max_ranges", "0"),
        ("log_batches", "0"),
        ("log_age", "0"),
        ("reach_back", "-1"),
        ("heartbeat", "0"),
        ("stale_after", "0s"),
        ("sync_timeout", "0ms"),
        ("send_timeout", "0"),
        ("send_buffer", "4095"),
        ("send_buffer", "4096GiB"),
        ("allow_prefixes", "/a/%zz"),
        ("allow_prefixes", "/a/%f"),
        ("allow_prefixes", "/a/\udcff"),
        ("etcd", "http://127.0.0.1:2379/?a"),
        ("etcd", "http://127.0.0.1:2379#a"),
        ("instance", "x" * 129),
        ("epoch", "x" * 65),
        ("jwt_algorithms", "RS256,"),
        ("jwt_issuer", "https://id.example#fragment"),
        ("jwt_issuer", "two words"),
        ("auth_proxies", "10.0.0.1,"),
        ("trusted_proxies", "10.0.0.1,"),
        ("identity_streams", "-1"),
        ("address_joins", "0.5"),
        ("min_prefix", "4097"),
        ("max_subscribers", "9223372036854775808"),
        ("max_feed_bytes", "9223372036854775808"),
        ("max_feeds", "9" * 400),
        ("max_channels", "9" * 400),
        ("auth_proxy_header", "X Forwarded User"),
        ("auth_proxy_header", "X-User:"),
    ],
)
def test_bounds(name: str, value: str) -> None:
    """A value without a sensible meaning is refused at the start."""
    (line,) = refused(**{name: value})

    assert line.startswith(f"{PREFIX}{name.upper()} ")


@pytest.mark.parametrize("name", ["token_file", "admin_port", "etcd_cacert"])
def test_empty_is_none(name: str) -> None:
    """An empty value counts as not set, because charts and compose files write it so."""
    assert getattr(load({name: ""}), name) is None


def test_all_that_is_wrong_is_said_at_once() -> None:
    """Each error gets a line: nobody should find them one restart at a time."""
    lines = refused(port="x", linger="y", log_level="loud")

    assert [line.partition(" ")[0] for line in lines] == ["GATEWAY_PORT", "GATEWAY_LINGER", "GATEWAY_LOG_LEVEL"]


def test_kubernetes_service_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Service named "gateway" sets GATEWAY_PORT in every pod beside it: the message explains this."""
    monkeypatch.setenv("GATEWAY_PORT", "tcp://10.96.0.1:8080")
    (line,) = refused()

    assert "'tcp://10.96.0.1:8080'" in line
    assert "Kubernetes service link" in line
    assert "enableServiceLinks: false" in line


def test_a_variable_in_two_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upper and lower case mean the same, so one of the two would open the fence that the other one closes."""
    monkeypatch.setenv("gateway_allow_prefixes", "/a/")
    assert load({}).allowed == (b"/a/",)
    monkeypatch.setenv("GATEWAY_ALLOW_PREFIXES", "")
    (line,) = refused()

    assert line.startswith("GATEWAY_ALLOW_PREFIXES: is set twice")


def test_unknown_variables() -> None:
    """Misspelt variables and service links are reported; known variables and those of other programs are not."""
    names = [
        "GATEWAY_LINGR",
        "GATEWAY_SERVICE_HOST",
        "gateway_foo",
        "GATEWAY_LINGER",
        "gateway_port",
        "PATH",
        "XGATEWAY_A",
    ]

    assert unknown_variables(names) == ["GATEWAY_LINGR", "GATEWAY_SERVICE_HOST", "gateway_foo"]


@pytest.mark.parametrize("name", sorted(name for name, one in Settings.model_fields.items() if one.annotation is int))
def test_no_number_is_larger_than_a_metric(name: str) -> None:
    """The gateway divides by some of them, and shows others as metrics: each must fit a float."""
    (line,) = refused(**{name: "9" * 400})

    assert line.startswith(f"GATEWAY_{name.upper()} (--{name.replace('_', '-')}): Input should be less than or equal")


def test_flags_beat_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each flag beats its own variable."""
    monkeypatch.setenv("GATEWAY_LINGER", "1s")
    monkeypatch.setenv("GATEWAY_PORT", "81")
    settings = load({"linger": "2s"})

    assert (settings.linger, settings.port) == (2, 81)


def test_nothing_else_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other source is read, not even a .env in the working folder."""
    (tmp_path / ".env").write_text("GATEWAY_PORT=99\n")
    monkeypatch.chdir(tmp_path)

    assert load({}).port == 8080


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("127.0.0.1:2379", ("http://127.0.0.1:2379",)),
        ("http://a:1, http://b:2,c:3", ("http://a:1", "http://b:2", "http://c:3")),
        ("http://[::1]:2379/", ("http://[::1]:2379",)),
    ],
)
def test_endpoints(text: str, endpoints: tuple[str, ...]) -> None:
    """Endpoints are a list; http:// may be left out."""
    assert load({"etcd": text}).etcd == endpoints


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "a:1,",
            ",",
            "a",
            "http://a",
            "ftp://a:1",
            "http://a:x",
            "http://a:99999",
            "http://a:1/path",
            "http://:1",
        ),
        *("[]", '["http://a:1"]', "http://a:0", "http://a b:1", "http://[a:1", '"http://a:1"', "a:1 b:2", "a:1;b:2"),
    ],
)
def test_no_endpoints(text: str) -> None:
    """One invalid endpoint in a list is enough to refuse the list."""
    (line,) = refused(etcd=text)

    assert line.startswith("GATEWAY_ETCD (--etcd): ")


def test_tls_endpoints() -> None:
    """All endpoints use TLS or none: a fail-over must not change what the network sees."""
    assert load({"etcd": "https://a:2379,https://b:2379"}).etcd == ("https://a:2379", "https://b:2379")
    (line,) = refused(etcd="https://a:2379,b:2379")

    assert "must not mix http:// and https:// endpoints" in line


TLS = {"etcd": "https://a:1"}


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({**TLS, "etcd_cert": "/a"}, ["GATEWAY_ETCD_CERT"]),
        ({**TLS, "etcd_key": "/a"}, ["GATEWAY_ETCD_KEY"]),
        ({"etcd_cacert": "/a"}, ["GATEWAY_ETCD_CACERT"]),
        ({"etcd_cert": "/a", "etcd_key": "/b"}, ["GATEWAY_ETCD_CERT", "GATEWAY_ETCD_KEY"]),
        ({"tls_cert": "/a"}, ["GATEWAY_TLS_CERT"]),
        ({"tls_key": "/a"}, ["GATEWAY_TLS_KEY"]),
        ({"tls_client_ca": "/a"}, ["GATEWAY_TLS_CLIENT_CA"]),
        ({"upstream": "https://a:1", "upstream_cert": "/a"}, ["GATEWAY_UPSTREAM_CERT"]),
        ({"upstream": "https://a:1", "upstream_key": "/a"}, ["GATEWAY_UPSTREAM_KEY"]),
        ({"upstream_cert": "/a", "upstream_key": "/b"}, ["GATEWAY_UPSTREAM_CERT"]),
        ({"upstream": "http://a:1", "upstream_cert": "/a", "upstream_key": "/b"}, ["GATEWAY_UPSTREAM_CERT"]),
        ({"etcd_user": "a"}, ["GATEWAY_ETCD_USER"]),
        ({"etcd_password_file": "/a"}, ["GATEWAY_ETCD_PASSWORD_FILE"]),
        ({"etcd_user": "a", "etcd_password_file": ""}, ["GATEWAY_ETCD_USER"]),
    ],
)
def test_half_of_the_credentials(flags: dict[str, str], names: list[str]) -> None:
    """Credentials that would have no effect are an error, because somebody relies on them."""
    assert [line.partition(" ")[0] for line in refused(**flags)] == names


def test_credentials() -> None:
    """Complete credentials or none are accepted; the files are read later, by the code that uses them."""
    settings = load({**TLS, "etcd_cacert": "/a", "etcd_cert": "/b", "etcd_key": "/c", "etcd_user": "d"} | PASSWORD)

    assert (settings.etcd_cacert, settings.etcd_user) == (Path("/a"), "d")
    assert load(PASSWORD | {"etcd_user": "d"}).etcd == ("http://127.0.0.1:2379",)
    assert load({"etcd_cacert": "", "etcd_password_file": ""}).etcd_cacert is None


PASSWORD = {"etcd_password_file": "/e"}


def test_no_password_behind_the_user() -> None:
    """etcdctl takes user:password; here a process list would show the password. The message does not repeat it."""
    (line,) = refused(etcd_user="root:hunter2", **PASSWORD)

    assert line.startswith("GATEWAY_ETCD_USER (--etcd-user): ")
    assert "hunter2" not in line


def test_no_password_in_an_endpoint() -> None:
    """A password in an endpoint would be in every log line; the message does not repeat it either."""
    (line,) = refused(etcd="http://root:hunter2@a:2379")

    assert "user and password" in line
    assert "hunter2" not in line


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_refuses_to_be_open_by_accident(host: str) -> None:
    """On an address that is not loopback, the readable prefixes must be named; '' deliberately allows all."""
    (line,) = refused(host=host)

    where = host or "'' (every address)"
    assert f"{where} is not a loopback address, so GATEWAY_ALLOW_PREFIXES (--allow-prefixes)" in line
    assert load({"host": host, "allow_prefixes": ""}).allowed == (b"",)
    assert load({"host": host, "allow_prefixes": "/svc/"}).allowed == (b"/svc/",)


def test_a_policy_stands_for_the_fence() -> None:
    """With a policy, which denies by default, the fence may be absent on any address."""
    assert load({"host": "0.0.0.0", "policy_file": "/policy.yaml"}).allowed == (b"",)
    assert load({"host": "0.0.0.0", "policy_file": "/policy.yaml", "allow_prefixes": "/svc/"}).allowed == (b"/svc/",)
    (line,) = refused(host="0.0.0.0", tokens_file="/tokens.yaml")  # who is known says nothing about what may be read

    assert "GATEWAY_ALLOW_PREFIXES (--allow-prefixes)" in line


def test_access_lists() -> None:
    """Algorithms, audiences and proxies are lists; an empty value is an empty list."""
    settings = load({"jwt_algorithms": "RS256, EdDSA", "jwt_audience": "a, b", "auth_proxies": "10.0.0.0/8, ::1"})

    assert (settings.jwt_algorithms, settings.jwt_audience) == (("RS256", "EdDSA"), ("a", "b"))
    assert settings.auth_proxies == ("10.0.0.0/8", "::1")
    assert load({"jwt_algorithms": "", "jwt_audience": "", "auth_proxies": ""}).jwt_algorithms == ()


@pytest.mark.parametrize("text", ["[]", '["a"]', "{}", "null", "a,None", "'a'", '"a"', "a,~", "<no value>", "\u00a0"])
@pytest.mark.parametrize("name", ["jwt_audience", "jwt_algorithms", "auth_proxies", "trusted_proxies"])
def test_no_access_lists(name: str, text: str) -> None:
    """What a template renders for a list, or for nothing, is not an audience, an algorithm or a proxy."""
    (line,) = refused(**{name: text})

    assert line.startswith(f"{PREFIX}{name.upper()} ")


@pytest.mark.parametrize(
    ("text", "good"),
    [
        *((one, True) for one in ("", "127.0.0.1", "::", "[::1]", "fe80::1%eth0", "localhost", "gateway.example")),
        *((one, False) for one in ("0.0.0.0:8080", "http://0.0.0.0", "a b", "0.0.0.0,::", "[::1]:80", "a/b", ":80")),
    ],
)
def test_the_address_to_listen_on(text: str, good: bool) -> None:
    """A host alone: a port beside it would be found only when the gateway binds."""
    if good:
        assert load({"host": text, "allow_prefixes": "/a/"}).host == text
    else:
        (line,) = refused(host=text, allow_prefixes="/a/")
        assert line.startswith("GATEWAY_HOST (--host): ")


def test_both_ports_are_one() -> None:
    """The admin port must be another one, unless the system chooses both."""
    assert load({"port": "0", "admin_port": "0"}).admin_port == 0
    (line,) = refused(port="8080", admin_port="8080")

    assert line == "GATEWAY_ADMIN_PORT (--admin-port): cannot listen on 8080, the port of GATEWAY_PORT (--port)"


def test_another_name_of_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The roles header has two variables and one flag; a mistake names the setting, and neither variable is unknown."""
    monkeypatch.setenv("GATEWAY_AUTH_ROLES_HEADER", "X-Old")
    assert load({}).auth_proxy_roles_header == "X-Old"
    assert load({"auth_proxy_roles_header": "X-Flag"}).auth_proxy_roles_header == "X-Flag"
    monkeypatch.setenv("GATEWAY_AUTH_PROXY_ROLES_HEADER", "X-New")
    assert load({}).auth_proxy_roles_header == "X-New"
    monkeypatch.setenv("AUTH_PROXY_ROLES_HEADER", "X-Without-Prefix")
    monkeypatch.setenv("GATEWAY_AUTH_PROXY_ROLES_HEADER", "X:")
    (line,) = refused()

    assert line.startswith("GATEWAY_AUTH_PROXY_ROLES_HEADER (--auth-proxy-roles-header): ")
    assert unknown_variables(["GATEWAY_AUTH_ROLES_HEADER", "GATEWAY_AUTH_PROXY_ROLES_HEADER"]) == []


def test_the_variable_that_trusted_proxies_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """FORWARDED_ALLOW_IPS counts only while neither the flag nor the new variable is set."""
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    assert load({}).trusted_proxies == ("127.0.0.0/8", "::1")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.7, 10.1.0.0/16")
    assert load({}).trusted_proxies == ("10.0.0.7", "10.1.0.0/16")
    assert load({"trusted_proxies": "*"}).trusted_proxies == ("*",)
    monkeypatch.setenv("GATEWAY_TRUSTED_PROXIES", "")
    assert load({}).trusted_proxies == ()


def test_empty_variable_means_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """'' also works in the environment."""
    monkeypatch.setenv("GATEWAY_ALLOW_PREFIXES", "")

    assert load({"host": "0.0.0.0"}).allowed == (b"",)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]"])
def test_loopback(host: str) -> None:
    """A loopback address is reachable only from this machine, so clients there may read every key."""
    assert load({"host": host}).allowed == (b"",)


def test_allow_prefixes() -> None:
    """Allowed prefixes are comma-separated and percent-encoded: bytes."""
    assert load({"allow_prefixes": "/a/, /b%2C/ ,%ff"}).allowed == (b"/a/", b"/b,/", b"\xff")


@pytest.mark.parametrize("text", ["/a/,", ",/a/", "/a/,,/b/", ",", " , /a/"])
def test_a_comma_too_many_does_not_allow_everything(text: str) -> None:
    """The empty prefix allows all keys: it must be the only one."""
    (line,) = refused(allow_prefixes=text)

    assert line.startswith("GATEWAY_ALLOW_PREFIXES (--allow-prefixes): an empty prefix among others")


@pytest.mark.parametrize("name", ["pin", "gzip_prefixes"])
def test_lists_of_prefixes_that_may_be_empty(name: str) -> None:
    """Empty is none, not every key; else they are written as in GATEWAY_ALLOW_PREFIXES, with the same mistakes."""
    taken = attrgetter({"pin": "pins", "gzip_prefixes": "gzipped"}[name])
    assert taken(load({})) == taken(load({name: ""})) == ()
    assert taken(load({name: "/a/, /b%2C/ ,%ff"})) == (b"/a/", b"/b,/", b"\xff")
    for text in ("/a/,", ",", "/a/,,/b/", *(each for each in NOT_A_FENCE if each.strip())):
        (line,) = refused(**{name: text})
        assert line.startswith(f"GATEWAY_{name.upper()} (--{name.replace('_', '-')}): ")


def test_prefixes_of_gzip_may_lie_inside_each_other() -> None:
    """Two pins would watch the same keys twice. To compress the same keys twice is not possible."""
    assert load({"gzip_prefixes": "/a/,/a/b/"}).gzipped == (b"/a/", b"/a/b/")
    (line,) = refused(pin="/a/,/a/b/")
    assert "lies inside" in line


NOT_A_FENCE = [
    # Rendered by templates: an empty list, a list of one, nothing, a quoted empty text.
    *("[]", "[ ]", "{}", '[""]', '["/svc/"]', '["/svc/","/b/"]', "['/svc/']", "['']", '""', "''", '"/svc/"', "'/svc/'"),
    *("null", "NULL", "None", "none", "nil", "~", "undefined", "<nil>", "<no value>", "<none>"),
    *(" ", "  ", "\t", "\n", "\u00a0", "\u3000", "\ufeff/svc/", "/svc/\u200b"),
    # Lists with another separator, and what a shell or a proxy would read as "all below".
    *("/a/ /b/", "/a/\n/b/", "/a/\u00a0", "/svc/*", "*", "/a/,[]", '/a/,"/b/"', "/a/,null"),
]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("source", ["flag", "environment"])
@pytest.mark.parametrize("text", NOT_A_FENCE)
def test_what_is_no_fence(text: str, source: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid prefix is refused, whatever rendered it: it must neither open every key nor shut out its own keys."""
    if source == "environment":
        monkeypatch.setenv("GATEWAY_ALLOW_PREFIXES", text)
    (line,) = refused(host=host, **({"allow_prefixes": text} if source == "flag" else {}))

    assert line.startswith("GATEWAY_ALLOW_PREFIXES (--allow-prefixes): ")


@pytest.mark.parametrize("items", [(), [], (" ",), ("[]",)])
def test_no_fence_from_a_program(items: Any) -> None:
    """Settings that are made in Python follow the same rules."""
    with pytest.raises(ValidationError):
        Settings.model_validate({"allow_prefixes": items})

    assert Settings.model_validate({"allow_prefixes": ("",)}).allowed == (b"",)


def test_what_looks_wrong_may_be_meant() -> None:
    """Percent-encoded, any key can be named."""
    text = "%5B%5D,%6Eull,%22a%22,a%20b,%2A,null/,none-of-it,~user/,/a[0]"
    meant = (b"[]", b"null", b'"a"', b"a b", b"*", b"null/", b"none-of-it", b"~user/", b"/a[0]")

    assert load({"allow_prefixes": text}).allowed == meant


ODD = [
    *(
        "",
        " ",
        "\t",
        "\n",
        "\u00a0",
        ",",
        ",,",
        " , ",
        "0",
        "1",
        "-1",
        "+1",
        "1.0",
        "1_0",
        "0x10",
        "1e3",
        "\u0663\u0660",
    ),
    *("8080", " 8080 ", "08080", "30s", " 30 s ", "64KiB", "1" * 400, "inf", "nan", "true", "false", "yes", "off"),
    *("[]", "[1]", '["a"]', "{}", '""', "''", '"a"', "null", "none", "nil", "~", "<no value>", "*", "*,https://a.b"),
    *(
        "/svc/",
        "/svc/,",
        "/a/, /b/",
        "a:1",
        "a:1,b:2",
        "a:1,",
        "http://a:1",
        "http://A:1",
        "https://a.b:443",
        "http://[a",
    ),
    *("localhost", "[::1]", " ::1", "info", "INFO", "auto", "json", "fast", "\udcff", "a\udcff", "a b"),
]


def loaded(flags: dict[str, Any]) -> Settings | str:
    """The settings, or the lines that refuse them."""
    try:
        return load(flags)
    except SettingsError as error:
        return str(error)


@pytest.mark.parametrize("text", ODD)
def test_a_variable_means_what_its_flag_means(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every setting and every odd value, variable and flag give the same value, or the same refusal.

    One load has the value for every setting, and gives every refusal. A second load has it for the settings that accept
    it. Settings that are checked with each other have loads with what they need.
    """

    def alike(names: Iterable[str], **needed: str) -> Settings | str:
        flags = loaded({**needed, **dict.fromkeys(names, text)})
        with monkeypatch.context() as environment:
            for name in names:
                environment.setenv(f"{PREFIX}{name.upper()}", text)
            assert loaded(needed) == flags, names
        return flags

    lines = str(alike(Settings.model_fields)).splitlines()
    refusing = {line.removeprefix(PREFIX).partition(" ")[0].lower() for line in lines}
    accepting = set(Settings.model_fields) - refusing
    assert refusing < set(Settings.model_fields)
    apart = TOGETHER | {"upstream", "admin_port"}  # an upstream stands for etcd; the two ports must differ
    assert isinstance(alike(accepting - apart), Settings)
    of_upstream = {name for name in TOGETHER if name.startswith("upstream_")}
    login = {"etcd_user", "etcd_password_file"}  # a user's name must not be all that a file's name may be
    assert isinstance(alike(accepting & of_upstream, upstream="https://a:1"), Settings)
    assert isinstance(alike(accepting & (TOGETHER - of_upstream - login), etcd="https://a:1"), Settings)
    for name in accepting & {"upstream", "admin_port", *login}:
        alike([name])


# For each kind of setting, the values of ``ODD`` that it accepts, with their plain meaning. All other values are
# refused.
NUMBERS = {"0": 0, "1": 1, "8080": 8080, " 8080 ": 8080, "08080": 8080}
DURATIONS = NUMBERS | {"1.0": 1, "30s": 30, " 30 s ": 30}
SIZES = NUMBERS | {"64KiB": 65536}


TAKEN: dict[str, dict[str, Any]] = {
    "reach_back": NUMBERS,
    "port": NUMBERS,
    "admin_port": NUMBERS | {"": None},
    **dict.fromkeys(["linger", "max_age", "drain_window", "drain_timeout"], DURATIONS),
    "min_rate": SIZES,
    "cors_origins": {"": (), "*": ("*",), "http://a:1": ("http://a:1",)},
    "etcd": {
        "a:1": ("http://a:1",),
        "a:1,b:2": ("http://a:1", "http://b:2"),
        "http://a:1": ("http://a:1",),
        "http://A:1": ("http://A:1",),
        "https://a.b:443": ("https://a.b:443",),
    },
    "log_level": {"info": "info"},
    "log_format": {"auto": "auto", "json": "json"},
    "sink": {"auto": "auto", "fast": "fast"},
}


@pytest.mark.parametrize("text", ODD)
def test_odd_values(text: str) -> None:
    """An odd value has its plain meaning, or is refused by name."""
    taking = {name for name, taken in TAKEN.items() if text in taken}
    lines = str(loaded(dict.fromkeys(set(TAKEN) - taking, text))).splitlines()
    for names in (taking - {"admin_port"}, taking & {"admin_port"}):  # the two ports must differ
        found = loaded({"port": "0"} | dict.fromkeys(names, text))  # 8080 is the port by default
        assert {name: getattr(found, name) for name in names} == {name: TAKEN[name][text] for name in names}

    assert sorted(line.partition(": ")[0] for line in lines) == sorted(
        f"{PREFIX}{name.upper()} (--{name.replace('_', '-')})" for name in set(TAKEN) - taking
    )


@pytest.mark.parametrize("name", ["host", "epoch", "instance", "etcd_user"])
@pytest.mark.parametrize(
    "text",
    [
        " a",
        "a ",
        "\u00a0",
        "a\u00a0b",
        "\ufeffa",
        "\u200b",
        "a\n",
        "a\x7f",
        "\udcff",
        '""',
        "'a'",
        '"a"',
        "null",
        "None",
        "<no value>",
        "[]",
    ],
)
def test_no_text(name: str, text: str) -> None:
    """A text is refused that is invisible in a log, not UTF-8, still quoted, or a template's way to write nothing."""
    (line, *_more) = refused(**{name: text, "allow_prefixes": "", "etcd_password_file": "/a" * (name == "etcd_user")})

    assert line.startswith(f"{PREFIX}{name.upper()} (--{name.replace('_', '-')}): ")


def test_a_password_is_not_repeated_for_another_mistake() -> None:
    """The user's value is bad in two ways at once, and the message does not show the password."""
    (line,) = refused(etcd_user="root:hunter2 ", **PASSWORD)

    assert line.startswith("GATEWAY_ETCD_USER (--etcd-user): ")
    assert "hunter2" not in line


def test_cors_origins() -> None:
    """CORS origins are a list; an empty list means none."""
    assert load({"cors_origins": "https://a.example, http://b:3000"}).cors_origins == (
        "https://a.example",
        "http://b:3000",
    )
    assert load({"cors_origins": "*"}).cors_origins == ("*",)
    assert load({"cors_origins": ""}).cors_origins == ()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "a.example",
            "https://a.example/",
            "https://a.example/app",
            "ws://a",
            "null",
            "https://",
            "[]",
            '["https://a"]',
        ),
        # Texts that no browser sends: upper case, the scheme's default port, a query, a user, a bad port.
        *("https://A.example", "https://a.example:443", "http://a.example:80", "https://a.example?b", "https://u@a.b"),
        *("https://a.example:x", "https://[a", "https://a b", "https://a#b"),
    ],
)
def test_no_origins(text: str) -> None:
    """An origin that a browser never sends is refused, because it would silently have no effect."""
    (line,) = refused(cors_origins=text)

    assert "is not an origin; use the form that browsers send, like https://app.example" in line


@pytest.mark.parametrize("text", ["https://a.example,", ",https://a.example", "*,https://a.example", " "])
def test_no_list_of_origins(text: str) -> None:
    """An extra comma is refused, and so is a star beside other origins, which it already includes."""
    (line,) = refused(cors_origins=text)

    assert line.startswith("GATEWAY_CORS_ORIGINS (--cors-origins): ")


# --- groups -----------------------------------------------------------------------------------------------------------

# Each group of settings that a part of the gateway is made with, and the prefix of its fields' settings.
GROUPS: list[tuple[type, str]] = [
    (Credentials, "etcd_"),
    (JwtSettings, "jwt_"),
    (Limits, ""),
    (QuotaSettings, ""),
    (StreamSettings, ""),
]
APP = Path(app.__file__).parent


def fields_of(kind: type, prefix: str) -> Iterator[tuple[str, str, Any]]:
    """For each field in a group: the setting, the field's own name, and the field's type."""
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and is_dataclass(hint):
            yield from fields_of(hint, f"{name}_")
        else:
            yield prefix + name, name, hint


def test_a_group_has_the_values_of_its_settings() -> None:
    """A group has its settings' values, also with a prefix, and with a group inside."""
    settings = load({"log_batches": "7", "linger": "3s", **TLS, "etcd_cacert": "/a"})
    limits = settings.group(Limits)

    assert (limits.log.batches, limits.linger, limits.max_feeds) == (7, 3, 1_000)
    assert settings.group(Credentials, "etcd_") == Credentials(cacert=Path("/a"))


@pytest.mark.parametrize(("kind", "prefix"), GROUPS)
def test_a_group_declares_what_the_settings_are(kind: type, prefix: str) -> None:
    """Types do not check ``Settings.group``; this does: every field is a setting, with the setting's type."""
    types = get_type_hints(Settings)

    assert {name: hint for name, _field, hint in fields_of(kind, prefix)} == {
        name: types[name] for name, _field, _hint in fields_of(kind, prefix)
    }


@cache
def attributes_in(path: Path) -> set[str]:
    """The attributes that a module reads from anything."""
    return {node.attr for node in nodes_of(path) if type(node) is ast.Attribute}


@pytest.mark.parametrize(("kind", "prefix"), GROUPS)
def test_every_field_of_a_group_is_read(kind: type, prefix: str) -> None:
    """Every field is read in the room that the group belongs to, or in the core."""
    room = APP / kind.__module__.split(".")[1]
    files = [*room.rglob("*.py"), *(APP / "core").rglob("*.py")]
    read = set().union(*map(attributes_in, files))

    assert (
        sorted({field.strip("_") for _name, field, _hint in fields_of(kind, prefix)} - {a.strip("_") for a in read})
        == []
    )


def test_every_group_is_known_here() -> None:
    """GROUPS names all calls of ``Settings.group`` in the program."""
    calls = {
        ast.unparse(node.args[0])
        for path in APP.rglob("*.py")
        for node in nodes_of(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "group"
        if ast.unparse(node.func.value) == "settings"
    }

    assert sorted(calls) == sorted(kind.__name__ for kind, _prefix in GROUPS)


def attributes_of(nodes: Iterable[ast.AST], *owners: str) -> set[str]:
    """The attributes that are read from anything named in *owners*: ``settings.port``, ``gateway.settings.port``."""
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and (
            (isinstance(node.value, ast.Name) and node.value.id in owners)
            or (isinstance(node.value, ast.Attribute) and node.value.attr in owners)
        )
    }


def knows_settings(nodes: Iterable[ast.AST]) -> bool:
    """Whether a module's "settings" are these: the module imports them, or the gateway that has them."""
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return bool(names & {"app.settings", "app.gateway", "settings", "gateway"})  # relative imports have no "app."


def test_every_setting_is_read() -> None:
    """A setting that nothing reads would be a broken promise; a method of ``Settings`` reads only if it is called."""
    own = Path(app.__file__).with_name("settings.py")
    others = [nodes_of(path) for path in own.parent.rglob("*.py") if path != own]
    read = set().union(*(attributes_of(nodes, "settings") for nodes in others if knows_settings(nodes)))
    methods = [node for node in nodes_of(own) if isinstance(node, ast.FunctionDef)]
    through = set().union(*(attributes_of(ast.walk(method), "self") for method in methods if method.name in read))
    grouped = {name for kind, prefix in GROUPS for name, _field, _hint in fields_of(kind, prefix)}

    assert sorted(set(Settings.model_fields) - read - through - grouped) == []
