"""``app.api.kv_list``: a list that is encoded piece by piece, within its memory."""

from __future__ import annotations

import json

import pytest

from app.api import kv_list
from app.api.kv_list import KvList
from app.api.kv_request import parse
from app.core.budget import ANSWERS_SHARE, PAGE_BYTES, Budget, Hold, Use
from app.core.errors import OverCapacityError
from app.core.etag import ETag
from app.core.events import KeyValue

ITEMS = [KeyValue(f"/a/{number}".encode(), b"v", 2 + number, 9 - number, 1) for number in range(5)]


@pytest.fixture(name="hold")
def _hold() -> Hold:
    return Budget(ANSWERS_SHARE * 2 * PAGE_BYTES).hold(Use.ANSWER)


async def test_pieces_are_one_list(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is divided, it is one list, with the greatest revision of all."""
    monkeypatch.setattr(kv_list, "ENCODE_SLICE", 2)
    items = KvList(parse(b"prefix=/a/").read, hold)
    await items.add(ITEMS[:3])
    await items.add([])
    await items.add(ITEMS[3:])
    body = items.body("3f9ac17b", 12, 5, more=False)
    found = json.loads(b"".join(body.parts or ()) + body.tail(""))

    assert [item["key"] for item in found["kvs"]] == [item.key.decode() for item in ITEMS]
    assert (found["revision"], found["cursor"], found["count"]) == (12, "3f9ac17b-12", 5)
    assert body.tag == ETag("3f9ac17b", 9, 5)
    assert hold.size == body.size


@pytest.mark.parametrize(("query", "more"), [(b"prefix=/a/", True), (b"prefix=/a/&page=MTYyMTRmZmYtNy0vYS8x", False)])
async def test_a_part_has_no_tag(hold: Hold, query: bytes, more: bool) -> None:
    """A page is not the list, neither the first page nor the last."""
    items = KvList(parse(query).read, hold)
    await items.add(ITEMS)
    body = items.body("3f9ac17b", 12, 9, more=more)

    assert body.tag is None
    assert (b"next_page" in b"".join(body.parts or ()) + body.tail("")) == more


async def test_full(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is full at its limit, and at its maximum of bytes; then nothing more is reserved."""
    items = KvList(parse(b"prefix=/a/&limit=5").read, hold)
    await items.add(ITEMS[:4])
    assert not items.full
    await items.add(ITEMS[4:])
    size = hold.size
    assert items.full
    assert not items.may_grow()
    assert not items.fits(1)
    assert hold.size == size
    longer = KvList(parse(b"prefix=/a/").read, hold)
    monkeypatch.setattr(kv_list, "MOST_BYTES", 10)
    await longer.add(ITEMS)
    assert longer.full


async def test_memory_is_reserved_for_what_comes(hold: Hold) -> None:
    """What fits in the reserved bytes reserves no more; what does not fit reserves a page, until there is none."""
    items = KvList(parse(b"prefix=/a/").read, hold)
    assert items.fits(100)
    assert hold.size == PAGE_BYTES
    assert items.fits(PAGE_BYTES)
    assert hold.size == PAGE_BYTES
    assert items.fits(PAGE_BYTES + 1)
    assert not items.fits(2 * PAGE_BYTES + 1)
    assert hold.size == 2 * PAGE_BYTES


async def test_an_empty_list_keeps_its_memory() -> None:
    """Nobody who waits for memory takes it: the first item still has room, however many ranges are empty."""
    budget = Budget(ANSWERS_SHARE * PAGE_BYTES)
    hold = budget.ask(Use.ANSWER, PAGE_BYTES)
    waiting = budget.ask(Use.ANSWER, PAGE_BYTES)
    items = KvList(parse(b"prefix=/a/&prefix=/b/").read, hold)
    for _ in range(3):
        await items.add([])
        assert items.may_grow()
    assert not waiting.granted
    await items.add(ITEMS)
    assert 0 < hold.size < PAGE_BYTES


async def test_a_list_whose_memory_was_needed(hold: Hold) -> None:
    """Once its memory is taken, it is no answer."""
    items = KvList(parse(b"prefix=/a/").read, hold)
    await items.add(ITEMS)
    hold.revoke()
    with pytest.raises(OverCapacityError):
        items.settle()
    with pytest.raises(OverCapacityError):
        items.body("3f9ac17b", 12, 5, more=False)
