"""Linearizable reads of ``/v1/kv`` at a gateway that follows another one: passed up, and answered with the same bytes.

Cursors and page tokens are the same on all tiers, so the upstream's answer is the answer. Only the token of a next page
gets the reader of this tier, and a list of which a single key is permitted is made of that key's answer.
"""

from __future__ import annotations

import json
import re
from urllib.parse import quote

from ..core.budget import Hold
from ..core.encoding import compact, list_head, list_tail
from ..core.errors import PageExpiredError, UnavailableError
from ..core.etag import ETag, parse_etag
from ..core.page_token import parse_page_token
from ..gateway import Gateway
from ..tier.client import OUT_OF_REACH, Answer
from ..tier.transport import MOST_HEAD
from ..tier.upstream import GatewayUpstream
from .kv_gzip import deflate
from .kv_memory import AnswerMemory
from .kv_request import KvRead, KvRequest, check_epoch
from .kv_response import KvBody, revoked

# The end of a list that has another page. In a key or a value, these quotes would be escaped.
_NEXT_PAGE = re.compile(rb',"next_page":"([A-Za-z0-9_.-]+)"\}\n\Z')


class UpstreamReads:
    """See the module."""

    def __init__(self, gateway: Gateway) -> None:
        assert isinstance(gateway.upstream, GatewayUpstream), "only for a gateway that follows another one"
        self._gateway = gateway
        self._upstream = gateway.upstream

    async def read(self, asked: KvRequest) -> KvBody:
        """Return an answer that is at ``min_revision`` or above. Equal reads share one.

        Raises:
            GatewayError: the upstream refuses the read, or is out of reach.
        """
        check_epoch(self._gateway, asked.read.page, asked.read.selection)
        if asked.read.page is not None and one_key(asked.read):
            # The upstream knows no pages of a single key.
            msg = "'page' is not a token of this gateway: the list has at most one key; start over without 'page'"
            raise PageExpiredError(msg, parameter="page")
        body = await self._upstream.shared(("kv", asked.read, asked.min_revision), lambda: self._once(asked))
        if body.revoked:
            raise revoked()
        return body

    async def _once(self, asked: KvRequest) -> KvBody:
        async with AnswerMemory(self._gateway.budget) as memory:
            answer = await self._upstream.read(_query(asked), memory.need)
            hold = memory.hold
            if hold.released:
                raise revoked()
            read, (revision, tag) = asked.read, _position(answer)
            if one_key(read) and not read.single_key:
                return self._list_of_one(answer, read, revision, hold)
            if answer.status == 404:
                return KvBody(revision, None, hold, tag)
            encoded, page = answer.body, None
            # A token holds a key, which may be long. One that is longer than a head cannot be sent back.
            end = _NEXT_PAGE.search(encoded, max(0, len(encoded) - MOST_HEAD))
            if end is not None:
                encoded, page = encoded[: end.start()], parse_page_token(end[1], read.selection.ranges)
            parts = await deflate(encoded) if read.gzip else [encoded]
            return KvBody(revision, parts, hold, tag, page)

    def _list_of_one(self, answer: Answer, read: KvRead, revision: int, hold: Hold) -> KvBody:
        """Return a list of at most one key. The upstream answers a request for a single key with the key, or 404."""
        selection = read.selection
        epoch = self._gateway.epoch_of(self._upstream.cluster_id, selection)
        items = [] if answer.status == 404 else [json.loads(answer.body)["kv"]]
        tag = ETag(epoch, items[0]["mod_revision"] if items else 0, len(items))
        hidden = ("value", "encoding") if selection.keys_only else ()
        shown = (
            [] if selection.count_only else [{n: value for n, value in one.items() if n not in hidden} for one in items]
        )
        encoded = ",".join(map(compact, shown)).encode()
        parts = [list_head(revision, f"{epoch}-{revision}"), encoded, list_tail(len(items), more=False)]
        return KvBody(revision, parts, hold, None if selection.count_only else tag)


def one_key(read: KvRead) -> bool:
    """Whether the upstream takes the request for a request for a single key."""
    ranges = read.selection.ranges
    return len(ranges) == 1 and ranges[0].kind == "key"


def _position(answer: Answer) -> tuple[int, ETag | None]:
    try:
        return int(answer.headers["X-Etcd-Revision"]), parse_etag(answer.headers.get("ETag", ""))
    except (KeyError, ValueError) as error:
        raise UnavailableError(OUT_OF_REACH, cause=f"an answer of the upstream has no revision: {error!r}") from None


def _query(asked: KvRequest) -> str:
    read = asked.read
    selection = read.selection
    parts = [*map(str, selection.ranges), f"encoding={selection.encoding}", f"min_revision={asked.min_revision}"]
    if not one_key(read):
        parts.append(f"limit={read.limit}")
        parts += [
            name
            for name, wanted in (("keys_only=1", selection.keys_only), ("count_only=1", selection.count_only))
            if wanted
        ]
    if read.page is not None:
        # A page that was read from the memory of this gateway has no reader. The upstream accepts that of a gateway.
        parts.append(f"page={quote(read.page.token())}")
    return "&".join(parts)
