"""How the gateway identifies itself to etcd, and how it verifies etcd: TLS files, and a user with a password file.

The files are read again for every link, so that cert-manager, the kubelet or an operator can renew them without a
restart of the gateway. If a file is bad at that time, the link fails, and the reason names the setting.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from ..files import BYTE_ORDER_MARKS, certificates, first_bytes

CACERT = "GATEWAY_ETCD_CACERT (--etcd-cacert)"
CERT = "GATEWAY_ETCD_CERT (--etcd-cert)"
KEY = "GATEWAY_ETCD_KEY (--etcd-key)"
PASSWORD_FILE = "GATEWAY_ETCD_PASSWORD_FILE (--etcd-password-file)"  # noqa: S105 -- the setting's name
# Bytes. A system's whole list of CAs has 250 KiB.
MAX_PEM = 1 << 20
MAX_PASSWORD = 16 * 1024
# The file names that OpenSSL expects in a folder of certificates.
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")
_CONTROL = re.compile("[\x00-\x1f\x7f]")


class CredentialsError(Exception):
    """A file cannot be used. The text names the setting and the file, and never quotes the file's content."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """See the module. All fields may be unset: plain text, without a user."""

    cacert: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str = ""
    password_file: Path | None = None

    @property
    def named(self) -> bool:
        """Whether etcd may know the gateway by a name. Then etcd's roles may refuse what they permitted before."""
        return bool(self.user) or self.cert is not None

    def check(self, *, tls: bool) -> None:
        """Read all files once, to report errors at startup.

        Raises:
            CredentialsError: with one line for each setting that is wrong.
        """
        lines = []
        for read in (self.channel if tls else None, self.password if self.user else None):
            try:
                if read is not None:
                    read()
            except CredentialsError as error:
                lines.append(str(error))
        if lines:
            raise CredentialsError("\n".join(lines))

    def channel(self) -> grpc.ChannelCredentials:
        """Return the credentials of one TLS connection, from the files as they are now. Raises CredentialsError."""
        roots = _certificates(CACERT, self.cacert) if self.cacert is not None else _system_roots()
        if self.cert is None or self.key is None:
            return grpc.ssl_channel_credentials(roots)
        chain, key = _certificates(CERT, self.cert), _read(KEY, self.key)
        _check_pair(self.cert, self.key)
        return grpc.ssl_channel_credentials(roots, key, chain)

    def password(self) -> str:
        """Return the password file's content without white space at its ends: editors add a line end.

        Raises:
            CredentialsError: the file cannot be used.
        """
        assert self.password_file is not None, "the settings require a password file with a user"
        try:
            text = _read(PASSWORD_FILE, self.password_file, MAX_PASSWORD).decode().strip()
        except UnicodeDecodeError:
            msg = f"{PASSWORD_FILE}: {self.password_file} is not UTF-8 text"
            raise CredentialsError(msg) from None
        if not text:
            msg = f"{PASSWORD_FILE}: {self.password_file} is empty"
            raise CredentialsError(msg)
        if _CONTROL.search(text):
            msg = f"{PASSWORD_FILE}: {self.password_file} has a line break or a control character inside the password"
            raise CredentialsError(msg)
        return text


def _read(setting: str, path: Path, most: int = MAX_PEM) -> bytes:
    try:
        data = first_bytes(path, most + 1)
    except OSError as error:
        msg = f"{setting}: cannot read {path}: {error.strerror or error}"
        raise CredentialsError(msg) from None
    if len(data) > most:
        msg = f"{setting}: {path} has more than {most} bytes"
        raise CredentialsError(msg)
    if data.startswith(BYTE_ORDER_MARKS):
        msg = f"{setting}: {path} begins with a byte order mark; save it without one"
        raise CredentialsError(msg)
    return data


def _certificates(setting: str, path: Path) -> bytes:
    found = certificates(_read(setting, path))
    try:
        # gRPC accepts any bytes and reports an error only at the handshake.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found)
    except (ssl.SSLError, ValueError):
        msg = f"{setting}: {path} has no certificate in PEM form"
        raise CredentialsError(msg) from None
    return found.encode()


def _check_pair(cert: Path, key: Path) -> None:
    def refuse() -> str:
        msg = f"{KEY}: {key} is encrypted, and there is no setting for its passphrase: use a key without one"
        raise CredentialsError(msg)

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password=refuse)
    except ssl.SSLError as error:
        why = f"is not the key of {cert}" if error.reason == "KEY_VALUES_MISMATCH" else "holds no private key in PEM"
        msg = f"{KEY}: {key} {why}"
        raise CredentialsError(msg) from None
    except OSError as error:  # the file has gone since it was read
        msg = f"{KEY}: cannot read {cert} and {key}: {error.strerror or error}"
        raise CredentialsError(msg) from None


def _system_roots() -> bytes:
    """Return the certificates that this system trusts, as OpenSSL finds them (``SSL_CERT_FILE``, ``SSL_CERT_DIR``).

    By default, gRPC would use the list that it was built with. That list has no company's CA and is never updated.
    """
    paths = ssl.get_default_verify_paths()
    files = [Path(paths.cafile)] if paths.cafile else []
    if not files and paths.capath:
        files = sorted(path for path in Path(paths.capath).iterdir() if _HASHED.fullmatch(path.name))
    roots = b"\n".join(_read("the system's root certificates", path) for path in files)
    if not roots.strip():
        msg = f"{CACERT}: not set, and this system has no root certificates"
        raise CredentialsError(msg)
    return roots
