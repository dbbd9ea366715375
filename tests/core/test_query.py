"""``app.core.query``: a request's parameters as bytes, and the errors in them."""

from __future__ import annotations

from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.core.errors import BadRequestError
from app.core.keys import KeyRange, Kind
from app.core.query import (
    MAX_KEY_BYTES,
    MOST_WRITTEN,
    bounded,
    parse_choice,
    parse_flag,
    parse_number,
    parse_query,
    parse_ranges,
    parse_revision,
    text,
)
from app.core.selection import canonical

KNOWN = {"key", "prefix", "limit"}
queries = st.dictionaries(st.sampled_from(sorted(KNOWN)), st.binary(max_size=12))


@given(query=queries, plus=st.booleans())
def test_a_query_comes_back_as_it_went(query: dict[str, bytes], plus: bool) -> None:
    """Any bytes come back, escaped by either custom: %20 and + both mean a space."""
    escape = quote_plus if plus else quote
    raw = "&".join(f"{name}={escape(value)}" for name, value in query.items())
    assert parse_query(raw.encode(), KNOWN) == query


@given(query=queries, busters=st.lists(st.binary(max_size=4).map(quote), max_size=3))
def test_a_cache_buster_is_not_there(query: dict[str, bytes], busters: list[str]) -> None:
    """A cache buster is ignored, whatever its value is, however often it comes."""
    raw = "&".join([*(f"_={value}" for value in busters), *(f"{name}={quote(value)}" for name, value in query.items())])
    assert parse_query(raw.encode(), KNOWN) == query


def test_what_libraries_append() -> None:
    """Where it is allowed, the last parameter counts, and a broken escape is taken literally; nowhere else."""
    raw = b"limit=1&limit=%zz&limit=2%"
    assert parse_query(raw, KNOWN, lenient={"limit"}, appended={"limit"}) == {"limit": b"2%"}
    with pytest.raises(BadRequestError, match="only once"):
        parse_query(raw, KNOWN, lenient={"limit"})
    with pytest.raises(BadRequestError, match="two hex digits"):
        parse_query(raw, KNOWN, appended={"limit"})


@given(raw=st.one_of(st.binary(max_size=30), st.text("key=%&+2Bprfixlmt", max_size=20).map(str.encode)))
@example(b"%ff=1")
@example(b"key=%u0041")
@example(b"\xed\xa0\x80=1")
def test_no_query_raises_anything_else(raw: bytes) -> None:
    """A client may send anything: the result is parameters, or a bad request whose text can be sent."""
    refusal, found = None, None
    try:
        found = parse_query(raw, KNOWN)
    except BadRequestError as error:
        refusal = error
    if refusal is not None:
        assert refusal.detail.encode()
        assert refusal.parameter is not None
    else:
        assert found is not None
        assert set(found) <= KNOWN


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"", {}),
        (b"&&", {}),
        (b"key=a&&limit=2&", {"key": b"a", "limit": b"2"}),
        (b"prefix", {"prefix": b""}),
        (b"prefix=", {"prefix": b""}),
        (b"key=a=b", {"key": b"a=b"}),
        (b"key=a+b%20c%2Bd", {"key": b"a b c+d"}),
        (b"%6Bey=%2fa%FF", {"key": b"/a\xff"}),
        (b"key=/a;b?c/\xc3\xa9", {"key": "/a;b?c/\u00e9".encode()}),
        (b"key=100%25", {"key": b"100%"}),
    ],
)
def test_what_a_query_says(raw: bytes, found: dict[str, bytes]) -> None:
    """Only ``&`` and the first ``=`` separate."""
    assert parse_query(raw, KNOWN) == found


@pytest.mark.parametrize(
    ("raw", "code", "parameter", "detail"),
    [
        (
            b"perfix=/a",
            "unknown-parameter",
            "perfix",
            "unknown parameter 'perfix'; known parameters are key, limit, prefix",
        ),
        (b"=1", "unknown-parameter", "", "unknown parameter ''"),
        (b"Key=a", "unknown-parameter", "Key", "unknown parameter 'Key'"),
        (b"key%=a", "unknown-parameter", "key%", "unknown parameter 'key%'"),
        (b"%ff=1", "unknown-parameter", "\\xff", "unknown parameter"),
        (b"x" * 99 + b"=1", "unknown-parameter", "x" * 64, "'" + "x" * 64 + "'"),
        (b"limit=1&limit=1", "repeated-parameter", "limit", "'limit' must be given only once"),
        (b"key=100%", "invalid-parameter", "key", "write a percent sign as '%25'"),
        (b"key=%2", "invalid-parameter", "key", "without two hex digits"),
        (b"key=%zz", "invalid-parameter", "key", "without two hex digits"),
        (b"key=%+1", "invalid-parameter", "key", "without two hex digits"),
    ],
)
def test_what_a_query_may_not_say(raw: bytes, code: str, parameter: str, detail: str) -> None:
    """Each error has its code, the parameter, and a hint at what to do."""
    with pytest.raises(BadRequestError) as caught:
        parse_query(raw, KNOWN)
    assert (caught.value.code, caught.value.parameter) == (code, parameter)
    assert detail in caught.value.detail


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        (b"key=/a", ["key=/a"]),
        (b"prefix=/a", ["prefix=/a"]),
        (b"prefix=", ["prefix="]),
        (b"key=" + b"k" * MAX_KEY_BYTES, ["key=" + "k" * MAX_KEY_BYTES]),
        (b"prefix=" + b"k" * MAX_KEY_BYTES + b"&limit=1", ["prefix=" + "k" * MAX_KEY_BYTES]),
        (b"prefix=/b/&key=/a&prefix=/c/", ["key=/a", "prefix=/b/", "prefix=/c/"]),
        (b"prefix=/a/&%70refix=/a/b/&key=/a/c&key=/d&key=/d", ["prefix=/a/", "key=/d"]),
        (b"&".join(b"key=%d" % number for number in range(32)), sorted(f"key={number}" for number in range(32))),
    ],
)
def test_ranges_are_keys_and_prefixes(raw: bytes, names: list[str]) -> None:
    """The ranges are in canonical order. The empty prefix means all keys, on purpose."""
    assert [str(one) for one in parse_ranges(parse_query(raw, KNOWN))] == names


@pytest.mark.parametrize(
    ("raw", "code", "parameter"),
    [
        (b"", "missing-parameter", "prefix"),
        (b"key=", "invalid-parameter", "key"),
        (b"prefix=/a&key=", "invalid-parameter", "key"),
        (b"key=" + b"k" * (MAX_KEY_BYTES + 1), "too-long", "key"),
        (b"prefix=" + b"k" * (MAX_KEY_BYTES + 1), "too-long", "prefix"),
        (b"prefix=a&" * 32 + b"key=b", "selection-too-wide", "key"),
        (b"&".join(b"prefix=%d" % number + b"{" * 1000 for number in range(10, 30)), "selection-too-wide", "prefix"),
        (
            b"prefix=a&" + b"&".join(b"key=b%d" % number + b"k" * 4000 for number in range(13)),
            "selection-too-wide",
            "key",
        ),
    ],
)
def test_no_ranges(raw: bytes, code: str, parameter: str) -> None:
    """An empty key does not mean all keys, and a request has at most 32 ranges."""
    with pytest.raises(BadRequestError) as caught:
        parse_ranges(parse_query(raw, KNOWN))
    assert (caught.value.code, caught.value.parameter) == (code, parameter)


@given(
    st.lists(
        st.tuples(st.sampled_from(["key", "prefix"]), st.binary(min_size=1, max_size=3), st.integers(1, 1365)),
        min_size=1,
        max_size=32,
    )
)
def test_what_is_accepted_can_be_asked_of_an_upstream(found: list[tuple[Kind, bytes, int]]) -> None:
    """As the gateway writes the ranges itself: it escapes more than clients must."""
    ranges = canonical(KeyRange(kind, piece * times) for kind, piece, times in found)
    written = "&".join(map(str, ranges))
    if len(written) > MOST_WRITTEN:
        with pytest.raises(BadRequestError):
            bounded(ranges)
    else:
        assert bounded(ranges) == parse_ranges(parse_query(written.encode(), KNOWN))


@pytest.mark.parametrize(
    ("value", "flag"), [(b"1", True), (b"true", True), (b"TRUE", True), (b"0", False), (b"false", False)]
)
def test_flags(value: bytes, flag: bool) -> None:
    """A given flag counts, whatever the default is."""
    assert parse_flag({"f": value}, "f", default=True) is flag
    assert parse_flag({"f": value}, "f", default=False) is flag


def test_what_is_absent_is_the_default() -> None:
    """An absent parameter has its default."""
    assert parse_flag({}, "f", default=True) is True
    assert parse_flag({}, "f", default=False) is False
    assert parse_number({}, "n", default=7, most=9) == 7
    assert parse_choice({}, "c", ("a", "b")) is None


@pytest.mark.parametrize("value", [b"", b"yes", b"2", b"01", b" 1", b"\xff"])
def test_no_flags(value: bytes) -> None:
    """Any other text is refused: neither yes nor no is guessed."""
    with pytest.raises(BadRequestError, match="'f' must be 1 or 0, not ") as caught:
        parse_flag({"f": value}, "f", default=True)
    assert caught.value.parameter == "f"


@pytest.mark.parametrize(
    ("value", "valid"), [(b"a", True), (b"b", True), (b"", False), (b"A", False), (b"\xff", False)]
)
def test_choices(value: bytes, valid: bool) -> None:
    """A choice is one of the words, exactly; otherwise the error names the words."""
    if valid:
        assert parse_choice({"c": value}, "c", ("a", "b")) == value.decode()
        return
    with pytest.raises(BadRequestError, match="'c' must be one of a, b, not ") as caught:
        parse_choice({"c": value}, "c", ("a", "b"))
    assert caught.value.parameter == "c"


@given(number=st.integers(-10, 1100), most=st.integers(1, 1000))
@example(number=0, most=1)
def test_numbers(number: int, most: int) -> None:
    """A number is from 1 to the maximum, both included."""
    query = {"n": b"%d" % number}
    if 1 <= number <= most:
        assert parse_number(query, "n", default=5, most=most) == number
        return
    with pytest.raises(BadRequestError, match=f"'n' must be a whole number from 1 to {most}, not ") as caught:
        parse_number(query, "n", default=5, most=most)
    assert caught.value.parameter == "n"


@pytest.mark.parametrize("value", [b"", b"1.0", b" 1", b"1_0", b"+1", "\u0661".encode(), b"9" * 5000])
def test_no_numbers(value: bytes) -> None:
    """Some texts that Python's int accepts are refused."""
    with pytest.raises(BadRequestError, match="whole number"):
        parse_number({"n": value}, "n", default=5, most=1 << 62)


@given(value=st.binary(max_size=64), more=st.binary(max_size=40))
@example(value=b"\xff" * 64, more=b"\xff")
def test_a_value_for_people_is_cut_and_can_be_sent(value: bytes, more: bytes) -> None:
    """The first 64 bytes of a value are shown, the undecodable ones escaped."""
    assert text(value.ljust(64, b"a") + more) == text(value.ljust(64, b"a"))
    assert text(value).encode().decode() == value.decode(errors="backslashreplace")


@given(revision=st.integers(0, (1 << 63) - 1))
def test_revisions(revision: int) -> None:
    """Every revision that etcd can have is a whole number from 0."""
    assert parse_revision({"r": b"%d" % revision}, "r") == revision
    assert parse_revision({}, "r") == 0


@pytest.mark.parametrize("value", [b"", b"-1", b"+1", b"1.0", b"0x1", b" 1", b"%d" % (1 << 63), b"9" * 5000])
def test_no_revisions(value: bytes) -> None:
    """Anything else is refused."""
    with pytest.raises(BadRequestError, match="'r' must be a whole number from 0 to 2\\^63-1, not ") as caught:
        parse_revision({"r": value}, "r")
    assert caught.value.parameter == "r"
