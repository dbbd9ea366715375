"""``app.api.kv_request``: a parsed read, and the ranges that a page has keys of."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.api.kv_request import _KNOWN, KvRead, KvRequest, not_reached, parse
from app.api.parsed_queries import LONGEST
from app.core.errors import BadRequestError
from app.core.keys import KeyRange
from app.core.page_token import PageToken
from app.core.selection import Selection

A, B, C = KeyRange("prefix", b"/a/"), KeyRange("key", b"/b"), KeyRange("prefix", b"/c/")


def test_defaults() -> None:
    """A read is linearizable, of the present, and of one page."""
    assert parse(b"prefix=/a/") == KvRequest(KvRead(Selection((A,)), 10_000, None, single_key=False), "linearizable", 0)


def test_everything() -> None:
    """Each parameter has its place."""
    asked = parse(b"prefix=/c/&key=/b&prefix=/a/&limit=5&keys_only=1&consistency=feed&min_revision=7&encoding=base64")

    assert asked.read.selection == Selection((A, B, C), encoding="base64", keys_only=True)
    assert (asked.read.limit, asked.consistency, asked.min_revision) == (5, "feed", 7)


def test_what_is_asked_decides_whether_it_is_a_single_key() -> None:
    """A list of which one key is permitted is a list; two names of one key are one key."""
    assert parse(b"key=/b").read.single_key
    assert parse(b"key=/b&key=%2fb").read.single_key
    for query in (b"prefix=/b", b"key=/b&key=/c", b"key=/b&prefix=/b"):
        asked = parse(query + b"&scope=permitted")
        assert asked.permitted_only
        assert not asked.within((B,)).read.single_key
        assert asked.within((B,)).read.selection.ranges == (B,)


def test_equal_reads_are_equal() -> None:
    """Where an answer comes from, and how ranges are written, does not decide what the answer contains."""
    one = parse(b"prefix=/a/&key=/b")
    other = parse(b"key=/b&prefix=%2fa/&key=/a/x&consistency=feed&min_revision=3")

    assert one.read == other.read
    assert hash(one.read) == hash(other.read)


def test_a_long_query_is_parsed_each_time() -> None:
    """Only short queries are kept, since clients choose them."""
    for name in (b"x" * 10, b"x" * LONGEST):
        query = b"prefix=" + name

        assert (parse(query) is parse(query)) == (len(query) <= LONGEST)


@pytest.mark.parametrize(
    ("start", "ranges"),
    [
        (b"/a/1", (A, B, C)),
        (b"/a/", (A, B, C)),
        (b"/b", (B, C)),
        (b"/b\0", (C,)),
        (b"/c/", (C,)),
        (b"/c/9\0", (C,)),
    ],
)
def test_the_ranges_of_a_page(start: bytes, ranges: tuple[KeyRange, ...]) -> None:
    """The start of a page says in which range the page continues; earlier ranges are done."""
    token = PageToken("16214fff", 7, start).token()
    read = parse(f"prefix=/a/&key=/b&prefix=/c/&page={token}".encode()).read

    assert read.ranges == ranges


def test_a_page_below_min_revision() -> None:
    """All pages are of one revision, so a higher one can never be reached."""
    token = PageToken("16214fff", 7, b"/a/1").token()
    parse(f"prefix=/a/&page={token}&min_revision=7".encode())
    with pytest.raises(BadRequestError, match="of revision 7") as refused:
        parse(f"prefix=/a/&page={token}&min_revision=8".encode())
    assert refused.value.code == "conflicting-parameters"


def test_not_reached() -> None:
    """The error names both revisions, and the header has the one that was reached."""
    error = not_reached(9, 7)

    assert (error.status, error.code) == (504, "revision-not-reached")
    assert "9" in error.detail
    assert error.headers == {"X-Etcd-Revision": "7"}


values = st.one_of(
    st.sampled_from([b"", b"1", b"0", b"permitted", b"feed", b"base64", b"%2F", b"/a/", b"MDAwMDAwMDAtNS0vYS8.x"]),
    st.binary(max_size=12),
)
parameters = st.tuples(st.sampled_from([name.encode() for name in sorted(_KNOWN)]), values).map(b"=".join)


@given(st.lists(parameters, max_size=8).map(b"&".join))
@example(b"prefix=/a/&page=" + b"A" * 60_000)
@example(b"prefix=&limit=" + b"9" * 60_000)
def test_no_query_raises_anything_else(raw: bytes) -> None:
    """Any query is a read, or a wrong request whose parameter is named."""
    asked, parameter = None, None
    try:
        asked = parse(raw)
    except BadRequestError as error:
        parameter = error.parameter

    assert (asked is None) == (parameter is not None)
    assert asked is None or (asked.read.ranges and 1 <= asked.read.limit <= 100_000 and parse(raw) == asked)
