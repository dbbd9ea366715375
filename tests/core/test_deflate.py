"""``app.core.deflate``, inflated by zlib and gzip as clients do it."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.deflate import (
    HEADER,
    SMALLEST,
    Checksum,
    DeflatedPart,
    begin_member,
    deflated,
    end_member,
    plain_size,
    stored,
    stored_size,
)


def repeated(word: bytes, times: int, seed: int) -> bytes:
    """Bytes that are worth deflating, and bytes that are not."""
    return word * times + random.Random(seed).randbytes(times)


# Small and large, and on both sides of what one stored block can have.
data = st.one_of(
    st.binary(max_size=20),
    st.binary(max_size=2 * SMALLEST),
    st.builds(repeated, st.binary(min_size=1, max_size=40), st.integers(0, 3000), st.integers(0, 9)),
)


def inflate(stream: bytes) -> bytes:
    """What a client has of a stream that has no end yet."""
    return zlib.decompressobj(wbits=31).decompress(stream)


@given(st.lists(st.tuples(data, st.booleans()), max_size=8), st.data())
def test_any_blocks_after_the_header_are_a_stream(chosen: Sequence[tuple[bytes, bool]], more: st.DataObject) -> None:
    """A client joins anywhere, and gets comments in between: whatever blocks it has, it has their bytes, all of them.

    It has the bytes of a block as soon as it has the block.
    """
    blocks = [(each, deflated(each) if shared else stored(each)) for each, shared in chosen]
    first = more.draw(st.integers(0, len(blocks)))
    inflater, found = zlib.decompressobj(wbits=31), b""
    inflater.decompress(HEADER)
    for plain, block in blocks[first:]:
        found += inflater.decompress(block)
        assert found.endswith(plain)

    assert found == b"".join(plain for plain, _block in blocks[first:])


@given(data)
def test_a_block_is_never_larger_than_a_stored_one(plain: bytes) -> None:
    """What cannot be compressed grows by 5 bytes for each 64 KiB, and nothing becomes nothing."""
    assert len(stored(plain)) == stored_size(len(plain))
    assert len(deflated(plain)) <= stored_size(len(plain)) <= len(plain) + 5 * (1 + len(plain) // 0xFFFF)


@pytest.mark.parametrize("size", [0, 1, 0xFFFE, 0xFFFF, 0x10000, 2 * 0xFFFF, 2 * 0xFFFF + 1])
def test_bytes_of_any_size_can_be_stored(size: int) -> None:
    """A stored block has 65,535 bytes at most: more become several."""
    plain = random.Random(size).randbytes(size)

    assert inflate(HEADER + stored(plain)) == plain
    assert len(stored(plain)) == stored_size(size)


def test_a_small_block_is_stored_and_json_is_deflated() -> None:
    """A small event stays as it is; 64 KiB of JSON become less than a sixth."""
    small = b'{"type":"put","key":"/svc/a","value":"10.0.0.7:80"}'
    items = b"".join(
        b'{"key":"/services/web/instances/%05d","value":"{\\"address\\":\\"10.1.%d.%d:8080\\",\\"zone\\":\\"eu-1%c\\"}",'
        b'"create_revision":%d,"mod_revision":%d,"version":%d},'
        % (n, n * 7 % 250, n * 13 % 250, b"abc"[n % 3], 7000 + n, 9000 + n * 3 % 500, 1 + n % 4)
        for n in range(400)
    )

    assert deflated(small) == stored(small) == b"\x00\x33\x00\xcc\xff" + small
    assert len(items) > 60_000
    assert len(deflated(items)) < len(items) / 6


@given(st.lists(st.tuples(data, st.booleans()), max_size=6), data)
def test_a_member_with_its_end_is_a_gzip_file(chosen: Sequence[tuple[bytes, bool]], tail: bytes) -> None:
    """Parts that are deflated, parts that are not, and a tail: checksum and size are right, or ``gzip`` refuses it."""
    parts = [DeflatedPart.of(each) if shared else each for each, shared in chosen]
    made, checksum = begin_member(parts)
    plain = b"".join(each for each, _shared in chosen)

    assert checksum == Checksum(zlib.crc32(plain), len(plain))
    assert gzip.decompress(b"".join(made) + end_member(tail, checksum)) == plain + tail


@given(data)
def test_a_part_knows_what_it_was_made_of(plain: bytes) -> None:
    """A list that gzip makes larger is sent plain, from the same parts. A part counts as what it holds."""
    part = DeflatedPart.of(plain)

    assert part.plain == plain
    assert len(part) == len(part.data)
    assert part, "also an empty part"
    assert plain_size(part) == plain_size(plain) == len(plain)


def test_the_checksum_of_large_parts() -> None:
    """Sizes with many bits, beyond what hypothesis draws."""
    large = [random.Random(n).randbytes(100) * n for n in (10_001, 65_537, 3)]
    made, checksum = begin_member([DeflatedPart.of(each) for each in large])

    assert checksum == Checksum(zlib.crc32(b"".join(large)), sum(map(len, large)))
    assert inflate(b"".join(made)) == b"".join(large)
