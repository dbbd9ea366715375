"""Settings: every flag of ``serve`` and its environment variable, validated once at start."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints
from urllib.parse import unquote_to_bytes, urlsplit

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from .prefixes import plain_text, wrong_with_prefix
from .units import number, processes, seconds, size, version
from .urls import endpoint, is_host, is_loopback, is_origin

PREFIX = "GATEWAY_"
# Further variables that mean a setting.
ALIASES = ("GATEWAY_AUTH_ROLES_HEADER",)  # GATEWAY_AUTH_PROXY_ROLES_HEADER

# Means GATEWAY_TRUSTED_PROXIES if that variable is not set. It is uvicorn's.
DEPRECATED = "FORWARDED_ALLOW_IPS"

G = TypeVar("G")

# The longest duration, ten years. A longer one is a typing error, and so is infinity.
MAX_SECONDS = 10 * 365 * 24 * 3600
# The greatest signed integer of 64 bits, which many programs write for "no limit". A number with 309 digits fits no
# float: /metrics, which shows some limits, answered 500, and the gateway computes with others.
MAX_NUMBER = (1 << 63) - 1
_PASSWORD = re.compile(r"//[^/]*@")
# A header's name (RFC 9110, section 5.1), or nothing.
_HEADER = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]*$"


def _items(value: Any) -> Any:
    """Return the items of a list. Refuse a value that is only white space: it is neither a list nor the empty value."""
    if not isinstance(value, str):
        return value
    if value and not value.strip():
        msg = f"{value!r} is only white space; use '' for the empty value"
        raise ValueError(msg)
    # Strip ASCII white space only. Unicode's other spaces stay in the item, and the item's own check refuses them.
    return [item.strip(" \t\r\n") for item in value.split(",")]


def _nothing(value: Any) -> Any:
    return None if value == "" else value


Seconds = Annotated[float, BeforeValidator(seconds), Field(le=MAX_SECONDS)]
Size = Annotated[int, BeforeValidator(size), Field(le=MAX_NUMBER)]
Number = Annotated[int, BeforeValidator(number), Field(le=MAX_NUMBER)]
Text = Annotated[str, BeforeValidator(plain_text)]
File = Annotated[Path | None, BeforeValidator(_nothing)]
Items = Annotated[tuple[str, ...], BeforeValidator(_items)]


class SettingsError(Exception):
    """The settings are wrong. The message has a line for each wrong setting, with its variable and flag."""


class Settings(BaseSettings):
    """The settings of ``serve``. Read once, never changed."""

    # enable_decoding=True would read a list in the environment as JSON, and '[]' as an empty list. A variable must mean
    # the same as its flag.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, enable_decoding=False, populate_by_name=True
    )

    etcd: Items = Field(("http://127.0.0.1:2379",), description="etcd's endpoints, comma-separated")
    etcd_cacert: File = Field(None, description="PEM file of the CAs of etcd's certificates; by default the system's")
    etcd_cert: File = Field(None, description="PEM file of the gateway's client certificate for etcd")
    etcd_key: File = Field(None, description="PEM file of the client certificate's private key, not encrypted")
    etcd_user: Text = Field("", description="etcd user to log in as")
    etcd_password_file: File = Field(None, description="file with the etcd user's password")
    etcd_version: Annotated[str, BeforeValidator(version)] = Field(
        "",
        pattern=r"^([0-9]+\.[0-9]+\.[0-9]+)?$",
        description="the oldest version among etcd's members, for members that tell their version to root only",
    )
    upstream: Items = Field(
        (), description="URLs of the gateways to follow instead of etcd, comma-separated, tried in turn"
    )
    upstream_cacert: File = Field(
        None, description="PEM file of the CAs of the upstream's certificates; by default the system's"
    )
    upstream_cert: File = Field(None, description="PEM file of the gateway's client certificate for the upstream")
    upstream_key: File = Field(None, description="PEM file of the client certificate's private key, not encrypted")
    upstream_token_file: File = Field(None, description="file with the bearer token for the upstream")
    host: Text = Field("127.0.0.1", description="address to listen on")
    port: Number = Field(8080, ge=0, le=65535, description="port to listen on; 0 takes a free port")
    admin_port: Annotated[int | None, BeforeValidator(number), BeforeValidator(_nothing)] = Field(
        None, ge=0, le=65535, description="separate port for /metrics, /v1/feeds and the probes"
    )
    tls_cert: File = Field(None, description="PEM file of the certificate and its chain; the ports then speak HTTPS")
    tls_key: File = Field(None, description="PEM file of the certificate's private key, not encrypted")
    tls_client_ca: File = Field(None, description="PEM file of the CAs that must have signed clients' certificates")
    workers: Annotated[int | Literal["auto"], BeforeValidator(processes)] = Field(
        1, description="processes that serve clients; auto: one for each processor of the container's quota"
    )
    allow_prefixes: Items | None = Field(
        None, description="prefixes that clients may read, comma-separated, percent-encoded; '' allows every key"
    )
    token_file: File = Field(None, description="file with the bearer token that clients of /v1 must send")
    tokens_file: File = Field(None, description="YAML file of named bearer tokens, by their SHA-256, with their roles")
    policy_file: File = Field(None, description="YAML file that says which identities may read which ranges")
    jwt_issuer: Text = Field(
        "", pattern=r"^[!\"$-~]*$", description="issuer whose JWTs are accepted as bearer tokens: their claim 'iss'"
    )
    jwt_audience: Items = Field((), description="audiences of accepted JWTs, comma-separated: their claim 'aud'")
    jwt_jwks: Text = Field("", description="URL or file of the issuer's public keys (a JWK set)")
    jwt_algorithms: Items = Field(
        (), description="accepted algorithms of JWTs, comma-separated; by default all that fit the keys"
    )
    jwt_roles_claim: Text = Field("roles", description="claim of a JWT that lists roles; 'a.b' is b within a")
    jwt_secret_file: File = Field(None, description="file with the secret of JWTs that are signed with HS256 to HS512")
    session_key_file: File = Field(
        None,
        description="file with the keys of browsers' sessions, one in a line, the newest first; the same everywhere",
    )
    auth_proxy_header: Text = Field(
        "", pattern=_HEADER, description="header in which a trusted proxy names the user that it has authenticated"
    )
    auth_proxy_roles_header: Text = Field(
        "",
        pattern=_HEADER,
        validation_alias=AliasChoices("GATEWAY_AUTH_PROXY_ROLES_HEADER", *ALIASES),
        description="header in which a trusted proxy lists the user's roles, comma-separated",
    )
    auth_proxies: Items = Field(
        (), description="addresses and networks of the proxies that may name users, comma-separated"
    )
    trusted_proxies: Items = Field(
        ("127.0.0.0/8", "::1"),
        validation_alias=AliasChoices("GATEWAY_TRUSTED_PROXIES", DEPRECATED),
        description="addresses and networks whose X-Forwarded-For counts, comma-separated; '*' trusts everybody",
    )
    cors_origins: Items = Field((), description="origins whose pages may read from the gateway, comma-separated")
    gzip_prefixes: Items = Field(
        (),
        description="prefixes whose streams and lists are sent with gzip to clients that ask for it, comma-separated, "
        "percent-encoded",
    )
    max_subscribers: Number = Field(20_000, ge=1, description="maximum number of streams at a time")
    max_feeds: Number = Field(
        1_000, ge=1, description="maximum number of distinct ranges at a time; lingering feeds are evicted first"
    )
    max_channels: Number = Field(
        10_000, ge=1, description="maximum number of distinct selections at a time; lingering ones are evicted first"
    )
    pin: Items = Field(
        (),
        description="prefixes that are followed as long as the gateway runs, comma-separated, percent-encoded; a "
        "range inside one costs etcd no further watch",
    )
    max_feed_bytes: Size = Field(256 << 20, ge=1, description="memory for all feeds, and for answers of /v1/kv")
    max_ranges: Number = Field(32, ge=1, description="maximum number of Range requests in flight at etcd")
    identity_streams: Number = Field(0, ge=0, description="maximum number of streams of one identity; 0 is off")
    identity_selections: Number = Field(
        0, ge=0, description="maximum number of distinct selections that one identity follows; 0 is off"
    )
    identity_feeds: Number = Field(
        0, ge=0, description="maximum number of distinct ranges outside pins that one identity follows; 0 is off"
    )
    identity_joins: Number = Field(0, ge=0, description="streams that one identity may open per second; 0 is off")
    identity_reads: Number = Field(
        0, ge=0, description="maximum number of concurrent reads of /v1/kv by one identity; 0 is off"
    )
    address_streams: Number = Field(
        0, ge=0, description="maximum number of streams of one client address (IPv6: of one /64); 0 is off"
    )
    address_joins: Number = Field(
        0,
        ge=0,
        description="streams that one client address may open per second, and wrong credentials that it may send; "
        "0 is off",
    )
    address_reads: Number = Field(
        0, ge=0, description="maximum number of concurrent reads of /v1/kv by one client address; 0 is off"
    )
    min_prefix: Number = Field(
        0, ge=0, le=4096, description="minimum number of bytes of a prefix in a request; 0 is off"
    )
    send_timeout: Seconds = Field(30.0, gt=0, description="a client that takes nothing for this long is disconnected")
    min_rate: Size = Field(
        16 << 10, ge=0, description="bytes a second at which a client must at least read a state; 0 is off"
    )
    send_buffer: Size = Field(64 << 10, ge=4096, le=1 << 30, description="kernel send buffer per connection")
    sink: Literal["auto", "portable", "fast"] = Field(
        "auto", description="how streams are written; portable: by ASGI only; fast: warns where it is not available"
    )
    keep_alive: Seconds = Field(
        75.0, ge=0, description="how long an idle connection is kept for its next request; 0 closes it at once"
    )
    max_age: Seconds = Field(
        0.0, ge=0, description="maximum age of a stream, times a random factor of 0.8 to 1.0; 0 is off"
    )
    linger: Seconds = Field(30.0, ge=0, description="how long a feed stays after its last subscriber has left")
    log_batches: Number = Field(4096, ge=1, description="maximum number of revisions in a feed's log")
    log_bytes: Size = Field(16 << 20, ge=1, description="maximum size of a feed's log")
    log_age: Seconds = Field(600.0, gt=0, description="how long a feed's log keeps a revision")
    reach_back: Number = Field(
        10_000, ge=0, description="maximum number of revisions that the gateway reads again at etcd for an old cursor"
    )
    heartbeat: Seconds = Field(15.0, gt=0, description="interval between heartbeats on a stream")
    stale_after: Seconds = Field(10.0, gt=0, description="time without proof from etcd after which a feed is stale")
    sync_timeout: Seconds = Field(5.0, gt=0, description="time for a resumed watch to prove that it lost nothing")
    drain_window: Seconds = Field(30.0, ge=0, description="time within which all streams are closed at shutdown")
    drain_pace: Number = Field(
        100, ge=1, description="streams closed per second at shutdown; more if the window is too short"
    )
    drain_timeout: Seconds = Field(
        10.0, ge=0, description="after the last close, how long the gateway waits for the last streams to end"
    )
    epoch: Text = Field("", max_length=64, description="part of every cursor; change it after restoring an etcd backup")
    instance: Text = Field(
        "", max_length=128, pattern=r"^[!-~]*$", description="name of this instance; by default the host's name"
    )
    log_format: Literal["auto", "human", "json"] = Field("auto", description="auto: human on a terminal, else JSON")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest severity that is logged"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read flags first, then the environment, and no other source."""
        del settings_cls, dotenv_settings, file_secret_settings
        return init_settings, env_settings

    @field_validator("*")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        """Refuse lone surrogates: bytes that are not UTF-8 arrive as surrogates, and these cannot be sent."""
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    msg = "is not UTF-8"
                    raise ValueError(msg) from None
        return value

    @field_validator("etcd", "upstream")
    @classmethod
    def _check_endpoints(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.field_name == "upstream" and value in ((), ("",)):
            return ()
        if not value or not all(value):
            msg = "at least one endpoint is required, and no item may be empty"
            raise ValueError(msg)
        endpoints = tuple(map(endpoint, value))
        if len({each.partition("://")[0] for each in endpoints}) > 1:
            msg = (
                "must not mix http:// and https:// endpoints: a fail-over would send in plain text what was encrypted "
                "before"
            )
            raise ValueError(msg)
        return endpoints

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value == ("",):
            return ()
        if len(value) > 1 and not all(value):
            msg = "must not have an empty origin among others; remove a comma"
            raise ValueError(msg)
        if len(value) > 1 and "*" in value:
            msg = "'*' among other origins would allow every origin; use '*' alone, or remove it"
            raise ValueError(msg)
        for origin in value:
            if origin != "*" and not is_origin(origin):
                msg = f"{origin!r} is not an origin; use the form that browsers send, like https://app.example"
                raise ValueError(msg)
        return value

    @field_validator("allow_prefixes")
    @classmethod
    def _check_prefixes(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        if not value:
            msg = "must not be an empty list; use '' to allow every key"
            raise ValueError(msg)
        if len(value) > 1 and not all(value):
            msg = "an empty prefix among others would allow every key; remove a comma, or use '' alone if you want that"
            raise ValueError(msg)
        for item in value:
            if why := wrong_with_prefix(item):
                raise ValueError(f"{item!r} {why}")
        return value

    @field_validator("pin", "gzip_prefixes")
    @classmethod
    def _check_prefix_list(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value == ("",):
            return ()
        if not all(value):
            msg = "must not have an empty prefix, which would stand for every key; remove a comma"
            raise ValueError(msg)
        for item in value:
            if why := wrong_with_prefix(item):
                raise ValueError(f"{item!r} {why}")
        return value

    @field_validator("pin")
    @classmethod
    def _check_pins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = sorted((unquote_to_bytes(item), item) for item in value)
        for (outer, first), (inner, second) in pairwise(names):
            if inner.startswith(outer):
                msg = f"{second!r} lies inside {first!r}; remove one of them"
                raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _check_pins_fit(self) -> Settings:
        if len(self.pin) > self.max_feeds:
            msg = f"{named('pin')}: has {len(self.pin)} prefixes, but GATEWAY_MAX_FEEDS is {self.max_feeds}"
            raise ValueError(msg)
        return self

    @field_validator("jwt_audience", "jwt_algorithms", "auth_proxies", "trusted_proxies")
    @classmethod
    def _check_list(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value == ("",):
            return ()
        if not all(value):
            msg = "must not have an empty item among others; remove a comma"
            raise ValueError(msg)
        for item in map(plain_text, value):
            if item.startswith(("[", "{")):
                raise ValueError(f"{item!r} is JSON; separate items by commas, without brackets and quotation marks")
        return value

    @field_validator("host")
    @classmethod
    def _check_host(cls, value: str) -> str:
        if value and not is_host(value):
            raise ValueError(f"{value!r} is not an address; use one like 0.0.0.0 or ::, without a port or a scheme")
        return value

    @model_validator(mode="after")
    def _check_ports(self) -> Settings:
        if self.port and self.port == self.admin_port:
            raise ValueError(f"{named('admin_port')}: cannot listen on {self.port}, the port of {named('port')}")
        return self

    @model_validator(mode="after")
    def _check_fence(self) -> Settings:
        if self.allow_prefixes is None and self.policy_file is None and not is_loopback(self.host):
            where = self.host or "'' (every address)"
            msg = (
                f"{where} is not a loopback address, so GATEWAY_ALLOW_PREFIXES (--allow-prefixes) is required: it "
                "lists the prefixes that clients may read, and '' allows every key; or set GATEWAY_POLICY_FILE"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_credentials(self) -> Settings:
        needs = (
            ("etcd_cert", "etcd_key"), ("etcd_key", "etcd_cert"), ("etcd_password_file", "etcd_user"),
            ("etcd_user", "etcd_password_file"),
            ("tls_cert", "tls_key"), ("tls_key", "tls_cert"), ("tls_client_ca", "tls_cert"),
            ("upstream_cacert", "upstream"), ("upstream_token_file", "upstream"), ("upstream_cert", "upstream_key"),
            ("upstream_key", "upstream_cert"), ("upstream_cert", "upstream"),
        )  # fmt: skip
        lines = [
            f"{named(name)}: needs {named(other)}"
            for name, other in needs
            if getattr(self, name) and not getattr(self, other)
        ]
        if ":" in self.etcd_user:
            # etcdctl accepts user:password. The message does not repeat the value, which holds a password.
            way = "must be the name only; put the password into the file of GATEWAY_ETCD_PASSWORD_FILE"
            lines.append(f"{named('etcd_user')}: {way}")
        if not self.etcd_is_tls:
            # Otherwise the user would believe that the connection is encrypted, or that etcd checks the certificate.
            lines += [
                f"{named(name)}: needs https:// endpoints in GATEWAY_ETCD (--etcd)"
                for name in ("etcd_cacert", "etcd_cert", "etcd_key")
                if getattr(self, name)
            ]
        if self.upstream:
            plain = not any(url.startswith("https://") for url in self.upstream)
            if plain and self.upstream_cert and self.upstream_key:
                lines.append(f"{named('upstream_cert')}: needs an https:// URL in {named('upstream')}")
            lines += [
                f"{named(name)}: must not be set together with {named('upstream')}: a gateway follows etcd or gateways"
                for name in self.model_fields_set
                if name.partition("_")[0] == "etcd"
            ]
        if lines:
            raise ValueError("\n".join(lines))
        return self

    @property
    def etcd_is_tls(self) -> bool:
        """Whether the endpoints are https://. Either all are, or none."""
        return self.etcd[0].startswith("https://")

    @property
    def etcd_hosts(self) -> tuple[str, ...]:
        """The hosts of the endpoints."""
        return tuple(urlsplit(each).hostname or "" for each in self.etcd)

    @property
    def credential_origins(self) -> tuple[str, ...]:
        """The origins whose pages may use a session: those that are named, and none if every origin may read."""
        return () if "*" in self.cors_origins or self.session_key_file is None else self.cors_origins

    @property
    def allowed(self) -> tuple[bytes, ...]:
        """The prefixes that clients may read, as bytes. ``(b"",)`` allows every key."""
        items = ("",) if self.allow_prefixes is None else self.allow_prefixes
        return tuple(map(unquote_to_bytes, items))

    @property
    def pins(self) -> tuple[bytes, ...]:
        """The pinned prefixes, as bytes."""
        return tuple(map(unquote_to_bytes, self.pin))

    @property
    def gzipped(self) -> tuple[bytes, ...]:
        """The prefixes whose answers may be sent with gzip, as bytes."""
        return tuple(map(unquote_to_bytes, self.gzip_prefixes))

    def group(self, kind: type[G], prefix: str = "") -> G:
        """Return the settings of one part of the gateway, as a frozen value of the dataclass *kind*.

        Each field holds the setting whose name is *prefix* and the field's name. A field that is itself a dataclass is
        a group of the settings that begin with the field's name. So each part declares the settings that it needs, by
        their own names, and no other code copies them. ``tests/test_settings.py`` compares names and types.
        """
        return kind(
            **{
                name: self.group(hint, f"{name}_")
                if isinstance(hint, type) and is_dataclass(hint)
                else getattr(self, prefix + name)
                for name, hint in get_type_hints(kind).items()
            }
        )


def named(name: str) -> str:
    """Return a setting's name for error messages: its variable and its flag."""
    return f"{PREFIX}{name.upper()} (--{name.replace('_', '-')})"


def load(flags: Mapping[str, Any]) -> Settings:
    """Return the settings from *flags* (name to value) and the environment. A flag beats its variable.

    Raises:
        SettingsError: with a line for each wrong setting.
    """
    given = [name.upper() for name in os.environ if name.upper().startswith(PREFIX)]
    if repeated := sorted({name for name in given if given.count(name) > 1}):  # pydantic would take the last one
        raise SettingsError(
            "\n".join(f"{name}: is set twice, in upper and lower case; remove one" for name in repeated)
        )
    try:
        return Settings(**flags)
    except ValidationError as error:
        lines = [_explain(dict(item)) for item in error.errors()]
        raise SettingsError("\n".join(lines)) from None


def _explain(item: Mapping[str, Any]) -> str:
    text = str(item["msg"]).removeprefix("Value error, ")
    if not item["loc"]:
        return text
    name = str(item["loc"][0]).removeprefix(PREFIX).lower()  # a setting with an alias is named by its variable
    value = item["input"]
    line = f"{named(name)}: {text}"
    if repr(value) not in text:
        shown = value.partition(":")[0] if name == "etcd_user" and isinstance(value, str) else value
        line += f", got {_PASSWORD.sub('//***@', repr(shown))}"
    if isinstance(value, str) and re.match(r"(tcp|udp|sctp)://", value):
        line += (
            "; this looks like a Kubernetes service link (from a Service named 'gateway' in the pod's namespace): set "
            "enableServiceLinks: false, or rename the Service"
        )
    return line


def unknown_variables(environment: Iterable[str] = os.environ) -> list[str]:
    """Return the variables that begin with GATEWAY_ but are not settings: misspellings, or Kubernetes service links."""
    known = {*ALIASES, *(f"{PREFIX}{name.upper()}" for name in Settings.model_fields)}
    return sorted(name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known)
