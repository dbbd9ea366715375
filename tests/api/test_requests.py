"""Small facts about a request."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from app.api.requests import address_of, encoding_of, header_of, peer_of, query_of, request_id_of
from app.core.errors import BadRequestError
from app.core.query import parse_query
from tests.support.asgi_client import http_scope


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("192.0.2.7", 4711), "192.0.2.7:4711"),
        (("2001:db8::7", 80), "[2001:db8::7]:80"),
        (None, "unknown"),
    ],
)
def test_address(client: tuple[str, int] | None, address: str) -> None:
    """An address is written as in a URL: an IPv6 address cannot be confused with the port."""
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
