"""Listening sockets. The error for an address that cannot be bound names its setting."""

from __future__ import annotations

import errno
import socket
from typing import Any

from ..settings import SettingsError

BACKLOG = 4096


def bind(host: str, port: int, send_buffer: int, setting: str) -> socket.socket:
    """Return a listening socket whose connections inherit a bounded send buffer (Linux's default is 4 MiB each).

    The socket listens at once: as long as neither of two sockets listens, both may be bound to one port. An empty
    *host* means every address: of IPv6 and IPv4 if the kernel has both, otherwise of IPv4.

    Raises:
        SettingsError: the socket cannot listen on the address. The text names the setting.
    """
    try:
        family, address = _resolve(host, port)
        sock = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # an unknown name, or a kernel without IPv6
        raise SettingsError(_cannot_listen("GATEWAY_HOST (--host)", host, port, error)) from None
    try:
        if family == socket.AF_INET6:
            # "::" accepts IPv4 too, whatever the value of net.ipv6.bindv6only.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL:
            setting = "GATEWAY_HOST (--host)"
        raise SettingsError(_cannot_listen(setting, host, port, error)) from None
    return sock


def _cannot_listen(setting: str, host: str, port: int, error: OSError | UnicodeError) -> str:
    return f"{setting}: cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}"


def _resolve(host: str, port: int) -> tuple[int, Any]:
    """Return a host's family and address. IPv4 is preferred, as before. An empty host means every address."""
    host = host.removeprefix("[").removesuffix("]")
    if not host:
        return (socket.AF_INET6, ("::", port)) if socket.has_dualstack_ipv6() else (socket.AF_INET, ("", port))
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _type, _protocol, _name, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address
