"""``GET /v1/kv``: current values, by key or by prefix, in pages of one revision."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from ..core.budget import Hold, Use
from ..core.encoding import item_body, list_body, list_head, list_items, list_tail
from ..core.errors import (
    BadRequestError,
    CompactedError,
    FutureRevisionError,
    NotFoundError,
    OverCapacityError,
    PageExpiredError,
)
from ..core.page_token import PageToken, parse_page_token
from ..core.query import parse_flag, parse_number, parse_query, parse_ranges
from ..core.selection import Selection
from ..etcd.memory import reserve
from ..etcd.reads import PAGE_BYTES, Listing
from ..gateway import Gateway
from .kv_response import KvBody, KvResponse
from .requests import encoding_of, identity_of, query_of

DEFAULT_LIMIT = 10_000
MAX_LIMIT = 100_000
ENCODE_SLICE = 1024
# A body that has reached this many bytes ends there, with ``next_page``.
MOST_BYTES = 16 * 1024 * 1024
# Seconds that a read waits for memory before it is refused.
PATIENCE = 0.5
_KNOWN = frozenset({"key", "prefix", "limit", "page", "keys_only", "count_only", "encoding"})
_PREFIX_ONLY = ("limit", "page", "keys_only", "count_only")


@dataclass(frozen=True, slots=True)
class KvRequest:
    """A parsed request for a read. Equal requests that are in flight share one Range."""

    selection: Selection
    limit: int
    page: PageToken | None


def parse(raw: bytes) -> KvRequest:
    """Parse a query. Raises BadRequestError if the query is wrong."""
    query = parse_query(raw, _KNOWN)
    ranges = parse_ranges(query)
    if len(ranges) > 1:
        raise BadRequestError(
            "several ranges in one read are not supported yet", code="repeated-parameter", parameter=ranges[1].kind
        )
    if ranges[0].kind == "key":
        for name in _PREFIX_ONLY:
            if name in query:
                raise BadRequestError(
                    f"{name!r} is not allowed with 'key'; use it with 'prefix'",
                    code="conflicting-parameters",
                    parameter=name,
                )
    selection = Selection(
        ranges,
        encoding=encoding_of(query),
        keys_only=parse_flag(query, "keys_only", default=False),
        count_only=parse_flag(query, "count_only", default=False),
    )
    page = parse_page_token(query["page"], ranges) if "page" in query else None
    if page is not None and selection.count_only:
        raise BadRequestError(
            "'count_only' has no pages; leave out 'page' or 'count_only'",
            code="conflicting-parameters",
            parameter="page",
        )
    return KvRequest(selection, parse_number(query, "limit", default=DEFAULT_LIMIT, most=MAX_LIMIT), page)


class Kv:
    """The endpoint."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._reads = gateway.upstream.reads
        self._send_timeout = gateway.settings.send_timeout

    async def get(self, request: Request) -> Response:
        """Answer one request."""
        identity = await identity_of(self._gateway, request.scope)
        asked = parse(query_of(request))
        keys_only = asked.selection.keys_only or asked.selection.count_only
        self._gateway.access.authorize(identity, asked.selection.ranges, keys_only=keys_only)
        self._gateway.capacity.check()
        body = await self._reads.shared(("kv", asked), lambda: self._read(asked))
        headers = {"X-Etcd-Revision": str(body.revision), "Cache-Control": "no-store"}
        if body.revoked:
            raise _revoked()
        if body.parts is None:
            missing = NotFoundError(f"no {asked.selection.ranges[0]} at revision {body.revision}", code="key-not-found")
            missing.headers = headers
            raise missing
        return KvResponse(body, headers, "application/json", send_timeout=self._send_timeout)

    async def _read(self, asked: KvRequest) -> KvBody:
        """Read the values. The memory for them is reserved before etcd is asked for the first byte."""
        self._reads.check(self._gateway.budget.waiting(Use.ANSWER))
        hold = await reserve(self._gateway.budget, Use.ANSWER, PAGE_BYTES, patience=PATIENCE)
        try:
            body = await (self._count(asked, hold) if asked.selection.count_only else self._list(asked, hold))
            if hold.released:
                raise _revoked()
        except CompactedError:
            hold.release()
            raise PageExpiredError(
                "etcd has compacted the revision of this page; start over without 'page'", parameter="page"
            ) from None
        except FutureRevisionError:
            hold.release()
            raise PageExpiredError(
                "etcd was restored and lacks the revision of this page; start over without 'page'", parameter="page"
            ) from None
        except BaseException:
            hold.release()
            raise
        return body

    async def _count(self, asked: KvRequest, hold: Hold) -> KvBody:
        listing = await self._reads.count(asked.selection.ranges[0])
        _epoch, cursor = self._cursor(listing, asked.selection)
        return KvBody(listing.revision, [list_body(listing.revision, cursor, "", listing.count, None)], hold)

    async def _list(self, asked: KvRequest, hold: Hold) -> KvBody:
        """Read page by page, and encode each page before the next is read. End early if there is no memory for more."""
        selection, page = asked.selection, asked.page
        self._check_epoch(page, selection)
        items = ListItems(selection, hold)
        pages = self._reads.pages(
            selection.ranges[0],
            limit=asked.limit,
            keys_only=selection.keys_only,
            start=page.start if page is not None else b"",
            revision=page.revision if page is not None else 0,
        )
        async with aclosing(pages):
            async for listing in pages:
                if selection.ranges[0].kind == "key":
                    return self._item(listing, selection, hold)
                await items.add(listing)
                if not listing.more or items.count >= asked.limit or not items.may_grow():
                    break
        epoch, cursor = self._cursor(listing, selection)
        # etcd counts from the start of the page. The contract's `count` is of the whole prefix, at the pages' revision.
        first = listing if page is None else await self._reads.first(selection.ranges[0], page.revision)
        following = PageToken(epoch, listing.revision, items.last + b"\0").token() if listing.more else None
        parts = [list_head(listing.revision, cursor), *items.parts, list_tail(first.count, following)]
        return KvBody(listing.revision, parts, hold)

    def _item(self, listing: Listing, selection: Selection, hold: Hold) -> KvBody:
        _epoch, cursor = self._cursor(listing, selection)
        found = [item_body(listing.revision, cursor, item, selection.encoding) for item in listing.items]
        return KvBody(listing.revision, found or None, hold)

    def _cursor(self, listing: Listing, selection: Selection) -> tuple[str, str]:
        epoch = self._gateway.epoch_of(listing.cluster_id, selection)
        return epoch, f"{epoch}-{listing.revision}"

    def _check_epoch(self, page: PageToken | None, selection: Selection) -> None:
        known = self._gateway.upstream.cluster_id
        if page is not None and known and page.epoch != self._gateway.epoch_of(known, selection):
            raise PageExpiredError(
                "the token in 'page' is from another cluster or another request; start over without 'page'",
                parameter="page",
            )


def _revoked() -> OverCapacityError:
    return OverCapacityError(
        "the gateway needed the memory of this response for its feeds; try again later", code="too-many-reads"
    )


class ListItems:
    """The encoded items of a list, and the hold that counts their bytes."""

    def __init__(self, selection: Selection, hold: Hold) -> None:
        self.parts: list[bytes] = []
        self.count = 0
        self.last = b""  # the last key
        self._selection = selection
        self._hold = hold
        self._size = 0

    async def add(self, listing: Listing) -> None:
        """Encode a page in slices: 100,000 items at once would delay every stream by about 0.2 s."""
        items = listing.items
        for start in range(0, len(items), ENCODE_SLICE):
            some = items[start : start + ENCODE_SLICE]
            text = list_items(some, self._selection.encoding, keys_only=self._selection.keys_only)
            part = f",{text}".encode() if self.count else text.encode()
            self.parts.append(part)
            self._size += len(part)
            self.count += len(some)
            # JSON may be six times as long as the value: a control character becomes "\\u0001".
            self._hold.set(max(self._hold.size, self._size))
            await asyncio.sleep(0)
        if items:
            self.last = items[-1].key
        self._hold.set(self._size)
        if self._hold.released:
            raise _revoked()

    def may_grow(self) -> bool:
        """Whether another page may be added. If so, its memory is reserved."""
        return self._size < MOST_BYTES and self._hold.grow(PAGE_BYTES)
