"""``app.workers.hub_link``: what a worker tells the hub. What it asks for: ``test_admissions``."""

from __future__ import annotations

from app.core.keys import KeyRange
from app.workers.hub_link import HubLink
from tests.support.waiting import soon
from tests.workers.test_link import pair


async def test_what_concerns_all_workers_is_told() -> None:
    """Ended sessions, wrong credentials, and an edge's request for bookmarks."""
    async with pair() as (link, _, _, taken, _):
        hub = HubLink(link, "/run/hub")
        assert hub.socket == "/run/hub"
        hub.tell_ended("s", "key", 5.0)
        hub.tell_failed("10.0.0.1")
        hub.tell_bookmarks_due((KeyRange("key", b"\xff"),), "10.0.0.2", 7)
        await soon(lambda: len(taken) == 3)
        assert taken == [
            {"do": "ended", "id": "s", "sealed_by": "key", "expires": 5.0},
            {"do": "failed", "address": "10.0.0.1"},
            {"do": "bookmarks_due", "ranges": [["key", "\xff"]], "host": "10.0.0.2", "revision": 7},
        ]


async def test_a_late_answer_goes_nowhere() -> None:
    """The stream that it was for has ended."""
    async with pair() as (link, _, _, _, _):
        hub = HubLink(link, "")
        hub.take({"do": "admitted", "id": 1})
        hub.take({"do": "close", "id": 1, "reason": "unavailable"})


async def test_a_sign_of_life() -> None:
    """The worker's feeds are as current as the hub was alive."""
    now = 5.0
    async with pair() as (link, _, _, _, _):
        hub = HubLink(link, "", lambda: now)
        now = 8.0
        assert hub.heard_at == 5.0
        hub.hear()
        assert hub.heard_at == 8.0
