"""The URLs and hosts that settings contain: endpoints of etcd, origins of pages, the address to listen on."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?")
# The parts of a URL that may be secret: a user with a password, and a query with a key.
_SECRETS = ((re.compile("//[^/@]*@"), "//***@"), (re.compile(r"\?[^,]*"), "?***"))
_PORTS = {"http": 80, "https": 443}


def is_host(text: str) -> bool:
    """Whether *text* can be an address or a host's name, perhaps in brackets: nothing else stands beside it."""
    bare = text.removeprefix("[").removesuffix("]")
    if ":" not in bare:
        return re.search(r"[\s/@\[\]?#,]", bare) is None
    try:
        return bool(ipaddress.IPv6Address(bare))
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether *host* can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def before_port(host: str) -> str:
    """Return a host as it is written before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def is_origin(text: str) -> bool:
    """Whether *text* is an origin as browsers send it: never with an upper-case host, nor with the default port."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    host = parts.hostname or ""
    if parts.scheme not in _PORTS or _HOST.fullmatch(host) is None:
        return False
    shown_port = "" if port in (None, _PORTS[parts.scheme]) else f":{port}"
    return text == f"{parts.scheme}://{before_port(host)}{shown_port}"


def endpoint(text: str) -> str:
    """Return an endpoint of etcd as a URL. Raises ValueError, with the form to use."""
    url = text if "://" in text else f"http://{text}"
    no_endpoint = f"{text!r} is not an endpoint; use the form http://127.0.0.1:2379"
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(no_endpoint) from None
    if "@" in parts.netloc:
        msg = "an endpoint must not contain user and password; use GATEWAY_ETCD_USER and GATEWAY_ETCD_PASSWORD_FILE"
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


def without_secrets(text: str) -> str:
    """Return the text of a setting without what may be secret in its URLs, if it has any."""
    if "://" in text:
        for secret, stars in _SECRETS:
            text = secret.sub(stars, text)
    return text
