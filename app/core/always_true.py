"""A base for objects that have a length and are always true."""

from __future__ import annotations


class AlwaysTrue:
    """Base of every class with a ``__len__``: the object is true even when it is empty.

    Python treats an object of length 0 as false. So a watch stream without watches was taken for no stream at all:
    ``fresh or min(...)`` put the watch on another stream.
    """

    __slots__ = ()

    def __bool__(self) -> bool:
        return True
