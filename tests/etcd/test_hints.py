"""gRPC's text for a failed connection, extended by a hint that names the setting."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from app.etcd.hints import explain


@pytest.mark.parametrize(
    ("endpoint", "details", "hint"),
    [
        ("https://a:1", "failed to connect to all addresses; last error: CERTIFICATE_VERIFY_FAILED", "from no CA in"),
        ("https://a:1", "failed to connect to all addresses; last error: TSI_DATA_CORRUPTED", "or requires"),
        ("https://a:1", "failed to connect to all addresses; last error: Handshake read failed", "an http:// end"),
        ("http://a:1", "failed to connect to all addresses; last error: Socket closed", "an https:// end"),
        ("http://a:1", "failed to connect to all addresses; last error: Connection refused", None),
        ("http://a:1", "Socket closed", None),  # it was connected before: etcd is restarting
    ],
)
def test_hints(endpoint: str, details: str, hint: str | None) -> None:
    """A hint is added to gRPC's text if the text has only one possible meaning."""
    error: Any = SimpleNamespace(code=lambda: grpc.StatusCode.UNAVAILABLE, details=lambda: details)
    said = explain(endpoint, error)

    assert f"unavailable: {details}" in said
    assert (hint is None) == (said == f"unavailable: {details}")
    assert hint is None or hint in said


def test_another_failure_has_no_hint() -> None:
    """No other failure gets a hint: an etcd that answers has accepted the gateway's certificate."""
    error: Any = SimpleNamespace(
        code=lambda: grpc.StatusCode.INTERNAL, details=lambda: "failed to connect: CERTIFICATE_VERIFY_FAILED"
    )
    assert explain("https://a:1", error) == "internal: failed to connect: CERTIFICATE_VERIFY_FAILED"
