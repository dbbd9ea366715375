"""Certificates for tests: a CA and the certificates that it signs."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# With STEP_CLOCK=1, the wall clock of a gateway is up to an hour behind that of the test that makes the certificate.
AGE = timedelta(hours=2)
LIFETIME = timedelta(days=1)


@cache
def _has_openssl() -> bool:
    if shutil.which("openssl") is None:
        return False
    said = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=True).stdout
    return said.startswith("OpenSSL ") and int(said.split()[1].partition(".")[0]) >= 3


def openssl(*arguments: str | Path) -> None:
    """Run ``openssl``; raise with its output if it fails. Skip the test without OpenSSL 3.0 or later."""
    if not _has_openssl():
        pytest.skip("NOT RUN: keys that the tests do not make themselves: OpenSSL 3 is not installed")
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    cert: Path
    key: Path


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class Ca:
    """A certificate authority in its own folder. A CA with another *name* is another CA."""

    def __init__(self, folder: Path, name: str = "tests") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._name = _named(f"{name} CA")
        self._key = ec.generate_private_key(ec.SECP256R1())
        own = self._builder(self._key, self._name, AGE)
        own = own.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.cert = self._write(name, own, self._key).cert

    def sign(self, name: str, *, names: str = "localhost,127.0.0.1,::1", age: timedelta = AGE) -> Pair:
        """A certificate for *name*: etcd takes *name* for the user, and servers may be called by any of *names*.

        *age*: for how long the certificate has been valid.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            self._builder(key, _named(name), age)
            .add_extension(x509.SubjectAlternativeName([_alternative(one) for one in names.split(",")]), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        )
        return self._write(f"{name}-signed", builder, key)

    def _builder(self, key: ec.EllipticCurvePrivateKey, subject: x509.Name, age: timedelta) -> x509.CertificateBuilder:
        now, public = datetime.now(UTC), key.public_key()
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder(self._name, subject, public, x509.random_serial_number(), now - age, now + LIFETIME)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(authority, critical=False)
        )

    def _write(self, name: str, builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> Pair:
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        pair.cert.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return pair


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def jwt_keys(folder: Path) -> tuple[Path, Path]:
    """An RSA key pair for etcd's tokens: the public key's file, then the private key's."""
    public, private = folder / "jwt.pub", folder / "jwt.key"
    openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return public, private
