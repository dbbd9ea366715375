"""Why etcd refused a create: the role, or only the token of the stream. KV decides, and the watch is notified."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from app.core.errors import UnavailableError
from app.core.feed_messages import Lost, Refused, WatchInput
from app.core.keys import KeyRange
from app.etcd.refusals import RefusalChecker
from tests.support.waiting import eventually

RANGE = KeyRange("prefix", b"/svc/")
REFUSED = Refused("permission denied")


class Stream:
    """The stream of a refused watch."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.closed = False
        self.retired: list[str] = []

    def retire(self, reason: str) -> None:
        """Record that the stream was retired, with the reason."""
        self.retired.append(reason)
        self.closed = True


class Watch:
    """A watch whose create was refused."""

    range = RANGE

    def __init__(self, stream: Stream) -> None:
        self.stream: Any = stream
        self.wanted = True
        self.told: list[WatchInput] = []

    def tell(self, given: WatchInput) -> None:
        """Record the input."""
        self.told.append(given)


async def says(answer: bool | Exception) -> bool:
    """Answer as KV."""
    await asyncio.sleep(0)
    if isinstance(answer, Exception):
        raise answer
    return answer


async def resolve(permitted: Callable[[KeyRange], Awaitable[bool]], *watches: Watch) -> None:
    """Let each watch be notified; calls now carry the token "new"."""
    refusals = RefusalChecker(permitted, lambda: "new")
    for watch in watches:
        refusals.resolve(watch, REFUSED)

    async def told() -> bool:
        return all(watch.told or not watch.wanted for watch in watches)

    await eventually(told)
    await refusals.aclose()


@pytest.mark.parametrize(
    ("answer", "token", "told", "retired"),
    [
        (False, "old", Refused("permission denied", denied=True), False),
        (True, "new", REFUSED, False),  # KV accepts this very token: the next attempt decides
        (True, "old", Lost("the stream's token is no longer valid"), True),
        (UnavailableError("etcd is away"), "old", Lost("etcd is away"), False),
        (RuntimeError("a defect"), "old", Lost("cannot find out why the watch was refused: a defect"), False),
    ],
)
async def test_what_a_watch_is_told(answer: bool | Exception, token: str, told: WatchInput, retired: bool) -> None:
    """In every case the watch gets an answer: nothing else would ever notify it."""
    stream = Stream(token)
    watch = Watch(stream)
    await resolve(lambda _range: says(answer), watch)
    assert watch.told == [told]
    assert bool(stream.retired) is retired


async def test_one_answer_is_for_all_of_a_stream() -> None:
    """An expired token refuses every create at once: the stream is retired once, and KV is asked once."""
    stream = Stream("old")
    watches = [Watch(stream) for _ in range(20)]
    asked: list[KeyRange] = []

    async def permitted(watched: KeyRange) -> bool:
        asked.append(watched)
        return await says(True)

    await resolve(permitted, *watches)
    assert (len(asked), len(stream.retired)) == (1, 1)
    assert [type(watch.told[0]) for watch in watches] == [Lost] * 20


async def test_a_watch_that_nobody_wants_any_more() -> None:
    """For a watch that was cancelled, KV is not asked."""
    watch, other = Watch(Stream("old")), Watch(Stream("old"))
    watch.wanted = False
    asked: list[KeyRange] = []

    async def permitted(watched: KeyRange) -> bool:
        asked.append(watched)
        return False

    await resolve(permitted, watch, other)
    assert (watch.told, len(asked), len(other.told)) == ([], 1, 1)
