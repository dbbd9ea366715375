"""The addresses on which the gateway listens, and the addresses by which it knows its clients."""

from __future__ import annotations

import socket

import httpx
import pytest

from app.server.protocol import unmapped
from app.server.sockets import bind
from tests.support.embedded import EmbeddedEtcd
from tests.support.gateway import GatewayProcess, gateway
from tests.support.streams import watch

DUAL = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="NOT RUN: this machine has no IPv6")


async def address(server: GatewayProcess, host: str, forwarded: str = "") -> str:
    """The address, without the port, that /v1/feeds shows for a client that comes to *host*."""
    base = f"http://{host}:{server.port}"
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    async with await watch(base, "prefix=/svc/", headers=headers) as stream:
        await stream.until("synced")
        async with httpx.AsyncClient(trust_env=False) as http:
            feeds = (await http.get(f"{base}/v1/feeds?prefix=/svc/")).json()["feeds"]
    (subscriber,) = feeds[0]["subscriber_list"]
    return str(subscriber["address"]).rpartition(":")[0]


@pytest.mark.one_etcd
@DUAL
@pytest.mark.parametrize("host", ["", "::"])
async def test_every_address_of_both_families(etcd: EmbeddedEtcd, host: str) -> None:
    """The gateway listens on both families, as the chart needs, and knows IPv4 clients and proxies by IPv4
    addresses.
    """
    settings = {"GATEWAY_HOST": host, "GATEWAY_ALLOW_PREFIXES": "", "GATEWAY_TRUSTED_PROXIES": "127.0.0.0/8"}
    async with gateway(etcd.endpoint, settings=settings) as server:
        assert await address(server, "127.0.0.1") == "127.0.0.1"
        assert await address(server, "127.0.0.1", "203.0.113.7") == "203.0.113.7"
        # The rightmost address that is not trusted counts: the client chooses what stands to the left.
        assert await address(server, "127.0.0.1", "10.9.9.9, 203.0.113.7, 127.0.0.5") == "203.0.113.7"
        assert await address(server, "127.0.0.1", "203.0.113.7, ::ffff:127.0.0.5") == "203.0.113.7"
        assert await address(server, "[::1]") == "[::1]"
        assert await address(server, "[::1]", "203.0.113.7") == "[::1]"


@pytest.mark.one_etcd
async def test_the_variable_that_trusted_proxies_replaces(etcd: EmbeddedEtcd) -> None:
    """FORWARDED_ALLOW_IPS still works, and the log says what replaces it; without it, loopback is trusted."""
    async with gateway(etcd.endpoint, settings={"FORWARDED_ALLOW_IPS": "10.0.0.1"}) as server:
        assert await address(server, "127.0.0.1", "203.0.113.7") == "127.0.0.1"
    (warning,) = [line for line in server.lines if "deprecated" in line]
    assert (warning["level"], warning["use"]) == ("warning", "GATEWAY_TRUSTED_PROXIES")
    async with gateway(etcd.endpoint) as server:
        assert await address(server, "127.0.0.1", "203.0.113.7") == "203.0.113.7"
    assert [line for line in server.lines if "deprecated" in line] == []


@DUAL
def test_both_families_whatever_the_system_prefers() -> None:
    """The gateway listens on both families whatever net.ipv6.bindv6only is."""
    for host in ("", "::"):
        with bind(host, 0, 65536, "GATEWAY_PORT") as sock:
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0


def test_every_address_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kernel without IPv6, the gateway listens on the IPv4 addresses."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with bind("", 0, 65536, "GATEWAY_PORT") as sock:
        assert (sock.family, sock.getsockname()[0]) == (socket.AF_INET, "0.0.0.0")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("::ffff:10.0.0.1", 1), ("10.0.0.1", 1)),
        (("::ffff:a00:1", 1), ("::ffff:a00:1", 1)),
        (("::1", 1), ("::1", 1)),
        (("10.0.0.1", 1), ("10.0.0.1", 1)),
        (None, None),
    ],
)
def test_unmapped(given: tuple[str, int] | None, expected: tuple[str, int] | None) -> None:
    assert unmapped(given) == expected
