"""``app.workers.link``: messages between the hub and a worker."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.core.keys import KeyRange
from app.workers.link import Link, Message, decode_ranges, encode_ranges
from tests.support.waiting import soon


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Link, list[Message], Link, list[Message], list[str]]]:
    """Two ends of a link, with what each has taken, and who has lost the other."""
    ends = socket.socketpair()
    for sock in ends:
        sock.setblocking(False)
    lost: list[str] = []
    taken: tuple[list[Message], list[Message]] = ([], [])
    first = await Link.open(ends[0], taken[0].append, lambda: lost.append("first"))
    second = await Link.open(ends[1], taken[1].append, lambda: lost.append("second"))
    try:
        yield first, taken[0], second, taken[1], lost
    finally:
        first.close()
        second.close()


async def test_messages_come_whole_and_in_order() -> None:
    """A message of several megabytes comes in many pieces, and the ones after it come after it."""
    async with pair() as (first, _, _, taken, _):
        first.send("report", text="x" * 3_000_000)
        for number in range(100):
            first.send("release", id=number)
        await soon(lambda: len(taken) == 101)
        assert [one.get("id") for one in taken] == [None, *range(100)]
        assert len(taken[0]["text"]) == 3_000_000


async def test_the_end_of_one_is_noticed_by_the_other() -> None:
    """What is sent afterwards goes nowhere, and raises nothing."""
    async with pair() as (first, _, second, taken, lost):
        first.send("ready")
        await soon(lambda: taken == [{"do": "ready"}])
        second.close()
        await soon(lambda: sorted(lost) == ["first", "second"])
        first.send("ping")


def test_ranges_keep_every_byte() -> None:
    """A key is bytes, and a message is text."""
    ranges = (KeyRange("key", bytes(range(256))), KeyRange("prefix", b""), KeyRange("prefix", "/ä/".encode()))
    assert decode_ranges(encode_ranges(ranges)) == ranges
