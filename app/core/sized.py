"""A length is not a truth."""

from __future__ import annotations


class Sized:
    """Base of every class with a ``__len__``: it is true, also when it is empty.

    Python takes an object of length 0 for false. A watch stream without watches yet was so taken for no stream at all:
    ``fresh or min(...)`` put the watch on another one.
    """

    __slots__ = ()

    def __bool__(self) -> bool:
        return True
