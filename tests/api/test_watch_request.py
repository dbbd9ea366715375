"""``app.api.watch_request``: what a parsed request says of its stream's bytes."""

from __future__ import annotations

import pytest

from app.api.watch_request import WatchRequest
from app.core.negotiation import Coding
from app.core.selection import Selection


@pytest.mark.parametrize(
    ("coding", "form"), [(Coding.FIXED, "ndjson"), (Coding.PLAIN, "ndjson"), (Coding.GZIP, "ndjson+gzip")]
)
def test_the_form_is_the_format_and_the_coding(coding: Coding, form: str) -> None:
    """A client that may have gzip, and does not ask for it, gets the plain format."""
    asked = WatchRequest(
        Selection(()),
        "ndjson",
        None,
        snapshot=True,
        holdable=False,
        address="10.0.0.1:1",
        user_agent="",
        request_id="a-1",
        coding=coding,
    )
    assert asked.form == form
    assert asked.id_header == (b"x-request-id", b"a-1")
