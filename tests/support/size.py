"""How large a test is: ``make test`` and ``make check`` run its short form, ``make long`` its long form.

A test has two forms if only its size costs: the number of a property's examples, or of the streams in a crowd. Both
forms assert the same. ``make long`` runs the property tests and the tests with the marker ``sized``.
"""

from __future__ import annotations

import os

LONG = bool(os.environ.get("LONG"))


def size(short: int, *, long: int) -> int:
    """The number for the form that runs."""
    return long if LONG else short
