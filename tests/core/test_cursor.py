"""``app.core.cursor``: the position of a mirror, for every replica and every later version."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.core.cursor import NOTHING, UNREADABLE, Cursor, derive_epoch, parse_cursor
from app.core.keys import KeyRange
from app.core.selection import Selection, canonical

SERVICES = Selection((KeyRange("prefix", b"/svc/"),))
CLUSTER = 0xCDF818194E3A8C32

epochs = st.text("0123456789abcdef", min_size=8, max_size=8)


@given(epoch=epochs, revision=st.integers(0, (1 << 63) - 1))
def test_a_cursor_comes_back_as_it_went(epoch: str, revision: int) -> None:
    """Parsing a cursor's text returns the cursor."""
    cursor = Cursor(epoch, revision)
    assert parse_cursor(str(cursor)) == cursor
    assert cursor.empty == (revision == 0)


@given(st.text())
@example("00000000-99999999999999999999")
@example("00000000-9223372036854775808")
@example("00000000-01")
@example("00000000--1")
@example("00000000-1\n")
@example(" 00000000-1")
@example("0000000A-1")
@example("00000000-\u0661")
@example("-")
def test_no_text_raises(text: str) -> None:
    """A client may send any text: a text that does not have exactly the cursor's form is unreadable."""
    cursor = parse_cursor(text)
    assert cursor in (NOTHING, UNREADABLE) or str(cursor) == text


def test_an_empty_text_holds_nothing_and_an_unreadable_one_is_not_empty() -> None:
    """An empty cursor and an unreadable one both reset, for different reasons."""
    assert parse_cursor("") is NOTHING
    assert parse_cursor("5") is UNREADABLE
    assert NOTHING.empty
    assert not UNREADABLE.empty


def test_the_largest_revision_is_of_63_bits() -> None:
    """The largest revision has 63 bits: revisions are int64 at etcd."""
    assert parse_cursor("00000000-9223372036854775807").revision == (1 << 63) - 1
    assert parse_cursor("00000000-9223372036854775808") is UNREADABLE


@pytest.mark.parametrize(
    ("cluster", "gateway_epoch", "selection", "epoch"),
    [
        # Frozen within v1: a change here resets every client in the world. Never adapt these values to the code.
        (CLUSTER, "", SERVICES, "16214fff"),
        (CLUSTER, "restored-1", SERVICES, "1324e58e"),
        (0, "", Selection((KeyRange("prefix", b""),)), "da222670"),
        (1, "", Selection((KeyRange("key", b"/svc/a"),)), "ec89aa30"),
        (CLUSTER, "\u00e9", Selection((KeyRange("prefix", b"\xff\x00"),), encoding="base64"), "97e121eb"),
        ((1 << 64) - 1, "", Selection((KeyRange("prefix", b"/"),), keys_only=True), "14e9d8b1"),
        (CLUSTER, "", Selection((KeyRange("prefix", b"/"),), count_only=True), "278aacff"),
    ],
)
def test_the_derivation_is_frozen(cluster: int, gateway_epoch: str, selection: Selection, epoch: str) -> None:
    """The epochs are literally those that the first release derived."""
    assert derive_epoch(cluster, gateway_epoch, selection) == epoch


ranges = st.builds(KeyRange, st.sampled_from(["prefix", "key"]), st.binary(max_size=6))
selections = st.builds(
    Selection,
    st.lists(ranges, min_size=1, max_size=3).map(canonical),
    st.sampled_from(["auto", "base64"]),
    st.booleans(),
    st.booleans(),
)
identities = st.tuples(st.integers(0, (1 << 64) - 1), st.text(max_size=4), selections)


@given(one=identities, other=identities)
def test_whatever_differs_has_another_epoch(one: tuple[int, str, Selection], other: tuple[int, str, Selection]) -> None:
    """Each of cluster, GATEWAY_EPOCH, kind, name, encoding, keys_only and count_only is a part of the epoch."""
    assert (derive_epoch(*one) == derive_epoch(*other)) == (one == other)


@pytest.mark.parametrize(
    ("cluster", "gateway_epoch", "selection"),
    [
        (CLUSTER + 1, "", SERVICES),
        (CLUSTER, "1", SERVICES),
        (CLUSTER, "", Selection((KeyRange("key", b"/svc/"),))),
        (CLUSTER, "", Selection((KeyRange("prefix", b"/svc"),))),
        (CLUSTER, "", Selection((KeyRange("prefix", b"/svc/"),), encoding="base64")),
        (CLUSTER, "", Selection((KeyRange("prefix", b"/svc/"),), keys_only=True)),
        (CLUSTER, "", Selection((KeyRange("prefix", b"/svc/"),), count_only=True)),
    ],
)
def test_each_difference_alone_has_another_epoch(cluster: int, gateway_epoch: str, selection: Selection) -> None:
    """One difference alone is enough for another epoch."""
    assert derive_epoch(cluster, gateway_epoch, selection) != derive_epoch(CLUSTER, "", SERVICES)
