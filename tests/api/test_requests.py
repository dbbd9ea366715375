"""Small facts about a request."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.requests import Request

from app.access.identity import ANONYMOUS, STATIC_TOKEN
from app.api.requests import (
    MAX_ADDRESS,
    address_of,
    caller_of,
    encoding_of,
    header_of,
    identity_of,
    peer_of,
    query_of,
    request_id_of,
)
from app.core.errors import BadRequestError, OverCapacityError, UnauthorizedError
from app.core.query import parse_query
from app.core.quotas import Caller, Wanted
from app.gateway import Gateway
from app.settings import load
from tests.support.asgi_client import http_scope

LONG = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff"


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("192.0.2.7", 4711), "192.0.2.7:4711"),
        (("2001:db8::7", 80), "[2001:db8::7]:80"),
        ((f"{LONG}%enp0s31f6.1000", 65535), f"[{LONG}%enp0s31f6.1000]:65535"),
        (None, "unknown"),
        (("a" * 60_000, 0), "a" * MAX_ADDRESS),
        (("192.0.2.7", 10**4000), "192.0.2.7:1".ljust(MAX_ADDRESS, "0")),
    ],
)
def test_address(client: tuple[str, int] | None, address: str) -> None:
    """An address is written as in a URL: an IPv6 address cannot be confused with the port. What a proxy has sent may be
    any text, which each stream would keep.
    """
    assert address_of(Request(http_scope("/", client=client))) == address


def test_the_peer() -> None:
    """Only our own server tells the connection's own address; ``client`` may come from X-Forwarded-For."""
    scope = http_scope("/", client=("192.0.2.7", 4711))
    assert peer_of(scope) is None
    for peer, host in ((("10.0.0.1", 4711), "10.0.0.1"), (None, None)):
        scope["extensions"] = {"etcd_watch_gateway": {"client": None, "peer": peer}}
        assert peer_of(scope) == host


@pytest.mark.parametrize("given", ["a", "req-1", "2f1c.a_b:c-D", "x" * 64])
def test_a_harmless_request_id_is_kept(given: str) -> None:
    """A harmless request id is kept: a proxy sent it, and its log and ours fit together."""
    request = Request(http_scope("/", headers=[(b"x-request-id", given.encode())]))

    assert request_id_of(request) == given


@pytest.mark.parametrize("given", [None, b"", b"x" * 65, b"a b", b'a"b', b"a,b", b"\xe4", b"a/b"])
def test_any_other_is_replaced(given: bytes | None) -> None:
    """Any other request id is replaced by a unique one, because the id goes into the log."""
    request = Request(http_scope("/", headers=[] if given is None else [(b"x-request-id", given)]))
    one, other = request_id_of(request), request_id_of(request)

    assert len(one) == len(other) == 16
    assert int(one, 16) >= 0
    assert one != other


@pytest.mark.parametrize(
    "headers",
    [[], [(b"a", b"1")], [(b"a", b""), (b"a", b"2")], [(b"b", b"3"), (b"a", b"\xe4")], [(b"ab", b"4")]],
)
def test_a_header_is_what_starlette_returns(headers: list[tuple[bytes, bytes]]) -> None:
    """The first of several counts, an empty one is present, and every byte is a character."""
    request = Request(http_scope("/", headers=headers))

    assert header_of(request, b"a") == request.headers.get("a")


def test_query_is_raw() -> None:
    """Nothing in the query is decoded: a key is any bytes."""
    raw = b"prefix=%ff+%2B&&key="

    assert query_of(Request(http_scope("/", raw))) == raw


@pytest.mark.parametrize(
    ("raw", "encoding"), [(b"", "auto"), (b"encoding=auto", "auto"), (b"encoding=base64", "base64")]
)
def test_encoding(raw: bytes, encoding: str) -> None:
    """The encoding is ``auto`` unless the request names another."""
    assert encoding_of(parse_query(raw, {"encoding"})) == encoding


@pytest.mark.parametrize("raw", [b"encoding=", b"encoding=hex", b"encoding=Base64"])
def test_another_encoding(raw: bytes) -> None:
    """An unknown encoding is refused by its name."""
    with pytest.raises(BadRequestError) as refused:
        encoding_of(parse_query(raw, {"encoding"}))

    assert (refused.value.parameter, refused.value.code) == ("encoding", "invalid-parameter")


class Guarded:
    """A gateway with a static token, on a clock that is set."""

    def __init__(self, folder: Path, **settings: int) -> None:
        (folder / "token").write_text("right")
        self.now = 100.0
        self.gateway = Gateway(load({"token_file": str(folder / "token"), **settings}), clock=lambda: self.now)

    async def ask(self, token: bytes, host: str = "192.0.2.7", *, joins: bool = False) -> str:
        """What the gateway says to a request: the identity, or the code of the refusal."""
        scope = http_scope("/v1/kv", client=(host, 4711), headers=[(b"authorization", b"Bearer " + token)])
        try:
            return (await identity_of(self.gateway, scope, joins=joins)).name
        except (OverCapacityError, UnauthorizedError) as error:
            return error.code


async def test_wrong_credentials_are_limited_by_address(tmp_path: Path) -> None:
    """After too many wrong tokens no token of that address is looked at, until a second has passed; others are."""
    guarded = Guarded(tmp_path, address_joins=2)
    said = [await guarded.ask(b"wrong") for _ in range(4)]

    assert said == ["unauthorized", "unauthorized", "address-joins", "address-joins"]
    assert await guarded.ask(b"right") == "address-joins"
    assert await guarded.ask(b"right", "192.0.2.8", joins=True) == STATIC_TOKEN.name
    guarded.now += 0.5
    assert await guarded.ask(b"wrong") == "unauthorized"
    assert await guarded.ask(b"right") == "address-joins"
    guarded.now += 1.0
    assert await guarded.ask(b"right", joins=True) == STATIC_TOKEN.name


async def test_nothing_is_verified_for_an_address_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit comes before the credentials: to verify them is what costs."""
    guarded = Guarded(tmp_path, address_joins=1)
    assert guarded.gateway.registry.quotas is not None
    guarded.gateway.registry.quotas.addresses.take_join("192.0.2.7", guarded.now)
    assert await guarded.ask(b"right") == STATIC_TOKEN.name  # a read
    monkeypatch.setattr(guarded.gateway.access, "authenticate", None)

    assert await guarded.ask(b"right", joins=True) == "address-joins"


async def test_ipv6_addresses_of_one_network(tmp_path: Path) -> None:
    """A client cannot escape by another address of its /64."""
    guarded = Guarded(tmp_path, address_joins=1)
    assert await guarded.ask(b"wrong", "2001:db8::1") == "unauthorized"

    assert await guarded.ask(b"right", "2001:db8::2") == "address-joins"
    assert await guarded.ask(b"right", "2001:db8:0:1::2") == STATIC_TOKEN.name


async def test_whose_quotas_count(tmp_path: Path) -> None:
    """The identity's name and the client's address count; without quotas nothing is looked at."""
    scope = http_scope("/v1/watch", client=("::ffff:192.0.2.7", 4711))

    assert caller_of(Guarded(tmp_path, identity_streams=1).gateway, scope, ANONYMOUS) == Caller(
        "anonymous", "192.0.2.7"
    )
    scope["client"] = None
    assert caller_of(Guarded(tmp_path, identity_streams=1).gateway, scope, ANONYMOUS) == Caller("anonymous", "unknown")
    off = Guarded(tmp_path, min_prefix=3)
    assert off.gateway.registry.quotas is None
    assert caller_of(off.gateway, scope, ANONYMOUS) is None
    assert [await off.ask(b"wrong") for _ in range(50)] == ["unauthorized"] * 50


async def test_a_hub_counts_no_worker_for_a_quota() -> None:
    """All requests at a hub are its workers', from no address. As one client, they would be refused for each other."""
    settings = load({"address_joins": 1, "address_streams": 1, "identity_reads": 1})
    hub = Gateway(settings, serves_workers=True)
    assert hub.registry.quotas is not None, "what it admits for the workers counts"
    scope = http_scope("/v1/watch", client=None)
    for _ in range(3):
        identity = await identity_of(hub, scope, joins=True)
        caller = caller_of(hub, scope, identity)
        assert caller is None
        hub.registry.quotas.acquire(Caller("anonymous", "unknown"), Wanted(()), hub.clock())
