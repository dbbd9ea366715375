"""The checker of whole mirrors: which restores a mirror need not know of yet."""

from __future__ import annotations

import pytest

from tests.consistency.client import Client
from tests.consistency.history import Change, Chronicle

K = b"/a/k"


@pytest.mark.parametrize("stands_at", [2, 4])
def test_a_mirror_of_a_gateway_that_has_not_noticed_a_restore(stands_at: int) -> None:
    """Its state from before the restored snapshot is of both histories, and shows nothing about what comes next.

    A run of 5.6 million deliveries ended at three such mirrors.
    """
    chronicle = Chronicle()
    old = chronicle.now
    for revision in (2, 4, 6):
        old.add(revision, [Change(K, revision, b"old", 2, revision // 2)], 1.0)
    chronicle.restore(old, 4, at=2.0)
    chronicle.now.add(6, [Change(K, 6, b"new", 2, 3)], 3.0)
    client = Client(0, "", ["/a/"], chronicle)
    for revision in (stands_at, 6):
        client._claim(revision, [Change(K, revision, b"old", 2, revision // 2)])
    client.settle()
    assert client.violation is None
    assert client._again, "it begins anew"


def test_a_mirror_of_another_history_for_good() -> None:
    """A mirror that was of the new history must not go back."""
    chronicle = Chronicle()
    old = chronicle.now
    old.add(2, [Change(K, 2, b"old", 2, 1)], 1.0)
    chronicle.restore(old, 2, at=2.0)
    for revision in (4, 6):
        chronicle.now.add(revision, [Change(K, revision, b"new", 2, revision // 2)], 3.0)
    client = Client(0, "", ["/a/"], chronicle)
    client._claim(4, [Change(K, 4, b"new", 2, 2)])
    client._claim(6, [Change(K, 6, b"old", 2, 3)])
    client.settle()
    assert client.violation is not None
