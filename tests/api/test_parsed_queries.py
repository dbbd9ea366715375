"""``app.api.parsed_queries``: what clients choose is kept, and never fills the memory."""

from __future__ import annotations

import pytest

from app.api.parsed_queries import LONGEST, MOST, parsed_once


class Parser:
    """A parser that counts its work."""

    def __init__(self) -> None:
        self.parsed: list[bytes] = []
        self.parse = parsed_once(self._parse)

    def _parse(self, raw: bytes) -> int:
        self.parsed.append(raw)
        if raw == b"wrong":
            raise ValueError("wrong")
        return len(raw)


@pytest.mark.parametrize(("length", "times"), [(1, 1), (LONGEST, 1), (LONGEST + 1, 3)])
def test_only_short_queries_are_kept(length: int, times: int) -> None:
    """A long one is parsed each time."""
    parser = Parser()
    for _ in range(3):
        assert parser.parse(b"x" * length) == length
    assert len(parser.parsed) == times


def test_only_so_many_queries_are_kept() -> None:
    """The one that was used least recently gives way."""
    parser = Parser()
    for number in range(MOST + 1):
        parser.parse(b"%d" % number)
    parser.parse(b"%d" % MOST)
    assert len(parser.parsed) == MOST + 1
    parser.parse(b"0")
    assert len(parser.parsed) == MOST + 2


def test_errors_are_not_kept() -> None:
    """They are as rare as they are cheap."""
    parser = Parser()
    for _ in range(2):
        with pytest.raises(ValueError, match="wrong"):
            parser.parse(b"wrong")
    assert len(parser.parsed) == 2
