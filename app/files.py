"""Files that operators provide: how much of them is read, and which certificates a PEM file has."""

from __future__ import annotations

import os
import re
from pathlib import Path

# What some editors put at the start of a text file. No client sends these bytes, and OpenSSL skips the PEM block that
# follows them.
BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_CERTIFICATE = re.compile(rb"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----[\x00-\x7f]*?-----END \1-----")


def first_bytes(path: Path, most: int) -> bytes:
    """Return the first *most* bytes of a file. A pipe without a writer does not block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = b""
        while len(data) < most and (part := os.read(descriptor, most - len(data))):
            data += part
        return data
    finally:
        os.close(descriptor)


def certificates(data: bytes) -> str:
    """Return the PEM blocks of the certificates in *data*, or an empty text if there is none.

    Lists of CAs often have comments that are not ASCII, and ``ssl`` takes PEM as ASCII only.
    """
    return "".join(f"{block[0].decode('ascii')}\n" for block in _CERTIFICATE.finditer(data))
