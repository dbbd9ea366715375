"""Listening sockets: addresses that can't be had are named by their setting."""

from __future__ import annotations

import errno
import socket
from typing import Any

from ..settings import SettingsError

BACKLOG = 4096


def bind(host: str, port: int, send_buffer: int, setting: str) -> socket.socket:
    """A listening socket whose connections inherit a bounded send buffer (4 MiB each by default on Linux).

    It listens at once: two sockets may be bound to one port as long as neither listens. An empty *host* is every
    address: of IPv6 and IPv4 where the kernel has both, else of IPv4.

    Raises:
        SettingsError: the address can't be had; names the setting.
    """
    try:
        family, address = _resolve(host, port)
        sock = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # no such name, or a kernel without IPv6
        raise SettingsError(_cannot_listen("GATEWAY_HOST (--host)", host, port, error)) from None
    try:
        if family == socket.AF_INET6:
            # "::" takes IPv4 too, whatever net.ipv6.bindv6only says.
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
    """A host's family and address. IPv4 goes first, as it always did; empty is every address of both families."""
    host = host.removeprefix("[").removesuffix("]")
    if not host:
        return (socket.AF_INET6, ("::", port)) if socket.has_dualstack_ipv6() else (socket.AF_INET, ("", port))
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _type, _protocol, _name, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address
