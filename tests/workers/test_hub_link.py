"""``app.workers.hub_link``: what a worker tells the hub. What it asks for: ``test_admissions``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from app.core.errors import UnavailableError
from app.core.keys import KeyRange
from app.core.quotas import Caller
from app.workers import hub_link as module
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


@pytest.mark.parametrize("do", ["admit", "check", "read"])
async def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, do: str) -> None:
    """It is stopped: the request ends as if etcd were away. What the hub may still admit is released after it."""
    monkeypatch.setattr(module, "TIMEOUT", 0.0)
    caller = Caller("token:a", "10.0.0.1")
    async with pair() as (link, _, _, taken, _):
        hub = HubLink(link, "")
        ask: dict[str, Callable[[], Awaitable[object]]] = {
            "admit": lambda: hub.admit((KeyRange("key", b"/a"),), caller=caller, has_cursor=False),
            "check": lambda: hub.check_join((KeyRange("key", b"/a"),), caller=caller),
            "read": lambda: hub.begin_read(caller),
        }
        with pytest.raises(UnavailableError) as refused:
            await ask[do]()
        assert "does not answer" in refused.value.detail
        await soon(lambda: [(one["do"], one["id"]) for one in taken] == [(do, 1), ("release", 1)])
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
