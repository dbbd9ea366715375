"""How the process allocates memory: freed memory returns to the system, and the collector skips what stays."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator

# mallopt(3), glibc's malloc.h.
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
# Collections of the middle generation between two full collections at least; Python's default is 10. So a full
# collection comes after 700,000 more objects that the collector knows.
FULL_EVERY = 100


def return_large_blocks() -> bool:
    """Map each block of 128 KiB or more separately, and unmap it when it is freed. Return whether that is possible.

    By default, glibc raises this threshold (up to 32 MiB) with each large block that is freed, and gives each gRPC
    thread its own heap. Freed pages of large values then stay in the process as holes. Six reads of values of 0.9 MB
    within a bound of 16 MiB made the process 43 to 53 MiB larger; with these options, 33 to 40 MiB. Without glibc this
    function does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 128 * 1024)) and bool(mallopt(_M_ARENA_MAX, 1))


def freeze_objects() -> None:
    """Freeze all objects that exist now (``gc.freeze``), and make full collections rare. Call this when the process is
    ready to serve.

    The modules, the routes and their models stay as long as the process, but every full collection visited them: one
    beside 2,000 streams stopped the event loop for 62 to 81 ms, and for 42 to 44 ms without them.

    A full collection visits the objects of all streams, too. While 10,000 clients joined, four of them stopped the loop
    for up to 100 ms. The 20,000 clients of a full gateway make 500,000 objects. Full collections should find next to
    nothing: a stream, a connection or a feed that has ended is freed at once, with all that it held. The soak counts
    what they find. If something is overlooked, it takes up to 120 MiB: feeds were, and at one full collection for
    7,000,000 objects, 3,000 clients with 32 ranges each made a process 1 GiB larger.
    """
    gc.collect()
    gc.freeze()
    young, middle, _full = gc.get_threshold()
    gc.set_threshold(young, middle, FULL_EVERY)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage while modules are imported.

    Imports make many objects that stay, and next to no garbage. A gateway's start, from its first to its last moment,
    takes 0.86 s of CPU so, and took 1.08 s before.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
