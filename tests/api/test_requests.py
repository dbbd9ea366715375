"""Small facts of a request."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from app.api.requests import address_of, encoding_of, query_of, request_id_of
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
    """As a URL writes it: the port can be told from an IPv6 address."""
    assert address_of(Request(http_scope("/", client=client))) == address


@pytest.mark.parametrize("given", ["a", "req-1", "2f1c.a_b:c-D", "x" * 64])
def test_a_harmless_request_id_is_kept(given: str) -> None:
    """A proxy's, so that its log and ours fit together."""
    request = Request(http_scope("/", headers=[(b"x-request-id", given.encode())]))

    assert request_id_of(request) == given


@pytest.mark.parametrize("given", [None, b"", b"x" * 65, b"a b", b'a"b', b"a,b", b"\xe4", b"a/b"])
def test_any_other_is_replaced(given: bytes | None) -> None:
    """By one that nobody else has: it goes into the log."""
    request = Request(http_scope("/", headers=[] if given is None else [(b"x-request-id", given)]))
    one, other = request_id_of(request), request_id_of(request)

    assert len(one) == len(other) == 16
    assert int(one, 16) >= 0
    assert one != other


def test_query_is_raw() -> None:
    """Nothing is decoded: a key is any bytes."""
    raw = b"prefix=%ff+%2B&&key="

    assert query_of(Request(http_scope("/", raw))) == raw


@pytest.mark.parametrize(
    ("raw", "encoding"), [(b"", "auto"), (b"encoding=auto", "auto"), (b"encoding=base64", "base64")]
)
def test_encoding(raw: bytes, encoding: str) -> None:
    """``auto`` unless another is asked for."""
    assert encoding_of(parse_query(raw, {"encoding"})) == encoding


@pytest.mark.parametrize("raw", [b"encoding=", b"encoding=hex", b"encoding=Base64"])
def test_another_encoding(raw: bytes) -> None:
    """Is refused by its name."""
    with pytest.raises(BadRequestError) as refused:
        encoding_of(parse_query(raw, {"encoding"}))

    assert (refused.value.parameter, refused.value.code) == ("encoding", "invalid-parameter")
