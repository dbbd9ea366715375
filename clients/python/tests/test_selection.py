"""What a client asks for."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import pytest
from etcd_watch_client.selection import Selection, base_url, to_bytes, to_text
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.binary()), st.lists(st.binary(min_size=1)))
def test_the_query_has_the_bytes(prefixes: list[bytes], keys: list[bytes]) -> None:
    """Every byte arrives, whatever it is."""
    if not prefixes and not keys:
        return
    parts = Selection.of(prefixes, keys).query.split("&")
    found = [(name, unquote_to_bytes(value)) for name, _, value in (part.partition("=") for part in parts)]
    assert found == [("prefix", name) for name in prefixes] + [("key", name) for name in keys]


@given(st.binary())
def test_text_and_bytes_of_a_key(name: bytes) -> None:
    """Each key has a text of its own, also if it is not UTF-8."""
    assert to_bytes(to_text(name)) == name


def test_one_key_may_be_given_alone() -> None:
    """A string is not a list of characters."""
    query = Selection.of(["/a b/"], "/key", keys_only=True).query
    assert parse_qsl(query) == [("prefix", "/a b/"), ("key", "/key"), ("keys_only", "1")]


@pytest.mark.parametrize(("prefixes", "keys", "says"), [([], [], "nothing is selected"), (["/a"], [""], "empty")])
def test_a_selection_of_nothing_is_refused(prefixes: list[str], keys: list[str], says: str) -> None:
    """The mistake is named at once, and not by a gateway later."""
    with pytest.raises(ValueError, match=says):
        Selection.of(prefixes, keys)


@pytest.mark.parametrize(
    ("prefixes", "keys"), [([None], ()), ([["/a/", "/b/"]], ()), (["/a/"], 5), (["/a/"], [b"", 5])]
)
def test_what_is_not_a_name_is_refused(prefixes: list[Any], keys: Any) -> None:
    """The error says how several prefixes are passed."""
    with pytest.raises(ValueError, match="is not a prefix or a key; pass text or bytes, each prefix as an argument"):
        Selection.of(prefixes, keys)


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:8080", "localhost:8080", "", "ftp://x", "http://", "http://x/?a=1", "http://x/#a"),
        *(None, 5, b"http://x"),
        *("http://x:99999", "http://x:0", "http://x:port", "http://[::1", "http://a b", "http://:80", "http://x/\n"),
    ],
)
def test_what_is_no_url_is_refused(url: Any) -> None:
    """The error says how a URL is written."""
    with pytest.raises(ValueError, match="write http://HOST:PORT"):
        base_url(url)


def test_a_path_is_kept() -> None:
    """A proxy may serve the gateway under a path."""
    assert base_url("https://x/gate/way/") == "https://x/gate/way"
