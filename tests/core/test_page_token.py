"""``app.core.page_token``: the token of a next page."""

from __future__ import annotations

from base64 import urlsafe_b64encode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.core.errors import BadRequestError, PageExpiredError
from app.core.keys import KeyRange
from app.core.page_token import PageToken, parse_page_token, reader_of
from app.core.query import parse_query

EVERYTHING = KeyRange("prefix", b"")
SERVICES = KeyRange("prefix", b"/svc/")

epochs = st.text("0123456789abcdef", min_size=8, max_size=8)
revisions = st.integers(1, (1 << 63) - 1)


def token(text: bytes) -> bytes:
    """*text* as a token, encoded as the gateway's tokens are."""
    return urlsafe_b64encode(text).rstrip(b"=")


@given(epoch=epochs, revision=revisions, start=st.binary(max_size=20))
@example(epoch="16214fff", revision=1, start=b"-1-/svc/")
@example(epoch="16214fff", revision=1, start=b"\xff\xfb\xef\n")
def test_a_page_comes_back_as_it_went(epoch: str, revision: int, start: bytes) -> None:
    """A page's token comes back unchanged through a query, for any bytes of a key."""
    page = PageToken(epoch, revision, start)
    text = page.token()
    (found,) = parse_query(f"page={text}".encode(), {"page"}).values()
    assert found == text.encode()
    assert parse_page_token(found, (EVERYTHING,)) == page


@given(epoch=epochs, revision=revisions, start=st.binary(max_size=20), identity=st.text(max_size=20))
@example(epoch="16214fff", revision=1, start=b".", identity="proxy:a.b")
def test_a_page_is_for_one_reader(epoch: str, revision: int, start: bytes, identity: str) -> None:
    """The token comes back unchanged through a query, and only the reader that it is for gets the page."""
    reader = reader_of(identity)
    page = PageToken(epoch, revision, start)
    text = page.token(reader)
    (found,) = parse_query(f"page={text}".encode(), {"page"}).values()
    assert found == text.encode()
    parsed = parse_page_token(found, (EVERYTHING,))
    assert parsed.of_reader(reader) == page
    with pytest.raises(PageExpiredError, match="belongs to another identity; start over without 'page'"):
        parsed.of_reader(reader_of(identity + "x"))
    # Where all readers are equal, whoever reads the page looks whether it is for somebody.
    with pytest.raises(PageExpiredError, match="belongs to another identity; start over without 'page'"):
        parsed.of_reader("").check_read()
    page.check_read()


def test_a_page_passes_through_the_tiers() -> None:
    """Each tier adds its reader, and takes it away again."""
    origin, edge = reader_of("token:edge"), reader_of("token:dash")
    at_origin = PageToken("16214fff", 7, b"/svc/a").token(origin)
    passed_on = parse_page_token(at_origin.encode(), (SERVICES,)).token(edge)
    back = parse_page_token(passed_on.encode(), (SERVICES,)).of_reader(edge)

    assert back.token() == at_origin
    assert parse_page_token(back.token().encode(), (SERVICES,)).of_reader(origin) == PageToken("16214fff", 7, b"/svc/a")


def test_a_page_that_a_gateway_has_made_has_no_reader() -> None:
    """It is accepted of a gateway alone. A page of another reader is not, whoever asks."""
    page, reader = PageToken("16214fff", 7, b"/svc/a"), reader_of("token:edge")
    assert page.of_reader(reader, from_gateway=True) == page
    with pytest.raises(PageExpiredError, match="belongs to another identity"):
        page.of_reader(reader)
    of_another = parse_page_token(page.token(reader_of("token:dash")).encode(), (SERVICES,))
    with pytest.raises(PageExpiredError, match="belongs to another identity"):
        of_another.of_reader(reader, from_gateway=True)


@given(st.one_of(st.binary(max_size=40), st.binary(max_size=30).map(token)))
@example(b"")
@example(b"A")
@example(b"\xff\xff")
@example(token(b"\xff-1-/svc/a"))
@example(token(b"16214fff-" + b"9" * 5000 + b"-/svc/a"))
@example(token("16214fff-\u0661-/svc/a".encode()))
@example(token(b"16214fff-1-/svc/a") + b".\xff")
@example(token(b"16214fff-1-/svc/a") + b"." + b"x" * 5000)
def test_no_token_raises_anything_else(text: bytes) -> None:
    """A client may send any text: it is a page of this range, or a bad request that names the parameter."""
    parameter, page = "page", None
    try:
        page = parse_page_token(text, (SERVICES,))
    except BadRequestError as error:
        parameter = str(error.parameter)
    assert parameter == "page"
    assert page is None or (SERVICES.contains(page.start) and 0 < page.revision < 1 << 63)


@pytest.mark.parametrize("text", [b"", b"AAAA", token(b"16214fff-12"), token(b"16214fff-x-/svc/a"), token(b"16214fff")])
def test_what_is_no_token(text: bytes) -> None:
    """The error says where to take tokens from."""
    with pytest.raises(BadRequestError, match="'page' is not a token of this gateway; use the value of 'next_page'"):
        parse_page_token(text, (SERVICES,))


@pytest.mark.parametrize(
    "page",
    [
        PageToken("16214fff", 5, b"/secret"),
        PageToken("16214fff", 5, b"/svc"),
        PageToken("16214fff", 5, b""),
        PageToken("16214fff", 0, b"/svc/a"),
        PageToken("16214fff", 1 << 63, b"/svc/a"),
    ],
)
def test_a_token_does_not_reach_out_of_its_range(page: PageToken) -> None:
    """No token reads outside its range, by which a request is authorized, or at a revision that etcd cannot have."""
    with pytest.raises(BadRequestError, match="'page' belongs to another range") as caught:
        parse_page_token(page.token().encode(), (SERVICES,))
    assert caught.value.parameter == "page"


def test_the_bounds_of_a_revision_are_its_own() -> None:
    """The first and the last revision that etcd can have are valid pages."""
    for revision in (1, (1 << 63) - 1):
        page = PageToken("16214fff", revision, b"/svc/")
        assert parse_page_token(page.token().encode(), (SERVICES,)) == page
