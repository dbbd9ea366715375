"""The trusted proxy: it has authenticated the user, and names the user in a header.

Only the addresses in ``GATEWAY_AUTH_PROXIES`` may do so. From anybody else the headers are dropped. The address is that
of the connection itself: ``X-Forwarded-For`` does not count here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from ..core.errors import BadRequestError, UnauthorizedError
from .identity import Identity, is_name, make_identity
from .policy import ROLE_NAME

_ROLE = re.compile(ROLE_NAME)

Headers = Iterable[tuple[bytes, bytes]]


class TrustedProxy:
    """The proxies that may name users, and the headers that they use."""

    def __init__(self, header: str, roles_header: str, proxies: Sequence[str]) -> None:
        self._header = header.lower().encode()
        self._roles_header = roles_header.lower().encode() or None
        self._networks = [ipaddress.ip_network(proxy) for proxy in proxies]

    def identity_of(self, headers: Headers, peer: str | None) -> Identity | None:
        """Return the user that a trusted proxy names; None if the request names no user, or is not from such a proxy.

        Args:
            headers: the request's headers, their names in lower case.
            peer: the IP address of the connection; None if it is not known.

        Raises:
            BadRequestError: a header appears twice: the proxy has appended its own to the client's.
            UnauthorizedError: the user's name is empty, or cannot be a name.
        """
        if not self.trusts(peer):
            return None
        names = [value for name, value in headers if name == self._header]
        if not names:
            return None
        roles = [value for name, value in headers if name == self._roles_header]
        if len(names) > 1 or len(roles) > 1:
            raise BadRequestError(
                "the header with the user's name or roles appears twice; the proxy must replace what the client sent",
                code="conflicting-credentials",
            )
        try:
            user, listed = names[0].decode(), b"".join(roles).decode()
        except UnicodeDecodeError:
            user = listed = ""
        if not is_name(user):
            raise UnauthorizedError("the user's name that the proxy sent is empty, too long, or not printable")
        given = (role.strip(" \t") for role in listed.split(","))
        return make_identity("proxy", user, roles=frozenset(role for role in given if _ROLE.fullmatch(role)))

    def trusts(self, peer: str | None) -> bool:
        """Whether the address may name users."""
        try:
            address = ipaddress.ip_address(peer or "")
        except ValueError:
            return False
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return any((mapped or address) in network for network in self._networks)
