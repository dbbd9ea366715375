"""``app.core.selection``: canonical ranges, and which watches at etcd serve them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.core.keys import KeyRange, Kind
from app.core.selection import Selection, canonical, divide

names = st.text("ab/", max_size=3).map(str.encode)
kinds: st.SearchStrategy[Kind] = st.sampled_from(["prefix", "key"])
ranges = st.lists(st.builds(KeyRange, kinds, names), min_size=1, max_size=6)
keys = st.text("ab/", max_size=4).map(str.encode)


@given(given_ranges=ranges, key=keys)
def test_canonical_ranges_have_the_same_keys_once(given_ranges: list[KeyRange], key: bytes) -> None:
    """Each key of the ranges lies in exactly one canonical range, and no other key does."""
    found = canonical(given_ranges)
    assert sum(one.contains(key) for one in found) == any(one.contains(key) for one in given_ranges)
    assert canonical(reversed(found)) == found
    assert [one.name for one in found] == sorted(one.name for one in found)


@given(given_ranges=ranges, one_key=keys, other_key=keys)
def test_the_order_of_canonical_ranges_is_that_of_their_keys(
    given_ranges: list[KeyRange], one_key: bytes, other_key: bytes
) -> None:
    """So a page token, which is a key, also tells in which range the next page begins."""
    place = {key: index for index, one in enumerate(canonical(given_ranges)) for key in (one_key, other_key)
             if one.contains(key)}  # fmt: skip
    if len(place) == 2 and one_key < other_key:
        assert place[one_key] <= place[other_key]


@given(given_ranges=ranges, pins=ranges)
def test_each_range_is_watched_by_itself_or_by_its_pin(given_ranges: list[KeyRange], pins: list[KeyRange]) -> None:
    """A range inside a pin is served from the pin, and nothing is served twice or not at all."""
    selected, pinned = canonical(given_ranges), canonical(pins)
    found = divide(selected, pinned)
    assert sorted((one for part in found.values() for one in part), key=selected.index) == list(selected)
    for watched, part in found.items():
        for one in part:
            assert watched.covers(one)
            assert watched in pinned or (watched == one and not any(pin.covers(one) for pin in pinned))


def test_a_wider_range_is_not_served_from_a_pin() -> None:
    """A pin has only a part of it."""
    wide, pin = KeyRange("prefix", b"/"), KeyRange("prefix", b"/svc/")
    assert divide((wide,), [pin]) == {wide: (wide,)}


def test_what_a_selection_is() -> None:
    """Its names, and whether it is one key."""
    assert Selection((KeyRange("key", b"/a"), KeyRange("prefix", b"/b/"))).names == ("key=/a", "prefix=/b/")
