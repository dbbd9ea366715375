"""How settings are written: every value as its flag takes it, and what a misspelt variable means."""

from __future__ import annotations

from itertools import pairwise

import pytest

from app.settings import Settings, load
from app.settings_text import SECTIONS, flag_of, form_of, likely_meant, text_of, variable_of
from tests.test_docs import rows, section


@pytest.mark.parametrize("name", Settings.model_fields)
def test_what_is_shown_means_the_default(name: str) -> None:
    """The help shows a text that the flag takes, and that changes nothing."""
    default = Settings.model_fields[name].default
    text = text_of(name, default)

    if text:
        assert getattr(load({name: text, "tls_key": None}), name) == default


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("max_feed_bytes", 256 << 20, "256MiB"),
        ("linger", 0.5, "500ms"),
        ("allow_prefixes", ("/a/", "/b/"), "/a/,/b/"),
        ("admin_port", None, ""),
        ("port", 8080, "8080"),
    ],
)
def test_values(name: str, value: object, text: str) -> None:
    """Sizes and durations have their units, lists their commas."""
    assert text_of(name, value) == text


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("etcd", "LIST"),
        ("allow_prefixes", "LIST"),
        ("tls_cert", "FILE"),
        ("admin_port", "N"),
        ("workers", "{N,auto}"),
        ("send_buffer", "SIZE"),
        ("linger", "DURATION"),
        ("log_level", "{debug,info,warning,error}"),
        ("epoch", "VALUE"),
    ],
)
def test_forms(name: str, form: str) -> None:
    """The help says what a flag takes: its words, or a noun that the head of the help explains."""
    assert form_of(name) == form


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("GATEWAY_LINGR", "GATEWAY_LINGER"),
        ("gateway_loglevel", "GATEWAY_LOG_LEVEL"),
        ("GATEWAY_TOKENFILE", "GATEWAY_TOKEN_FILE"),
        ("GATEWAY_ETCD_CA_CERT", "GATEWAY_ETCD_CACERT"),
        ("GATEWAY_COLOUR", ""),
        ("GATEWAY_SERVICE_HOST", ""),
        ("GATEWAY_SERVICE_PORT_HTTP", ""),
        ("GATEWAY_PORT_8080_TCP", ""),
    ],
)
def test_misspelt_variables(variable: str, meant: str) -> None:
    """A near name is offered, but none for a variable that Kubernetes sets."""
    assert likely_meant(variable) == meant


def test_names() -> None:
    """A setting's variable and flag."""
    assert (variable_of("max_feeds"), flag_of("max_feeds")) == ("GATEWAY_MAX_FEEDS", "--max-feeds")


def test_the_sections_are_those_of_the_docs() -> None:
    """The page and the help have the same settings under the same headings."""
    names = list(Settings.model_fields)
    starts = [*(names.index(first) for first in SECTIONS), len(names)]

    assert starts == sorted(starts)
    for title, (start, end) in zip(SECTIONS.values(), pairwise(starts), strict=True):
        documented = {row[0] for row in rows(section("configuration.md", f"### {title.capitalize()}"))}
        assert documented == {variable_of(name) for name in names[start:end]}, title
