"""What is wrong with an endpoint, in words for ``/readyz`` and the log: gRPC's, and what they mean here."""

from __future__ import annotations

from aetcd import rpc

# Seen with grpcio 1.85.1. A server that speaks TLS 1.3 says only after the handshake that it does not take our
# certificate, and gRPC takes that alert for corrupted data (etcd 3.4.23, 3.5.16; 3.5.1 speaks TLS 1.2 with it).
HINTS = (
    ("https", "CERTIFICATE_VERIFY_FAILED", "etcd's certificate is not of a CA in GATEWAY_ETCD_CACERT, or expired"),
    ("https", "Hostname Verification", "etcd's certificate is for other names than this endpoint's"),
    ("https", "TSI_DATA_CORRUPTED", "etcd does not take GATEWAY_ETCD_CERT, or wants one and there is none"),
    ("https", "_ALERT_", "etcd does not take GATEWAY_ETCD_CERT, or wants one and there is none"),
    ("https", "Handshake read failed", "no TLS is spoken there: is it an http:// endpoint?"),
    ("https", "WRONG_VERSION_NUMBER", "no TLS is spoken there: is it an http:// endpoint?"),
    ("http", "Socket closed", "it hangs up on plain text: is it an https:// endpoint?"),
    ("http", "Connection reset", "it hangs up on plain text: is it an https:// endpoint?"),
)


def explain(endpoint: str, error: rpc.AioRpcError) -> str:
    """Why a call failed."""
    details = error.details() or ""
    said = f"{error.code().name.lower()}: {details}"
    if error.code() is not rpc.StatusCode.UNAVAILABLE or "failed to connect" not in details:
        return said  # a connection that was there says nothing about credentials by its end
    scheme = endpoint.partition("://")[0]
    hint = next((hint for when, words, hint in HINTS if when == scheme and words in details), "")
    return f"{hint} ({said})" if hint else said
