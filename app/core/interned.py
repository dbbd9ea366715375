"""One object for equal values. Most streams ask for what others ask for, and each would keep its own copy."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any, TypeVar

T = TypeVar("T", bound=Hashable)


def interned(value: T) -> T:
    """Return *value*, or the equal object that this function has returned before. The value must not change."""
    found: T = _interned(value)
    return found


# Clients choose the values: 256 selections as long as a request may be take 16 MiB, and the epochs hold the same ones
# (``app.core.cursor``).
@functools.lru_cache(maxsize=256, typed=True)
def _interned(value: Any) -> Any:
    return value
