"""Durations, sizes and other numbers: how settings and parameters write them, and how the gateway shows them.

Durations are in seconds, or with a unit: ``30``, ``30s``, ``500ms``, ``5m``, ``1h``. Sizes are in bytes, or with a
unit: ``65536``, ``64KiB``, ``16MiB``.
"""

from __future__ import annotations

import re
from typing import Any

# Durations and sizes have their own parsers. pydantic's parsers accept ambiguous values and refuse common ones: its
# ``timedelta`` refuses "30", "500ms" and "5m", and accepts "1d" and "00:00:30"; its ``ByteSize`` takes "64K" and "64KB"
# for 64,000 bytes, and accepts "64kib" and "1.5MiB", which are refused here.
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"([0-9]+)\s*(B|KiB|MiB|GiB)?")
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
_NUMBER = re.compile(r"\s*[0-9]+\s*")
# A worker needs a processor to be of use: more than this many is a typing error.
MOST_WORKERS = 256
_SCALES = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def seconds(value: Any) -> Any:
    """Parse a duration and return seconds. Return a value that is not text unchanged. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        msg = f"{value!r} is not a duration; use seconds, or 500ms, 30s, 5m, 1h"
        raise ValueError(msg)
    return float(match[1]) * _UNITS[match[2]]


def size(value: Any) -> Any:
    """Parse a size and return bytes. Return a value that is not text unchanged. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        msg = f"{value!r} is not a size; use bytes, or 64KiB, 16MiB, 1GiB"
        raise ValueError(msg)
    return int(match[1]) * _SCALES[match[2]]


def number(value: Any) -> Any:
    """Refuse numbers that are not plain digits: pydantic also accepts ``8080.0``, ``8_080`` and ``+8080``."""
    if isinstance(value, str) and _NUMBER.fullmatch(value) is None:
        msg = f"{value!r} is not a number; use digits only"
        raise ValueError(msg)
    return value


def version(value: Any) -> Any:
    """Refuse text that is not a whole version: ``3.5`` does not say whether a fix of 3.5.8 is in it."""
    if isinstance(value, str) and value and _VERSION.fullmatch(value) is None:
        msg = f"{value!r} is not a version of etcd; use three numbers, like 3.5.16"
        raise ValueError(msg)
    return value


def show_seconds(value: float) -> str:
    """Return a duration as ``seconds`` parses it: ``10m``, ``90s``, ``500ms``; to three digits after the point."""
    if value and value % _UNITS["h"] == 0:
        return f"{value / _UNITS['h']:.0f}h"
    if value and value % _UNITS["m"] == 0:
        return f"{value / _UNITS['m']:.0f}m"
    number, unit = (value * 1000, "ms") if 0 < value < 1 else (value, "s")
    return f"{number:.3f}".rstrip("0").rstrip(".") + unit


def show_size(value: int) -> str:
    """Return a size in the largest unit that has no fraction: ``256MiB``, ``1000B``."""
    unit = next((unit for unit in ("GiB", "MiB", "KiB") if value and value % _SCALES[unit] == 0), "B")
    return f"{value // _SCALES[unit]}{unit}"


def processes(value: Any) -> Any:
    """Return a number of processes, or ``auto``. Anything but text is returned as it is.

    Raises:
        ValueError: the text is neither.
    """
    if not isinstance(value, str) or value == "auto":
        return value
    if not _NUMBER.fullmatch(value) or not 1 <= int(value) <= MOST_WORKERS:
        msg = f"{value!r} is neither a number from 1 to {MOST_WORKERS} nor 'auto'"
        raise ValueError(msg)
    return int(value)
