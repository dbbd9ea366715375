"""What is wrong with the options of a mirror."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, assert_type

import httpx
import pytest
from etcd_watch_client import ConfigDict, Mirror
from etcd_watch_client.options import Options, check, merging

RIGHT: dict[str, list[Any]] = {
    "keys": ["/leader", ["/a", b"/b"]],
    "permitted": [True],
    "min_revision": [0, 15],
    "latest": [0.05, 2, 60],
    "token": ["secret", Path("token"), lambda: "secret"],
    "ca": ["ca.pem", Path("ca.pem"), ssl.create_default_context()],
    "cert": ["tls.crt"],
    "key": ["tls.key"],
    "resume": [Path("state")],
    "on_change": [print],
    "on_state": [print],
    "format": ["sse", "ndjson"],
    "transport": [httpx.AsyncHTTPTransport()],
}


def test_each_option_may_be_given_or_absent() -> None:
    """None is what a program passes that has nothing to pass."""
    assert RIGHT.keys() == Options.__annotations__.keys()
    for name, values in RIGHT.items():
        for value in [None, *values]:
            check({name: value})


@pytest.mark.parametrize("name", [name for name in RIGHT if name != "keys"])
def test_a_wrong_value_is_named_with_what_to_pass(name: str) -> None:
    """It would fail later, far from its cause, or be ignored."""
    with pytest.raises(ValueError, match=f"^{name} is .*; pass "):
        check({name: object()})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"latest": "2s"}, "latest is '2s'; pass the seconds between two changes, 0.05 to 60"),
        ({"latest": 0.01}, "latest is 0.01; pass"),
        ({"min_revision": -1}, "min_revision is -1; pass"),
        ({"format": "xml"}, "format is 'xml'; pass ndjson or sse"),
        ({"token": b"secret"}, "token is bytes; pass text, a Path or a function"),
    ],
)
def test_an_error_shows_the_value_but_no_token(options: dict[str, Any], says: str) -> None:
    """A log may be read by many."""
    with pytest.raises(ValueError, match=says):
        Mirror("http://127.0.0.1:1", "/", **options)


def test_a_misspelt_option_is_named_with_the_one_that_was_meant() -> None:
    """Also one that only a ConfigDict has."""
    with pytest.raises(TypeError, match="there is no option 'tokn'; did you mean 'token'"):
        Mirror("http://127.0.0.1:1", "/", tokn="x")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="there is no option 'timout'; did you mean 'timeout'"):
        ConfigDict("http://127.0.0.1:1", "/", timout=3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="timeout is '3 s'; pass a number of seconds"):
        ConfigDict("http://127.0.0.1:1", "/", timeout="3 s")  # type: ignore[call-overload]


def test_an_interval_in_a_query() -> None:
    """Whole milliseconds."""
    assert [merging(None), merging(0.25)] == ["", "&mode=latest&interval=250ms"]


def test_the_options_say_the_types() -> None:
    """mypy compares them. A `ConfigDict` takes the arguments of a `Mirror`."""
    url, prefix = "http://gateway.test", "/c/"
    assert_type(Mirror(url, prefix, binary=False, keys_only=False, decode=None), Mirror[str, str])
    assert_type(Mirror(url, prefix, decode=len), Mirror[str, int])
    assert_type(Mirror(url, prefix, binary=True), Mirror[bytes, bytes])
    assert_type(Mirror(url, prefix, binary=True, decode=len), Mirror[bytes, int])
    assert_type(Mirror(url, prefix, keys_only=True), Mirror[str, None])
    assert_type(Mirror(url, prefix, binary=True, keys_only=True), Mirror[bytes, None])
    assert_type(ConfigDict(url, prefix, binary=False, keys_only=False, decode=None), ConfigDict[str, str])
    assert_type(ConfigDict(url, prefix, decode=len, timeout=1), ConfigDict[str, int])
    assert_type(ConfigDict(url, prefix, binary=True), ConfigDict[bytes, bytes])
    assert_type(ConfigDict(url, prefix, binary=True, decode=len), ConfigDict[bytes, int])
    assert_type(ConfigDict(url, prefix, keys_only=True), ConfigDict[str, None])
    assert_type(ConfigDict(url, prefix, binary=True, keys_only=True), ConfigDict[bytes, None])
