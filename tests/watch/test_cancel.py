"""``app.watch.cancel``: an error from a watch's ``cancel`` does not stop the code after it."""

from __future__ import annotations

import pytest

from app.watch.cancel import cancel_watch
from tests.watch.world import StubEtcd, StubWatch, Trap


def test_no_watch_is_cancelled_by_nothing() -> None:
    """Cancelling does nothing if there is no watch."""
    cancel_watch(None)


async def test_an_error_is_logged_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The watch was asked to cancel; the log has the error."""
    etcd = StubEtcd(Trap("cancel", 1))
    watch = StubWatch(etcd, 0, lambda _given: None)
    cancel_watch(watch)
    assert etcd.open == set()
    assert [record.message for record in caplog.records] == [
        "cancelling a watch failed; etcd may hold the watch until its stream ends"
    ]
