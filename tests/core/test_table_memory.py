"""``app.core.table_memory``: what a table of encoded bytes takes, whatever is added and removed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.core.table_memory import EMPTY, OBJECT, TABLE, keep, kept_size, table_size, whole_size

CHANGES = st.lists(st.dictionaries(st.integers(0, 40), st.one_of(st.none(), st.binary(max_size=9))), max_size=20)


@given(CHANGES)
def test_the_sum_of_all_changes_is_the_whole(changes: list[dict[int, bytes | None]]) -> None:
    """Nothing counts twice, also after a table has lost all that it kept: its places are still there."""
    table: dict[int, bytes] = {}
    counted = 0
    for change in changes:
        for key in change:
            if (old := table.pop(key, None)) is not None:
                counted -= kept_size(old)
        counted += keep(table, {key: data for key, data in change.items() if data is not None})
        assert counted == whole_size(table)


def test_a_table_without_anything() -> None:
    """A table that has kept nothing yet counts for nothing. Its first bytes bring the table with them."""
    table: dict[str, bytes] = {}
    assert (table_size(table), keep(table, {})) == (0, 0)
    assert keep(table, {"a": b"123"}) > EMPTY + TABLE + OBJECT + 3
    table.clear()
    assert whole_size(table) == 0
