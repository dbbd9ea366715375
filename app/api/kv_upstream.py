"""Linearizable reads of ``/v1/kv`` at a gateway that follows another one: passed up, and answered with the same bytes.

Cursors and page tokens are the same on all tiers, so the upstream's answer is the answer.
"""

from __future__ import annotations

from urllib.parse import quote

from ..core.budget import Use
from ..core.errors import UnavailableError
from ..core.etag import ETag, parse_etag
from ..etcd.memory import reserve
from ..etcd.reads import PAGE_BYTES
from ..gateway import Gateway
from ..tier.client import Answer
from ..tier.upstream import OUT_OF_REACH, GatewayUpstream
from .kv_etcd import PATIENCE, check_epoch
from .kv_request import KvRequest
from .kv_response import KvBody, revoked


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
        body = await self._upstream.shared(("kv", asked.read, asked.min_revision), lambda: self._once(asked))
        if body.revoked:
            raise revoked()
        return body

    async def _once(self, asked: KvRequest) -> KvBody:
        hold = await reserve(self._gateway.budget, Use.ANSWER, PAGE_BYTES, patience=PATIENCE)
        try:
            answer = await self._upstream.read(_query(asked))
            if hold.released:
                raise revoked()
            revision, tag = _position(answer)
            return KvBody(revision, None if answer.status == 404 else [answer.body], hold, tag)
        except BaseException:
            hold.release()
            raise


def _position(answer: Answer) -> tuple[int, ETag | None]:
    try:
        return int(answer.headers["X-Etcd-Revision"]), parse_etag(answer.headers.get("ETag", ""))
    except (KeyError, ValueError) as error:
        raise UnavailableError(OUT_OF_REACH, cause=f"an answer of the upstream has no revision: {error!r}") from None


def _query(asked: KvRequest) -> str:
    read = asked.read
    selection = read.selection
    parts = [*map(str, selection.ranges), f"encoding={selection.encoding}", f"min_revision={asked.min_revision}"]
    if not selection.single_key:
        parts.append(f"limit={read.limit}")
        parts += [
            name
            for name, wanted in (("keys_only=1", selection.keys_only), ("count_only=1", selection.count_only))
            if wanted
        ]
    if read.page is not None:
        parts.append(f"page={quote(read.page.token())}")
    return "&".join(parts)
