"""The responses that one request to ``/v1/kv`` may get: the values, 304, or 404."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.responses import Response

from ..access.permit import Permit
from ..core.errors import NotFoundError
from ..core.etag import ETag, IfNoneMatch
from ..core.negotiation import Coding
from ..core.quotas import Caller
from .kv_request import KvRequest
from .kv_response import KvBody, KvResponse


@dataclass(frozen=True, slots=True)
class KvAnswers:
    """See the module.

    Args:
        known: what the client has; None if it does not say.
        wait: the seconds for which the client is willing to wait for another state than ``known``; 0: it does not.
        send_timeout: ``GATEWAY_SEND_TIMEOUT``.
        caller: whose quotas a subscription for this request counts for.
        permit: checked again before each response, because a request may wait; None without access modes.
        reader: for whom the tokens of next pages are; empty without access modes.
        coding: of the answer. An answer that gzip does not make smaller is plain all the same.
    """

    asked: KvRequest
    known: IfNoneMatch | None
    wait: int
    send_timeout: float
    caller: Caller | None = None
    permit: Permit | None = None
    reader: str = ""
    coding: Coding = Coding.FIXED

    def has(self, tag: ETag | None) -> bool:
        """Whether the client has the state that *tag* names. No client has a part of a list."""
        return self.known is not None and tag is not None and self.known.matches(tag, exists=not self._absent(tag))

    def newest(self, epoch: str) -> int:
        """Return the greatest revision that the client has seen, as far as it says."""
        return self.known.newest(epoch) if self.known is not None else 0

    def of(self, body: KvBody, state: str | None = None) -> Response:
        """Return the response with *body*, or 304 if the client has it. *state*: the answering channel's."""
        self.check_permit()
        if body.parts is None or self.has(body.tag):
            return self.without_body(body.revision, body.tag, state)
        headers = self._headers(body.revision, body.tag, state)
        return KvResponse(body, headers, self.reader, send_timeout=self.send_timeout)

    def without_body(self, revision: int, tag: ETag | None, state: str | None = None) -> Response:
        """Return 304. If the state is that a key does not exist, which no body can show, raise NotFoundError."""
        self.check_permit()
        headers = self._headers(revision, tag, state)
        if tag is not None and self._absent(tag):
            missing = NotFoundError(
                f"no {self.asked.read.selection.ranges[0]} at revision {revision}", code="key-not-found"
            )
            missing.headers = headers
            raise missing
        return Response(None, 304, headers)

    def check_permit(self) -> None:
        """Raise UnauthorizedError or ForbiddenError if the access rules no longer permit the read."""
        if self.permit is not None:
            self.permit.check()

    def _absent(self, tag: ETag) -> bool:
        return self.asked.read.single_key and not tag.count

    def _headers(self, revision: int, tag: ETag | None, state: str | None) -> dict[str, str]:
        headers = {"X-Etcd-Revision": str(revision), "Cache-Control": "no-store"}
        if self.coding is not Coding.FIXED:
            headers["Vary"] = "Accept-Encoding"
        if tag is not None:
            headers["ETag"] = str(tag)
        if state is not None:
            headers["X-Gateway-State"] = state
        if self.wait:
            headers["Preference-Applied"] = f"wait={self.wait}"
        return headers
