"""``app.core.worker_report``: what a worker tells the hub."""

from __future__ import annotations

import json

from app.core.worker_report import Report
from tests.core.test_merged_feeds import body, feed
from tests.core.test_merged_metrics import family


def test_a_report_is_a_message() -> None:
    """It comes out of JSON as it went in."""
    report = Report(body(feed("prefix=/a/", 1)), [family("a", 1, 2)])
    assert Report.decode(json.loads(json.dumps(report.encode()))) == report
