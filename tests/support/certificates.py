"""Certificates for tests, made by the ``openssl`` program: a CA and the certificates that it signs."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@cache
def _has_openssl() -> bool:
    if shutil.which("openssl") is None:
        return False
    said = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=True).stdout
    return said.startswith("OpenSSL ") and int(said.split()[1].partition(".")[0]) >= 3


def openssl(*arguments: str | Path) -> None:
    """Run ``openssl``; raise with its output if it fails.

    Skip the test without OpenSSL 3.0 or later (for ``req -CA``).
    """
    if not _has_openssl():
        pytest.skip("NOT RUN: TLS to etcd: OpenSSL 3 is not installed")
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    cert: Path
    key: Path


class Ca:
    """A certificate authority in its own folder. A CA with another *name* is another CA."""

    def __init__(self, folder: Path, name: str = "tests") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.cert, self._key = folder / f"{name}.crt", folder / f"{name}.key"
        openssl("req", "-x509", *EC, "-keyout", self._key, "-out", self.cert, "-days", "1", "-subj", f"/CN={name} CA")

    def sign(self, name: str, *, names: str = "DNS:localhost,IP:127.0.0.1,IP:::1") -> Pair:
        """A certificate for *name*: etcd takes *name* for the user, and servers may be called by any of *names*."""
        pair = Pair(self._folder / f"{name}-signed.crt", self._folder / f"{name}-signed.key")
        openssl(
            *("req", "-x509", *EC, "-keyout", pair.key, "-out", pair.cert, "-days", "1", "-subj", f"/CN={name}"),
            *("-CA", self.cert, "-CAkey", self._key, "-addext", f"subjectAltName={names}"),
            *("-addext", "extendedKeyUsage=serverAuth,clientAuth", "-addext", "basicConstraints=critical,CA:FALSE"),
        )
        return pair


def jwt_keys(folder: Path) -> tuple[Path, Path]:
    """An RSA key pair for etcd's tokens: the public key's file, then the private key's."""
    public, private = folder / "jwt.pub", folder / "jwt.key"
    openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return public, private
