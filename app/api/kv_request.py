"""A request to ``/v1/kv``, parsed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, cast, get_args

from ..core.errors import BadRequestError, PageExpiredError, RevisionNotReachedError
from ..core.page_token import PageToken, parse_page_token
from ..core.query import Query, parse_choice, parse_flag, parse_number, parse_query, parse_ranges, parse_revision
from ..core.selection import Ranges, Selection
from ..gateway import Gateway
from .parsed_queries import parsed_once
from .requests import encoding_of, scope_of

if TYPE_CHECKING:
    from .kv_response import KvBody

# Where an answer comes from: a linearizable read at etcd, or the feed's memory.
Consistency = Literal["linearizable", "feed"]
CONSISTENCIES: tuple[str, ...] = get_args(Consistency)
DEFAULT_LIMIT = 10_000
MAX_LIMIT = 100_000
_KNOWN = frozenset({
    "key", "prefix", "scope", "limit", "page", "keys_only", "count_only", "encoding", "consistency", "min_revision",
})  # fmt: skip
_NOT_WITH_ONE_KEY = ("limit", "page", "keys_only", "count_only")


@dataclass(frozen=True, slots=True)
class KvRead:
    """What an answer contains. Equal reads share one answer.

    Args:
        single_key: the answer is one key, and not a list. What is asked decides this: of a prefix, a single key may be
            permitted.
        gzip: the client asks for gzip, and may get it.
    """

    selection: Selection
    limit: int
    page: PageToken | None
    single_key: bool
    gzip: bool = False

    @property
    def ranges(self) -> Ranges:
        """The ranges that this page has keys of: all, or those from where the page starts."""
        if self.page is None:
            return self.selection.ranges
        start = self.page.start
        return tuple(one for one in self.selection.ranges if one.contains(start) or one.name > start)


@dataclass(frozen=True, slots=True)
class KvRequest:
    """A read, where its answer comes from, and the revision that the answer must have reached.

    Args:
        permitted_only: ``scope=permitted``. Then ``read`` has all ranges until ``within`` cuts them.
    """

    read: KvRead
    consistency: Consistency
    min_revision: int
    permitted_only: bool = False

    def within(self, ranges: Ranges) -> KvRequest:
        """Return the request for *ranges* instead of what was asked."""
        return replace(self, read=replace(self.read, selection=replace(self.read.selection, ranges=ranges)))

    def with_gzip(self) -> KvRequest:
        """Return the request for an answer with gzip."""
        return replace(self, read=replace(self.read, gzip=True))

    def for_reader(self, reader: str, *, from_gateway: bool = False) -> KvRequest:
        """Return the request after the check that its page, if it has one, is for *reader*.

        *from_gateway*: see ``PageToken.of_reader``.

        Raises:
            PageExpiredError: it is not.
        """
        if self.read.page is None:
            return self
        page = self.read.page.of_reader(reader, from_gateway=from_gateway)
        return replace(self, read=replace(self.read, page=page))


class Reads(Protocol):
    """Linearizable reads."""

    async def read(self, asked: KvRequest) -> KvBody:
        """Return an answer that is at ``min_revision`` or above.

        Raises:
            GatewayError: the read cannot be answered.
        """


@parsed_once
def parse(raw: bytes) -> KvRequest:
    """Parse a query. Raises BadRequestError if the query is wrong."""
    query = parse_query(raw, _KNOWN)
    ranges = parse_ranges(query)
    selection = Selection(
        ranges,
        encoding=encoding_of(query),
        keys_only=parse_flag(query, "keys_only", default=False),
        count_only=parse_flag(query, "count_only", default=False),
    )
    single_key = len(ranges) == 1 and ranges[0].kind == "key"
    if single_key:
        _check_single_key(query)
    page = parse_page_token(query["page"], ranges) if "page" in query else None
    if page is not None and selection.count_only:
        raise BadRequestError(
            "'count_only' has no pages; leave out 'page' or 'count_only'",
            code="conflicting-parameters",
            parameter="page",
        )
    min_revision = parse_revision(query, "min_revision")
    if page is not None and page.revision < min_revision:
        raise BadRequestError(
            f"'page' is of revision {page.revision}, which is below 'min_revision'; start over without 'page'",
            code="conflicting-parameters",
            parameter="min_revision",
        )
    read = KvRead(selection, parse_number(query, "limit", default=DEFAULT_LIMIT, most=MAX_LIMIT), page, single_key)
    consistency = parse_choice(query, "consistency", CONSISTENCIES) or "linearizable"
    return KvRequest(read, cast("Consistency", consistency), min_revision, scope_of(query))


def _check_single_key(query: Query) -> None:
    for name in _NOT_WITH_ONE_KEY:
        if name in query:
            raise BadRequestError(
                f"{name!r} is not allowed with a single 'key'; use it with 'prefix' or several keys",
                code="conflicting-parameters",
                parameter=name,
            )


def check_epoch(gateway: Gateway, page: PageToken | None, selection: Selection) -> None:
    """Raise PageExpiredError if *page* is known to be of another cluster or another request."""
    known = gateway.upstream.cluster_id
    if page is not None and known and page.epoch != gateway.epoch_of(known, selection):
        raise PageExpiredError(
            "the token in 'page' is from another cluster or another request; start over without 'page'",
            parameter="page",
        )


def not_reached(min_revision: int, revision: int) -> RevisionNotReachedError:
    """Return the error of an answer that would be of *revision*, which is too low."""
    error = RevisionNotReachedError(
        f"'min_revision' is {min_revision}, and the answer has reached {revision}: retry later; if it never comes, the "
        "revision is not of this etcd",
        parameter="min_revision",
    )
    error.headers = {"X-Etcd-Revision": str(revision)}
    return error
