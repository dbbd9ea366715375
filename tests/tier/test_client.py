"""The tier in an answer, and URLs in turn."""

from __future__ import annotations

import ssl

import pytest

from app.tier.client import Client, ForeignAnswerError, tier_of


@pytest.mark.parametrize("headers", [{}, {"X-Gateway-Tier": ""}, {"X-Gateway-Tier": "-1"}, {"X-Gateway-Tier": "one"}])
def test_an_answer_without_a_tier(headers: dict[str, str]) -> None:
    """Only a gateway says its tier."""
    with pytest.raises(ForeignAnswerError):
        tier_of(headers, 502)


async def test_urls_come_in_turn() -> None:
    """After the last one, the first one is tried again."""
    client = Client(["http://a:1", "http://b:1"], ssl.create_default_context(), lambda: "", lambda: None)
    found = []
    for _ in range(3):
        found.append(client.url)
        client.turn()
    await client.aclose()
    assert found == ["http://a:1", "http://b:1", "http://a:1"]
    assert client.count == 2
