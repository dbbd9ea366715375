"""States of ranges that the upstream gateway has, read page by page.

A state is never older than what this gateway's streams have reached: the mirrors of its clients would go back.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from urllib.parse import quote

from ..core.cursor import parse_cursor
from ..core.errors import RevisionNotReachedError, UnavailableError
from ..core.events import KeyValue
from ..core.gateway_watch import parse_item
from ..core.keys import KeyRange
from ..core.snapshot import Snapshot
from .client import OUT_OF_REACH, Answer

# Items of a page of a state.
PAGE = 10_000
# First pages that are read at a time. The JSON of a page, of at most 16 MiB, is not counted: it is freed as soon as it
# is parsed.
MOST_FIRST_PAGES = 2
# States of several pages that are read at a time, after their first pages. Small states do not wait for them.
MOST_LARGE_STATES = 1
# Lets the upstream answer with a state that it has.
FROM_MEMORY = "&consistency=feed"


class States:
    """See the module.

    Args:
        read: returns the upstream's answer to a query of ``/v1/kv``. Raises GatewayError.
        end_history: called with a revision that etcd itself has not reached any more: it was restored.
    """

    def __init__(self, read: Callable[[str], Awaitable[Answer]], end_history: Callable[[int], None]) -> None:
        self._read = read
        self._end_history = end_history
        self._first_pages = asyncio.Semaphore(MOST_FIRST_PAGES)
        self._large_states = asyncio.Semaphore(MOST_LARGE_STATES)

    async def read(
        self, ranges: Sequence[KeyRange], budget: Callable[[int], None], *, reached: int, epoch: str, newest: bool
    ) -> Snapshot:
        """Return all keys of the ranges at one revision. *ranges*, *budget*, *newest*: see ``Etcd.snapshot``.

        Args:
            reached: the revision that the state must have reached.
            epoch: of the ranges' cursors.

        Raises:
            GatewayError: the upstream refuses, is out of reach, or does not answer with a state of *epoch*.
        """
        # From memory it costs etcd nothing, and comes while etcd is away, too.
        query = "&".join(map(str, ranges)) + ("" if newest else FROM_MEMORY)
        if len(ranges) > 1 or ranges[0].kind == "prefix":
            query += f"&limit={PAGE}"
        async with self._first_pages:
            revision, items, page = _list(await self._first_page(query, reached), epoch)
            budget(_size(items))
        if page:
            async with self._large_states:
                while page:
                    revision, some, page = _list(await self._read(f"{query}&page={quote(page)}"), epoch)
                    budget(_size(some))
                    items += some
        return Snapshot.of(revision, items)

    async def _first_page(self, query: str, reached: int) -> Answer:
        """Return the first page of a state that has reached a revision.

        Another gateway behind the same URL may lag, or, without progress that is trusted, may not be able to prove how
        far it is. Then the state is read at etcd. If etcd itself is below that revision, it was restored.
        """
        try:
            return await self._read(f"{query}&min_revision={reached}")
        except RevisionNotReachedError:
            query = query.replace(FROM_MEMORY, "")
        try:
            return await self._read(f"{query}&min_revision={reached}")
        except RevisionNotReachedError:
            self._end_history(reached)
            return await self._read(query)


def _size(items: Sequence[KeyValue]) -> int:
    return sum(item.size for item in items)


def _list(answer: Answer, epoch: str) -> tuple[int, list[KeyValue], str]:
    """Return the revision, the items and the next page ("": none) of an answer of ``/v1/kv``.

    *epoch*: that of its cursor. Another gateway behind the same URL may follow another cluster.
    """
    try:
        if answer.status == HTTPStatus.NOT_FOUND:
            return int(answer.headers["X-Etcd-Revision"]), [], ""
        found = json.loads(answer.body)
        if parse_cursor(found["cursor"]).epoch != epoch:
            raise ValueError("its cursor belongs to another cluster or another GATEWAY_EPOCH")
        some = [found["kv"]] if "kv" in found else found["kvs"]
        return int(found["revision"]), [parse_item(one) for one in some], str(found.get("next_page", ""))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UnavailableError(OUT_OF_REACH, cause=f"a list of the upstream cannot be read: {error!r}") from None
