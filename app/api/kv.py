"""``GET /v1/kv``: current values, by key or by prefix, in pages of one revision."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from app.api.answer import Answers, SlicedResponse
from app.api.requests import query_of
from app.core.cursor import Shape
from app.core.encoding import item_body, list_body, list_items
from app.core.errors import (
    BadRequestError,
    CompactedError,
    FutureRevisionError,
    NotFoundError,
    PageExpiredError,
)
from app.core.events import KeyValue
from app.core.page import Page, parse_page
from app.core.query import parse_choice, parse_flag, parse_number, parse_query, parse_range
from app.gateway import Gateway

DEFAULT_LIMIT = 10_000
MAX_LIMIT = 100_000
ENCODE_SLICE = 1024
_KNOWN = frozenset({"key", "prefix", "limit", "page", "keys_only", "count_only", "encoding"})
_PREFIX_ONLY = ("limit", "page", "keys_only", "count_only")


@dataclass(frozen=True, slots=True)
class Asked:
    """A read request, understood: equal ones in flight share one Range."""

    shape: Shape
    limit: int
    page: Page | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was read, encoded: shared by all who asked the same. ``body`` None: there is no such key."""

    revision: int
    body: bytes | None


def parse(raw: bytes) -> Asked:
    """Raises BadRequestError for a query that is wrong."""
    query = parse_query(raw, _KNOWN)
    watched = parse_range(query)
    if watched.kind == "key":
        for name in _PREFIX_ONLY:
            if name in query:
                raise BadRequestError(
                    f"{name!r} goes with 'prefix', not with 'key'", code="conflicting-parameters", parameter=name
                )
    shape = Shape(
        watched,
        encoding=parse_choice(query, "encoding", ("auto", "base64")) or "auto",
        keys_only=parse_flag(query, "keys_only", default=False),
        count_only=parse_flag(query, "count_only", default=False),
    )
    page = parse_page(query["page"], watched) if "page" in query else None
    if page is not None and shape.count_only:
        raise BadRequestError("'count_only' has no pages", code="conflicting-parameters", parameter="page")
    return Asked(shape, parse_number(query, "limit", default=DEFAULT_LIMIT, most=MAX_LIMIT), page)


class Kv:
    """The endpoint."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._reads = gateway.upstream.reads
        settings = gateway.settings
        self._answers = Answers(limit=settings.max_feed_bytes, send_timeout=settings.send_timeout)

    async def get(self, request: Request) -> Response:
        """Answer one request."""
        self._gateway.access.check_token(request)
        asked = parse(query_of(request))
        self._gateway.access.check_range(asked.shape.range)
        self._gateway.capacity.check()
        self._answers.check()
        answer = await self._reads.shared(("kv", asked), lambda: self._read(asked))
        headers = {"X-Etcd-Revision": str(answer.revision), "Cache-Control": "no-store"}
        if answer.body is None:
            missing = NotFoundError(f"no {asked.shape.range} at revision {answer.revision}", code="key-not-found")
            missing.headers = headers
            raise missing
        return SlicedResponse(self._answers, answer.body, headers, "application/json")

    async def _read(self, asked: Asked) -> Answer:
        shape, page, reads = asked.shape, asked.page, self._reads
        if shape.count_only:
            listing = await reads.count(shape.range)
            count = listing.count
        else:
            self._check_epoch(page, shape)
            try:
                listing = await reads.listing(
                    shape.range,
                    limit=asked.limit,
                    keys_only=shape.keys_only,
                    start=page.start if page is not None else b"",
                    revision=page.revision if page is not None else 0,
                )
                # etcd counts from where the page starts; the contract's count is of the whole prefix.
                count = await self._count_of_all(asked, listing.count)
            except CompactedError:
                raise PageExpiredError(
                    "the revision of these pages is compacted: start over", parameter="page"
                ) from None
            except FutureRevisionError:
                raise PageExpiredError("etcd was restored: start over", parameter="page") from None
        epoch = self._gateway.epoch_of(listing.cluster_id, shape)
        cursor = f"{epoch}-{listing.revision}"
        if shape.range.kind == "key":
            body = item_body(listing.revision, cursor, listing.items[0], shape.encoding) if listing.items else None
            return Answer(listing.revision, body)
        following = Page(epoch, listing.revision, listing.items[-1].key + b"\0").token() if listing.more else None
        kvs = await _encode(listing.items, shape)
        return Answer(listing.revision, list_body(listing.revision, cursor, kvs, count, following))

    async def _count_of_all(self, asked: Asked, count: int) -> int:
        """``count`` of the first page is of all keys; a later one has to ask at the pages' revision."""
        if asked.page is None:
            return count
        first = await self._reads.listing(
            asked.shape.range, limit=1, keys_only=True, start=b"", revision=asked.page.revision
        )
        return first.count

    def _check_epoch(self, page: Page | None, shape: Shape) -> None:
        known = self._gateway.upstream.cluster_id
        if page is not None and known and page.epoch != self._gateway.epoch_of(known, shape):
            raise PageExpiredError(
                "these pages are of another cluster or another request: start over", parameter="page"
            )


async def _encode(items: Sequence[KeyValue], shape: Shape) -> str:
    """In slices: 100,000 items at once would hold up every stream for about 0.2 s."""
    parts = []
    for start in range(0, len(items), ENCODE_SLICE):
        part = items[start : start + ENCODE_SLICE]
        parts.append(list_items(part, shape.encoding, keys_only=shape.keys_only))
        await asyncio.sleep(0)
    return ",".join(parts)
