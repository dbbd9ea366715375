"""``app.core.keys``: prefixes are ranges."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from app.core.keys import KeyRange, Kind, prefix_end
from app.core.query import parse_query, parse_ranges

# Few distinct bytes, so that keys share prefixes and carry.
tight = st.lists(st.sampled_from([0x00, 0x01, 0x2F, 0x61, 0xFE, 0xFF]), max_size=5).map(bytes)
names = st.one_of(tight, st.binary(max_size=12))


def in_range(key: bytes, watched: KeyRange) -> bool:
    r"""Whether etcd's ``key`` and ``range_end`` include *key*.

    An empty end means one key, ``b"\0"`` means all keys from the start on.
    """
    start, end = watched.start, watched.end
    if not end:
        return key == start
    return key >= start and (end == b"\0" or key < end)


@given(prefix=names, key=names.filter(bool))
@example(prefix=b"", key=b"\0")
@example(prefix=b"\xff", key=b"\xff\xff")
@example(prefix=b"a\xff", key=b"b")
@example(prefix=b"a\xff", key=b"a\xff\xff")
@example(prefix=b"\0", key=b"\0")
def test_a_prefix_is_the_range_that_etcd_is_asked_for(prefix: bytes, key: bytes) -> None:
    """A key starts with the prefix if and only if etcd would find the key between start and end."""
    watched = KeyRange("prefix", prefix)
    assert key.startswith(prefix) == in_range(key, watched) == watched.contains(key)


@given(prefix=names, rest=names)
def test_whatever_follows_a_prefix_lies_in_its_range(prefix: bytes, rest: bytes) -> None:
    """Keys that begin with the prefix are never missed."""
    key = prefix + rest
    if key:
        assert in_range(key, KeyRange("prefix", prefix))


@given(name=names.filter(bool), key=names.filter(bool))
def test_a_key_is_a_range_of_one(name: bytes, key: bytes) -> None:
    """A single key's range holds that key and no other."""
    watched = KeyRange("key", name)
    assert (key == name) == in_range(key, watched) == watched.contains(key)


def test_the_end_of_a_prefix_carries() -> None:
    """Trailing 0xff bytes are dropped before the last byte is raised; nothing left means no end."""
    assert prefix_end(b"/svc/") == b"/svc0"
    assert prefix_end(b"a\xff\xff") == b"b"
    assert prefix_end(b"\xff\xff") == b"\0"
    assert prefix_end(b"") == b"\0"


@given(kind=st.sampled_from(["prefix", "key"]), name=names)
def test_the_name_of_a_range_is_the_query_that_asks_for_it(kind: Kind, name: bytes) -> None:
    """The name of a range in ``reset`` and in the logs can be pasted after a question mark, for any bytes."""
    watched = KeyRange(kind, name)
    text = str(watched)
    assert text.isascii()
    assert not set(text) & set('&+#? "<>\r\n\0')
    found = parse_query(text.encode(), {"prefix", "key"})
    assert found == {kind: name}
    if name or kind == "prefix":
        assert parse_ranges(found) == (watched,)


@given(kind=st.sampled_from(["prefix", "key"]), name=names.filter(bool), allowed=names, key=names)
def test_within_an_allowed_prefix_means_every_key_is(kind: Kind, name: bytes, allowed: bytes, key: bytes) -> None:
    """A range within an allowed prefix has no key outside the prefix; a range that is not within has some."""
    watched = KeyRange(kind, name)
    if watched.within(allowed):
        assert not watched.contains(key) or key.startswith(allowed)
    else:
        assert not name.startswith(allowed)  # and its own name is one of its keys
        assert watched.contains(name)


def test_ranges_of_another_kind_are_others() -> None:
    """A prefix and a key of the same name are different ranges."""
    assert KeyRange("prefix", b"/a") != KeyRange("key", b"/a")
    assert len({KeyRange("prefix", b"/a"), KeyRange("prefix", b"/a"), KeyRange("key", b"/a")}) == 2
