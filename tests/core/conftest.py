"""Fixtures that the tests of the core share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def one_item_blocks() -> Iterator[None]:
    """Let a view make blocks of one item each, so that a few items are enough to be cut between blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.core.view.MAX_BYTES", 1)
        yield
