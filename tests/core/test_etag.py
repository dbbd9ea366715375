"""``app.core.etag``: the name of a state, and what a client says that it has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.etag import MOST_TAGS, ETag, IfNoneMatch
from app.core.events import KeyValue
from app.core.snapshot import Snapshot
from tests.core.etcd_model import KEYS, History

operations = st.lists(st.tuples(st.sampled_from(KEYS), st.one_of(st.none(), st.binary(max_size=1))), max_size=3)


def tag_of(state: dict[bytes, KeyValue]) -> ETag:
    """The tag of a state, as a list makes it."""
    snapshot = Snapshot.of(1, state.values())
    return ETag("3f9ac17b", snapshot.newest, snapshot.count)


@given(st.lists(operations, max_size=12))
def test_it_changes_exactly_when_the_list_does(transactions: list[list[tuple[bytes, bytes | None]]]) -> None:
    """Any two states of a history have the same ``ETag`` exactly if they are equal."""
    history = History()
    for transaction in transactions:
        history.commit(transaction)
    states = [history.state(revision) for revision in range(1, history.current + 1)]
    for one in states:
        for other in states:
            assert (tag_of(one) == tag_of(other)) == (one == other)


def test_a_delete_of_an_older_key_changes_it() -> None:
    """The greatest ``mod_revision`` stays, and the count does not."""
    state = {key: KeyValue(key, b"", 2 + n, 2 + n, 1) for n, key in enumerate((b"/a/1", b"/a/2"))}
    before = tag_of(state)
    del state[b"/a/1"]

    assert (before.newest, before.count) == (3, 2)
    assert tag_of(state) == ETag("3f9ac17b", 3, 1)


TAG = ETag("3f9ac17b", 40, 12)


def test_the_text_of_it() -> None:
    """It is weak: the same list may be written in other bytes."""
    assert str(TAG) == 'W/"3f9ac17b-40-12"'


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        ("*", True),
        (" * ", True),
        ('W/"3f9ac17b-40-12"', True),
        ('"3f9ac17b-40-12"', True),
        ('"x", W/"3f9ac17b-40-12"', True),
        ('W/"3f9ac17b-40-12",W/"y"', True),
        ('"a,b" , "3f9ac17b-40-12"', True),
        ('W/"3f9ac17b-40-13"', False),
        ('W/"3f9ac17b-41-12"', False),
        ('W/"00000000-40-12"', False),
        ('w/"x"', False),
        ("3f9ac17b-40-12", False),
        ('"3f9ac17b-40-12', False),
        ("", False),
        ('"*"', False),
        ("*, *", False),
        ("\xff", False),
    ],
)
def test_what_matches(header: str, matches: bool) -> None:
    """A list of tags, compared weakly, or an asterisk; what is not a tag matches nothing."""
    assert IfNoneMatch(header).matches(TAG) is matches


@given(st.text())
def test_no_header_raises(header: str) -> None:
    """A client may send any text."""
    condition = IfNoneMatch(header)
    condition.matches(TAG)
    assert condition.newest("3f9ac17b") >= 0


def test_how_much_of_a_header_is_kept() -> None:
    """A request that is held keeps what the client has, and a header may have 64 KiB: 200 KiB of objects, once."""
    others = ", ".join(f'"{number}-{"z" * 40}"' for number in range(1000))
    assert len(IfNoneMatch(others)._tags) == 0, "of no gateway"
    condition = IfNoneMatch(others + ", " + ", ".join(f'W/"3f9ac17b-{number}-12"' for number in range(9, 1000)))
    assert len(condition._tags) == MOST_TAGS
    assert condition.matches(TAG), "the first count"


def test_what_the_client_has_seen() -> None:
    """The greatest revision of its tags of the same epoch; other tags say nothing."""
    condition = IfNoneMatch('W/"3f9ac17b-40-12", W/"3f9ac17b-7-1", W/"00000000-99-1", "3f9ac17b-x-1", "99"')

    assert condition.newest("3f9ac17b") == 40
    assert condition.newest("11111111") == 0
