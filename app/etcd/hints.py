"""Explain what is wrong with an endpoint, for ``/readyz`` and the log: gRPC's text, and what the text means here."""

from __future__ import annotations

from aetcd import rpc

# Seen with grpcio 1.85.1. A server that uses TLS 1.3 rejects the gateway's certificate only after the handshake, and
# gRPC takes that alert for corrupted data (etcd 3.4.23 and 3.5.16; 3.5.1 uses TLS 1.2 with grpcio).
HINTS = (
    ("https", "CERTIFICATE_VERIFY_FAILED", "etcd's certificate is from no CA in GATEWAY_ETCD_CACERT, or has expired"),
    ("https", "Hostname Verification", "etcd's certificate is for other names, not for this endpoint"),
    ("https", "TSI_DATA_CORRUPTED", "etcd rejects GATEWAY_ETCD_CERT, or requires a certificate and none is set"),
    ("https", "_ALERT_", "etcd rejects GATEWAY_ETCD_CERT, or requires a certificate and none is set"),
    ("https", "Handshake read failed", "the server does not use TLS: is it an http:// endpoint?"),
    ("https", "WRONG_VERSION_NUMBER", "the server does not use TLS: is it an http:// endpoint?"),
    ("http", "Socket closed", "the server closes plain-text connections: is it an https:// endpoint?"),
    ("http", "Connection reset", "the server closes plain-text connections: is it an https:// endpoint?"),
)


def explain(endpoint: str, error: rpc.AioRpcError) -> str:
    """Return why a call failed: gRPC's status and text, with a hint where one is known."""
    details = error.details() or ""
    said = f"{error.code().name.lower()}: {details}"
    if error.code() is not rpc.StatusCode.UNAVAILABLE or "failed to connect" not in details:
        return said  # the end of an established connection says nothing about credentials
    scheme = endpoint.partition("://")[0]
    hint = next((hint for when, words, hint in HINTS if when == scheme and words in details), "")
    return f"{hint} ({said})" if hint else said
