"""The bodies of ``/v1/kv`` with gzip, for clients that ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..core.deflate import Checksum, DeflatedPart, begin_member, end_member

# Bytes that are deflated at once: about 0.5 ms of the event loop's time.
SLICE = 64 * 1024


async def deflate(encoded: bytes) -> list[DeflatedPart]:
    """Deflate what is already encoded, in slices: others run after each."""
    parts: list[DeflatedPart] = []
    for start in range(0, len(encoded), SLICE):
        parts.append(DeflatedPart.of(encoded[start : start + SLICE]))
        await asyncio.sleep(0)
    return parts


def coded(parts: Sequence[bytes | DeflatedPart]) -> tuple[Sequence[bytes], Checksum | None]:
    """Return a body of *parts* with gzip, without the member's end; plain and without a checksum if gzip is larger."""
    if any(isinstance(part, DeflatedPart) for part in parts):
        made, checksum = begin_member(parts)
        if sum(map(len, made)) + len(end_member(b"", checksum)) < checksum.size:
            return made, checksum
    return [part.plain if isinstance(part, DeflatedPart) else part for part in parts], None
