"""Files that operators provide."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.files import certificates, first_bytes

BLOCK = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def test_first_bytes(tmp_path: Path) -> None:
    """At most so many bytes are read; a pipe without a writer is empty."""
    pipe, file = tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(pipe)
    file.write_bytes(b"content")

    assert first_bytes(pipe, 10) == b""
    assert first_bytes(file, 10) == b"content"
    assert first_bytes(file, 3) == b"con"
    assert first_bytes(Path("/dev/zero"), 100_000) == bytes(100_000)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", ""),
        (b"no PEM", ""),
        (BLOCK.encode(), BLOCK),
        (f"# Ra\u00edz\n{BLOCK}Autorit\u00e9\n{BLOCK}".encode(), BLOCK * 2),
        (b"\xff\xfe" + BLOCK.encode(), BLOCK),
        (BLOCK.replace("MIIB", "MI\u00cdB").encode(), ""),
        (BLOCK.replace("CERTIFICATE", "PRIVATE KEY").encode(), ""),
        (BLOCK.replace("END", "BEGIN").encode(), ""),
    ],
)
def test_certificates(data: bytes, found: str) -> None:
    """The blocks of certificates are found among anything else."""
    assert certificates(data) == found
