"""How the process gets its memory from the system, so that what is given back leaves it."""

from __future__ import annotations

import ctypes

# mallopt(3), glibc's malloc.h.
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def return_large_blocks() -> bool:
    """Have every block of 128 KiB or more mapped for itself, and unmapped when it is freed; whether that can be had.

    glibc raises that threshold up to 32 MiB with each large block that is freed, and gives each thread of gRPC a heap
    of its own. Then pages of large values stay in the process as holes: six reads of values of 0.9 MB in a bound of
    16 MiB made it 43 to 53 MiB larger, and 33 to 40 MiB so. Where there is no glibc nothing is done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 128 * 1024)) and bool(mallopt(_M_ARENA_MAX, 1))
