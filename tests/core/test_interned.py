"""``app.core.interned``: equal values become one object, and values that are only equal in part do not."""

from __future__ import annotations

from app.core.interned import interned
from app.core.keys import KeyRange
from app.core.selection import Selection


def selection(name: str, *, keys_only: bool = False) -> Selection:
    """Make a selection as a request does: of new objects."""
    return Selection((KeyRange("prefix", name.encode()),), keys_only=keys_only)


def test_equal_values_are_one_object() -> None:
    """The object is the first of the equal ones."""
    first = interned(selection("/a"))
    assert interned(selection("/a")) is first
    assert interned(selection("/a", keys_only=True)) is not first
    assert interned(selection("/b")) is not first


def test_numbers_of_another_type_are_another_value() -> None:
    """1, 1.0 and True are equal, and differ on the wire."""
    assert [type(interned(value)) for value in (1, 1.0, True)] == [int, float, bool]


def test_the_memory_is_bounded() -> None:
    """The values that nobody has asked for lately are forgotten: clients choose them."""
    first = interned(selection("/first"))
    for number in range(1000):
        interned(selection(f"/{number}"))
    assert interned(selection("/first")) is not first
