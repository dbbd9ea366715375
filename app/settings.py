"""Settings: every flag of ``serve`` and its environment twin, validated once at start.

Durations are seconds, ``30``, ``30s``, ``500ms``, ``5m`` or ``1h``; sizes are bytes, ``65536``, ``64KiB``, ``16MiB``.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints
from urllib.parse import unquote_to_bytes, urlsplit

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "GATEWAY_"

G = TypeVar("G")

# Durations and sizes have parsers of their own. pydantic's would take what is ambiguous, or refuse what is in use: its
# ``timedelta`` refuses "30", "500ms" and "5m", and takes "1d" and "00:00:30"; its ``ByteSize`` takes "64K" and
# "64KB" for 64,000 bytes, and "64kib" and "1.5MiB", which are refused here.
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h)?")
# A longer one is a slip of the keyboard, and infinity would be one too.
MAX_SECONDS = 10 * 365 * 24 * 3600
_UNITS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"([0-9]+)\s*(B|KiB|MiB|GiB)?")
_NUMBER = re.compile(r"\s*[0-9]+\s*")
_PASSWORD = re.compile(r"//[^/]*@")
# Bytes of the environment that are not UTF-8 arrive as surrogates.
_NOT_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?")
# How JSON, YAML, Python, Go and JavaScript write that there is nothing, and Helm.
_NOTHINGS = frozenset({"null", "~", "none", "nil", "undefined", "<nil>", "<none>", "<no value>", "[]", "{}"})
_SCALES = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def seconds(value: Any) -> Any:
    """A duration as it is written, in seconds; what is no text is left as it is. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        msg = f"{value!r} is no duration: write seconds, or 500ms, 30s, 5m, 1h"
        raise ValueError(msg)
    return float(match[1]) * _UNITS[match[2]]


def _bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        msg = f"{value!r} is no size: write bytes, or 64KiB, 16MiB, 1GiB"
        raise ValueError(msg)
    return int(match[1]) * _SCALES[match[2]]


def _number(value: Any) -> Any:
    """Pydantic alone would also take ``8080.0``, ``8_080`` and ``+8080``."""
    if isinstance(value, str) and _NUMBER.fullmatch(value) is None:
        msg = f"{value!r} is not a number: write it in digits"
        raise ValueError(msg)
    return value


def _items(value: Any) -> Any:
    """The items of a list. A value that is only white space is neither a list nor the empty value."""
    if not isinstance(value, str):
        return value
    if value and not value.strip():
        msg = f"{value!r} is only white space: write '' for the empty value"
        raise ValueError(msg)
    # Not all that Unicode calls a space: those of other keyboards are part of an item, and refused there.
    return [item.strip(" \t\r\n") for item in value.split(",")]


def _nothing(value: Any) -> Any:
    return None if value == "" else value


def _text(value: Any) -> Any:
    """Text that stands in headers, cursors, logs and requests to etcd. What is invisible there is a mistake."""
    if not isinstance(value, str):
        return value
    if _NOT_TEXT.search(value):
        msg = "a byte that is not UTF-8, or a control character"
        raise ValueError(msg)
    if value != value.strip():
        msg = "white space at the beginning or at the end"
        raise ValueError(msg)
    if value.startswith(("'", '"')):
        msg = "a quotation mark at the beginning, which a shell would have taken away: leave it out"
        raise ValueError(msg)
    if value.lower() in _NOTHINGS:
        msg = "how templates write that there is nothing: leave it out"
        raise ValueError(msg)
    return value


Seconds = Annotated[float, BeforeValidator(seconds), Field(le=MAX_SECONDS)]
Size = Annotated[int, BeforeValidator(_bytes)]
Number = Annotated[int, BeforeValidator(_number)]
Text = Annotated[str, BeforeValidator(_text)]
File = Annotated[Path | None, BeforeValidator(_nothing)]
Items = Annotated[tuple[str, ...], BeforeValidator(_items)]


class SettingsError(Exception):
    """What is wrong with the settings, one line each, naming flag and variable."""


class Settings(BaseSettings):
    """What ``serve`` runs with. Read once, never changed."""

    # enable_decoding: a list in the environment would be read as JSON, and '[]' as an empty list. A variable means what
    # its flag means.
    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, enable_decoding=False)

    etcd: Items = Field(("http://127.0.0.1:2379",), description="etcd's endpoints, comma-separated")
    etcd_cacert: File = Field(None, description="PEM file of the CAs that sign etcd's certificates; else the system's")
    etcd_cert: File = Field(None, description="PEM file of the certificate that the gateway shows to etcd")
    etcd_key: File = Field(None, description="PEM file of its private key, not encrypted")
    etcd_user: Text = Field("", description="etcd's user that the gateway is")
    etcd_password_file: File = Field(None, description="file with that user's password")
    host: Text = Field("127.0.0.1", description="address to listen on")
    port: Number = Field(8080, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    admin_port: Annotated[int | None, BeforeValidator(_number), BeforeValidator(_nothing)] = Field(
        None, ge=0, le=65535, description="/metrics, /v1/feeds and the probes move to this port"
    )
    allow_prefixes: Items | None = Field(
        None, description="prefixes that may be read, comma-separated, percent-encoded; '' is all"
    )
    token_file: File = Field(None, description="file with the bearer token that /v1 asks for")
    cors_origins: Items = Field((), description="origins that browsers may read from, comma-separated")
    max_subscribers: Number = Field(20_000, ge=1, description="streams at a time")
    max_feeds: Number = Field(1_000, ge=1, description="distinct ranges at a time; lingering ones go first")
    max_feed_bytes: Size = Field(256 << 20, ge=1, description="memory of all feeds' views and logs together")
    max_ranges: Number = Field(32, ge=1, description="Ranges in flight at etcd")
    linger: Seconds = Field(30.0, ge=0, description="how long a feed stays after its last subscriber")
    log_batches: Number = Field(4096, ge=1, description="revisions that a feed's log keeps")
    log_bytes: Size = Field(16 << 20, ge=1, description="bytes that a feed's log keeps")
    log_age: Seconds = Field(600.0, gt=0, description="how long a feed's log keeps a revision")
    reach_back: Number = Field(10_000, ge=0, description="revisions of history that a cursor may need from etcd")
    heartbeat: Seconds = Field(15.0, gt=0, description="time between signs of life on a stream")
    stale_after: Seconds = Field(10.0, gt=0, description="time without proof from etcd after which a feed is stale")
    sync_timeout: Seconds = Field(5.0, gt=0, description="time for a resume to prove itself")
    send_timeout: Seconds = Field(30.0, gt=0, description="time for one write before a stuck subscriber is cut off")
    min_rate: Size = Field(16 << 10, ge=0, description="bytes a second that a state must be taken at; 0 is off")
    send_buffer: Size = Field(64 << 10, ge=4096, le=1 << 30, description="kernel send buffer per connection")
    sink: Literal["auto", "portable", "fast"] = Field(
        "auto", description="way of streams to clients; portable: by ASGI only; fast: warns where it can't be had"
    )
    keep_alive: Seconds = Field(75.0, ge=0, description="how long a connection is kept for its next request; 0: not")
    max_age: Seconds = Field(0.0, ge=0, description="longest life of a stream, times 0.8 to 1.0; 0 is off")
    drain_window: Seconds = Field(30.0, ge=0, description="time over which streams are closed at shutdown")
    drain_pace: Number = Field(100, ge=1, description="streams closed in a second, unless the window is too short")
    drain_timeout: Seconds = Field(10.0, ge=0, description="longest wait behind that for streams to end")
    epoch: Text = Field("", max_length=64, description="change after restoring a backup of etcd")
    instance: Text = Field(
        "", max_length=128, pattern=r"^[!-~]*$", description="name of this instance; by default the host's"
    )
    log_format: Literal["auto", "human", "json"] = Field("auto", description="auto: human on a terminal, else JSON")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severity logged")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags beat the environment; no other source is read."""
        del settings_cls, dotenv_settings, file_secret_settings
        return init_settings, env_settings

    @field_validator("*")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        """Bytes that are not UTF-8 come as lone surrogates, and nothing that is sent can hold those."""
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    msg = "is not UTF-8"
                    raise ValueError(msg) from None
        return value

    @field_validator("etcd")
    @classmethod
    def _check_endpoints(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(value):
            msg = "at least one endpoint, and none empty"
            raise ValueError(msg)
        endpoints = tuple(_endpoint(text) for text in value)
        if len({endpoint.partition("://")[0] for endpoint in endpoints}) > 1:
            msg = "http:// and https:// endpoints together: a fail-over would send in plain text what was secret before"
            raise ValueError(msg)
        return endpoints

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value == ("",):
            return ()
        if len(value) > 1 and not all(value):
            msg = "an empty origin beside others: remove a comma"
            raise ValueError(msg)
        if len(value) > 1 and "*" in value:
            msg = "'*' beside others would allow every origin: write it alone"
            raise ValueError(msg)
        for origin in value:
            if origin != "*" and not _is_origin(origin):
                msg = f"{origin!r} is no origin: write it like https://app.example, as browsers send it"
                raise ValueError(msg)
        return value

    @field_validator("allow_prefixes")
    @classmethod
    def _check_prefixes(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        if not value:
            msg = "an empty list: write '' for all"
            raise ValueError(msg)
        if len(value) > 1 and not all(value):
            msg = "an empty prefix beside others would allow everything: remove a comma, or write '' alone for all"
            raise ValueError(msg)
        for item in value:
            if why := _wrong_with_prefix(item):
                raise ValueError(f"{item!r} {why}")
        return value

    @model_validator(mode="after")
    def _check_fence(self) -> Settings:
        if self.allow_prefixes is None and not is_loopback(self.host):
            msg = (
                f"{self.host} is not a loopback address, so GATEWAY_ALLOW_PREFIXES (--allow-prefixes) must say which "
                "prefixes may be read; '' means all, on purpose"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_credentials(self) -> Settings:
        lines = [
            f"{named(name)}: {why}"
            for name, why in (
                ("etcd_cert", "needs GATEWAY_ETCD_KEY (--etcd-key)" if not self.etcd_key else ""),
                ("etcd_key", "needs GATEWAY_ETCD_CERT (--etcd-cert)" if not self.etcd_cert else ""),
                ("etcd_user", _wrong_with_user(self.etcd_user, self.etcd_password_file)),
                ("etcd_password_file", "needs GATEWAY_ETCD_USER (--etcd-user)" if not self.etcd_user else ""),
            )
            if getattr(self, name) and why
        ]
        if not self.etcd_is_tls:
            # Somebody believes that this connection is secret, or that etcd knows us by the certificate.
            lines += [
                f"{named(name)}: needs https:// endpoints in GATEWAY_ETCD (--etcd)"
                for name in ("etcd_cacert", "etcd_cert", "etcd_key")
                if getattr(self, name)
            ]
        if lines:
            raise ValueError("\n".join(lines))
        return self

    @property
    def etcd_is_tls(self) -> bool:
        """Whether the endpoints are https://: all are, or none."""
        return self.etcd[0].startswith("https://")

    @property
    def etcd_hosts(self) -> tuple[str, ...]:
        """The endpoints' hosts."""
        return tuple(urlsplit(endpoint).hostname or "" for endpoint in self.etcd)

    @property
    def allowed(self) -> tuple[bytes, ...]:
        """The prefixes that may be read, as bytes; ``(b"",)`` is all."""
        items = ("",) if self.allow_prefixes is None else self.allow_prefixes
        return tuple(map(unquote_to_bytes, items))

    def group(self, kind: type[G], prefix: str = "") -> G:
        """The settings that a part of the gateway runs with, as one frozen value of the dataclass *kind*.

        Each field is the setting of the same name, *prefix* put before it; a field that is a dataclass itself is a
        group of the settings that begin with its name. So a part declares which settings it needs, by their own names,
        and nothing else copies them. ``tests/test_settings.py`` compares names and types.
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
    """A setting as errors call it: its variable, and its flag."""
    return f"{PREFIX}{name.upper()} (--{name.replace('_', '-')})"


def _wrong_with_user(user: str, password_file: Path | None) -> str:
    if ":" in user:
        # What etcdctl takes; the value is not repeated.
        return "the password does not go behind the name, but into the file of GATEWAY_ETCD_PASSWORD_FILE"
    return "" if password_file else "needs GATEWAY_ETCD_PASSWORD_FILE (--etcd-password-file)"


def _wrong_with_prefix(item: str) -> str:
    """Why an item of the fence does not mean what it says; empty if it does."""
    if re.search("%(?![0-9a-fA-F]{2})|[\ud800-\udfff]", item):
        return "is not percent-encoded: write it as it stands in a query, like /svc/%ff"
    if re.search(r"[\x00-\x20\x7f]|\s", item):
        return "has white space or a control character: separate items by commas, and write a space as %20"
    if item.endswith("*"):
        return "ends with a star: a prefix needs none, and a key's '*' is %2A"
    if item.startswith(("[", "{", '"', "'")) or item.lower() in _NOTHINGS:
        encoded = f"%{ord(item[0]):X}{item[1:]}"
        return f"is no prefix: write items between commas, and '' alone for all; if keys begin so, write {encoded!r}"
    return ""


_PORTS = {"http": 80, "https": 443}


def _is_origin(text: str) -> bool:
    """Whether a browser sends it so: an upper-case host, or the scheme's own port, would never match."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    host = parts.hostname or ""
    if parts.scheme not in _PORTS or _HOST.fullmatch(host) is None:
        return False
    host = f"[{host}]" if ":" in host else host
    return text == f"{parts.scheme}://{host}" + ("" if port in (None, _PORTS[parts.scheme]) else f":{port}")


def _endpoint(text: str) -> str:
    url = text if "://" in text else f"http://{text}"
    no_endpoint = f"{text!r} is no endpoint: write it like http://127.0.0.1:2379"
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(no_endpoint) from None
    if "@" in parts.netloc:
        msg = "user and password do not go into an endpoint: GATEWAY_ETCD_USER and GATEWAY_ETCD_PASSWORD_FILE have them"
        raise ValueError(msg)
    try:
        port = parts.port
    except ValueError:
        port = None
    if (
        parts.scheme not in ("http", "https")
        or _HOST.fullmatch(parts.hostname or "") is None
        or not port
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
    ):
        raise ValueError(no_endpoint)
    return f"{parts.scheme}://{parts.netloc}"


def is_loopback(host: str) -> bool:
    """Whether *host* can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def load(flags: Mapping[str, Any]) -> Settings:
    """The settings of *flags* (name to value) over those of the environment.

    Raises:
        SettingsError: with one line per setting that is wrong.
    """
    try:
        return Settings(**flags)
    except ValidationError as error:
        lines = [_explain(dict(item)) for item in error.errors()]
        raise SettingsError("\n".join(lines)) from None


def _explain(item: Mapping[str, Any]) -> str:
    text = str(item["msg"]).removeprefix("Value error, ")
    if not item["loc"]:
        return text
    name = str(item["loc"][0])
    value = item["input"]
    line = f"{named(name)}: {text}"
    if repr(value) not in text:
        shown = value.partition(":")[0] if name == "etcd_user" and isinstance(value, str) else value
        line += f", got {_PASSWORD.sub('//***@', repr(shown))}"
    if isinstance(value, str) and re.match(r"(tcp|udp|sctp)://", value):
        line += (
            "; that looks like a Kubernetes service link (a Service named 'gateway' beside this pod): set "
            "enableServiceLinks: false, or name the Service otherwise"
        )
    return line


def unknown_variables(environment: Iterable[str] = os.environ) -> list[str]:
    """Variables that begin like ours and are none: a misspelling, or a Kubernetes service link."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    return sorted(name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known)
