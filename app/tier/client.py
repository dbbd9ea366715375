"""HTTP to the gateways of the tier above: one of several URLs at a time, with this gateway's token."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from .. import __version__
from ..core.errors import (
    AnswerCutError,
    DeniedError,
    EtcdRefusedError,
    GatewayError,
    HeadTooLargeError,
    NotConnectedError,
    OverCapacityError,
    PageExpiredError,
    RevisionNotReachedError,
    UnavailableError,
)
from .dial import Dial, tcp
from .transport import CutError, StreamTransport

TIER_HEADER = "X-Gateway-Tier"
# What clients may see of an upstream that does not answer.
OUT_OF_REACH = "the upstream gateway is out of reach"


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


# Called with the length of a body before it is read. The body waits, and is not read if this raises.
Begin = Callable[[int], Awaitable[None]]


async def at_once(_length: int) -> None:
    """Read the body at once, whatever its length."""


@dataclass(slots=True, eq=False)
class _Pool:
    context: ssl.SSLContext | None
    http: httpx.AsyncClient
    users: int = 0  # requests under way


class ForeignAnswerError(Exception):
    """The answer is not a gateway's, or is one that this gateway may not follow. The message says why."""


class Client:
    """See the module. ``url`` is the present upstream; ``use_next`` goes on to the next one.

    Args:
        urls: at least one, like ``https://root:8080``.
        tls: returns how their certificates are checked, and which certificate is shown to them, on new connections.
            None: they have none.
        token: returns the bearer token for the next request, "" if there is none. May raise.
        tier: returns this gateway's tier; None while it is not known.
        dial: returns what makes connections, with TLS.
    """

    def __init__(
        self,
        urls: Sequence[str],
        tls: Callable[[], ssl.SSLContext | None],
        token: Callable[[], str],
        tier: Callable[[], int | None],
        *,
        dial: Callable[[ssl.SSLContext | None], Dial] = tcp,
    ) -> None:
        self._urls = list(urls)
        self._index = 0
        self.token = token
        self._tier = tier
        self._dial = dial
        self.requests = 0  # GETs that are being answered
        self._tls = tls
        self._pools: list[_Pool] = []  # the last one is for new requests; the others end with their last request

    @property
    def url(self) -> str:
        """The upstream that new requests go to."""
        return self._urls[self._index % len(self._urls)]

    @property
    def count(self) -> int:
        """The number of URLs."""
        return len(self._urls)

    @property
    def others(self) -> Sequence[str]:
        """The other URLs, the next one first."""
        return [self._urls[(self._index + step) % self.count] for step in range(1, self.count)]

    def use(self, url: str) -> None:
        """Send new requests to one of the URLs."""
        self._index = self._urls.index(url)

    def use_next(self) -> None:
        """Send new requests to the next URL."""
        self._index += 1

    async def get(self, path: str, query: str, url: str = "", begin: Begin = at_once) -> Answer:
        """Return the answer to a GET, whatever its status. The caller limits the time.

        Args:
            url: instead of the present.
            begin: may raise GatewayError. It gets 0 for a body without a length, which no gateway sends.

        Raises:
            NotConnectedError: there is none. AnswerCutError: it has no end.
            HeadTooLargeError: the URL is too long. Only a token of a page that no gateway has made is so long.
        """
        url = url or self.url
        self.requests += 1
        try:
            async with self.stream(path, query, "application/json", url) as response:
                await begin(int(response.headers.get("Content-Length", 0)))
                body = await response.aread()
        except CutError as error:
            raise AnswerCutError(OUT_OF_REACH, cause=_cause(url, error)) from None
        except httpx.HTTPError as error:
            raise NotConnectedError(OUT_OF_REACH, cause=_cause(url, error)) from None
        except httpx.InvalidURL:
            raise HeadTooLargeError("the request is too long for the upstream gateway") from None
        finally:
            self.requests -= 1
        return Answer(response.status_code, response.headers, body)

    @contextlib.asynccontextmanager
    async def stream(self, path: str, query: str, accept: str, url: str = "") -> AsyncIterator[httpx.Response]:
        """Open a GET whose body the caller reads. *url*: instead of the present.

        Raises:
            httpx.HTTPError: also while the body is read.
        """
        headers = self._headers(accept)
        async with self._pool() as http:
            response: httpx.Response | None = None
            try:
                async with http.stream("GET", f"{url or self.url}{path}?{query}", headers=headers) as response:
                    yield response
            finally:
                if response is not None:
                    _free(response)

    @contextlib.asynccontextmanager
    async def _pool(self) -> AsyncIterator[httpx.AsyncClient]:
        """Use the connections that have the present TLS files."""
        context = self._tls()
        if not self._pools or self._pools[-1].context is not context:
            self._pools.append(_Pool(context, _connections(self._dial(context))))
        pool = self._pools[-1]
        pool.users += 1
        try:
            yield pool.http
        finally:
            pool.users -= 1
            unused = [one for one in self._pools[:-1] if not one.users]
            self._pools = [one for one in self._pools if one not in unused]  # before any await: others end here, too
            for one in unused:
                await one.http.aclose()

    def _headers(self, accept: str) -> dict[bytes, bytes]:
        headers = {"Accept": accept}
        token, tier = self.token(), self._tier()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if tier is not None:
            headers[TIER_HEADER] = str(tier)
        # A token may have any bytes; httpx encodes text as ASCII.
        return {name.encode(): value.encode(errors="surrogateescape") for name, value in headers.items()}

    async def aclose(self) -> None:
        """Close all connections."""
        for pool in self._pools:
            await pool.http.aclose()


def _free(response: httpx.Response) -> None:
    """Break the cycle that httpx makes of a response and its stream.

    With it, the body, up to a page of 16 MiB, waited for a full garbage collection, of which there are few: 4,000 rude
    clients made an edge 260 MiB larger. Of a stream, 13 objects waited: 16,000 streams took 50 MiB.
    """
    response.stream = httpx.ByteStream(b"")


def _connections(dial: Dial) -> httpx.AsyncClient:
    # A connection for each stream and each GET (docs/decisions/0036-a-connection-for-each-feed-of-an-edge.md).
    return httpx.AsyncClient(
        transport=StreamTransport(dial),
        trust_env=False,  # a proxy of the environment must not come between two tiers
        timeout=httpx.Timeout(None),  # the callers have their own
        headers={"User-Agent": f"etcd-watch-gateway/{__version__}", "Accept-Encoding": "identity"},
    )


def unreachable(url: str, error: Exception) -> UnavailableError:
    """Return the error of a request that has no answer."""
    return UnavailableError(OUT_OF_REACH, cause=_cause(url, error))


def _cause(url: str, error: Exception) -> str:
    return f"{url}: {str(error) or type(error).__name__}"


def tier_of(headers: Mapping[str, str], status: int) -> int:
    """Return the tier of the gateway that has answered with *status*.

    Raises:
        ForeignAnswerError: no gateway has answered.
    """
    text = headers.get(TIER_HEADER, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 4):
        raise ForeignAnswerError(
            f"the answer, of status {status}, has no {TIER_HEADER}: it is not of a gateway, or of one that has no tier "
            "yet, or of an older version"
        )
    return int(text)


def refusal(answer: Answer, problem: Mapping[str, Any]) -> GatewayError:
    """Return the error that tells a client of this gateway what the upstream has refused."""
    code, detail = str(problem.get("code", "")), str(problem.get("detail", ""))
    match answer.status:
        case HTTPStatus.GONE:
            return PageExpiredError(detail, parameter="page")
        case HTTPStatus.GATEWAY_TIMEOUT if code == RevisionNotReachedError.code:
            error = RevisionNotReachedError(detail, parameter="min_revision")
            if "X-Etcd-Revision" in answer.headers:
                error.headers = {"X-Etcd-Revision": answer.headers["X-Etcd-Revision"]}
            return error
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            whose = "GATEWAY_UPSTREAM_TOKEN_FILE: " if answer.status == HTTPStatus.UNAUTHORIZED else ""
            return DeniedError(
                "the upstream gateway does not let this gateway read the range",
                cause=f"{whose}{answer.status} {detail}",
            )
        case HTTPStatus.BAD_GATEWAY if code == EtcdRefusedError.code:  # and not a proxy's: to try again does not help
            return EtcdRefusedError(detail)
        case HTTPStatus.TOO_MANY_REQUESTS if code:
            return OverCapacityError(f"the upstream gateway: {detail}", code="too-many-reads")
        case _:
            return UnavailableError("the upstream gateway cannot answer now", cause=f"{answer.status} {code} {detail}")
