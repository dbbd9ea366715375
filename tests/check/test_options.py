"""``app.check.options``: the flags of ``check``."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.arguments import parse
from app.check.options import Options, options_of
from app.settings import SettingsError


def options(*flags: str) -> Options:
    """The options of a command line."""
    given = parse(["check", "--prefix", "/svc/", *flags])
    del given["command"]
    return options_of(given)


def test_urls_lose_their_slash_and_the_admin_url_is_the_url() -> None:
    """A path is appended to each."""
    given = options("--url", "http://a/", "--through", "http://b/x/", "--for", "5m", "--put", "true")

    assert (given.url, given.admin_url, given.through) == ("http://a", "http://a", "http://b/x")
    assert (given.lasting, given.put, given.json) == (300.0, "true", False)
    assert given.authorization == {}


def test_a_token_is_sent_as_its_bytes(tmp_path: Path) -> None:
    """A token is UTF-8, a header Latin-1."""
    file = tmp_path / "token"
    file.write_bytes("schlüssel".encode())

    assert options("--token-file", str(file)).authorization["Authorization"].encode("latin-1") == (
        "Bearer schlüssel".encode()
    )


@pytest.mark.parametrize("flags", [("--put", "true"), ("--for", "5m")])
def test_flags_of_a_proxy_need_the_proxy(flags: tuple[str, str]) -> None:
    """Otherwise a forgotten --through would pass as a check of the proxy."""
    with pytest.raises(SettingsError, match=f"{flags[0]}: needs --through"):
        options(*flags)


def test_a_key_needs_its_certificate(tmp_path: Path) -> None:
    """The key alone proves nothing."""
    with pytest.raises(SettingsError, match="--key: needs --cert"):
        options("--key", str(tmp_path / "key"))
