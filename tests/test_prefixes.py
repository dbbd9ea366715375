"""``app.prefixes``: what is wrong with a text or a prefix that stands in a setting."""

from __future__ import annotations

import pytest

from app.prefixes import plain_text, wrong_with_prefix


@pytest.mark.parametrize("item", ["/svc/", "/a%2Cb/", "%ff", "%2A", "%5Bnull", "a=b"])
def test_prefixes(item: str) -> None:
    """Nothing is wrong with a prefix that is percent-encoded as in a query."""
    assert wrong_with_prefix(item) == ""


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ("/a/%zz", "percent-encoded"),
        ("/a b/", "%20"),
        ("/svc/*", "%2A"),
        ('["/svc/"]', "%5B"),
        ("null", "%6Eull"),
        ("\ufeff/svc/", "invisible"),
    ],
)
def test_probable_mistakes(item: str, why: str) -> None:
    """A mistake is refused, with the way to write it if it is meant."""
    assert why in wrong_with_prefix(item)


def test_plain_text() -> None:
    """A text is returned as it is, or refused for what somebody has probably not meant."""
    assert plain_text("naïve text") == "naïve text"
    assert plain_text(7) == 7
    with pytest.raises(ValueError, match="invisible"):
        plain_text("a\u200bb")
