"""The URLs that settings contain. ``test_settings.py`` has what is refused, and how clearly."""

from __future__ import annotations

import pytest

from app.urls import before_port, endpoint, is_loopback, is_origin


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("10.0.0.7:2379", "http://10.0.0.7:2379"),
        ("https://etcd-0.etcd:2379/", "https://etcd-0.etcd:2379"),
        ("[::1]:2379", "http://[::1]:2379"),
    ],
)
def test_endpoints(text: str, url: str) -> None:
    """An endpoint becomes a URL without a path; without a scheme it is http."""
    assert endpoint(text) == url


@pytest.mark.parametrize(
    "text", ["", "etcd", "ftp://etcd:2379", "http://etcd:0", "http://etcd:2379/v3", "http://[:2379"]
)
def test_no_endpoints(text: str) -> None:
    """What is not an endpoint is refused with the form to use."""
    with pytest.raises(ValueError, match="use the form"):
        endpoint(text)


def test_an_endpoint_without_a_password() -> None:
    """A password in an endpoint would be logged; the error does not repeat it."""
    with pytest.raises(ValueError, match="GATEWAY_ETCD_PASSWORD_FILE") as refused:
        endpoint("http://root:secret@etcd:2379")

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://app.example", True),
        ("http://localhost:3000", True),
        ("https://[::1]:8443", True),
        ("https://app.example:443", False),
        ("https://App.example", False),
        ("https://app.example/", False),
        ("app.example", False),
        ("null", False),
        ("http://[", False),
    ],
)
def test_origins(text: str, origin: bool) -> None:
    """An origin has the form that browsers send: lower case, and no default port."""
    assert is_origin(text) == origin


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("", False),
        ("127.0.0.1.example", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    """A loopback address is reachable only from this machine. A name is not looked up."""
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("host", "written"), [("::1", "[::1]"), ("127.0.0.1", "127.0.0.1"), ("gw.example", "gw.example")]
)
def test_a_host_before_a_port(host: str, written: str) -> None:
    """An IPv6 address has brackets there, or its last part would be the port."""
    assert before_port(host) == written
