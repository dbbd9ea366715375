"""The garbage collector, switched off: what is freed then is freed by reference counts alone."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Until the context ends, cycles of objects stay."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
