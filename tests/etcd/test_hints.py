"""What gRPC says of a connection that cannot be made, in words that name the setting."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from app.etcd.hints import explain


@pytest.mark.parametrize(
    ("endpoint", "details", "hint"),
    [
        ("https://a:1", "failed to connect to all addresses; last error: CERTIFICATE_VERIFY_FAILED", "not of a CA"),
        ("https://a:1", "failed to connect to all addresses; last error: TSI_DATA_CORRUPTED", "or wants one"),
        ("https://a:1", "failed to connect to all addresses; last error: Handshake read failed", "an http:// end"),
        ("http://a:1", "failed to connect to all addresses; last error: Socket closed", "an https:// end"),
        ("http://a:1", "failed to connect to all addresses; last error: Connection refused", None),
        ("http://a:1", "Socket closed", None),  # it was connected: it is restarting
    ],
)
def test_hints(endpoint: str, details: str, hint: str | None) -> None:
    """What gRPC says, and what that means, where it means one thing only."""
    error: Any = SimpleNamespace(code=lambda: grpc.StatusCode.UNAVAILABLE, details=lambda: details)
    said = explain(endpoint, error)

    assert f"unavailable: {details}" in said
    assert (hint is None) == (said == f"unavailable: {details}")
    assert hint is None or hint in said


def test_another_failure_has_no_hint() -> None:
    """An etcd that answers has taken our certificate."""
    error: Any = SimpleNamespace(
        code=lambda: grpc.StatusCode.INTERNAL, details=lambda: "failed to connect: CERTIFICATE_VERIFY_FAILED"
    )
    assert explain("https://a:1", error) == "internal: failed to connect: CERTIFICATE_VERIFY_FAILED"
