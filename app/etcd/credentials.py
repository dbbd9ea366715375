"""Who we are to etcd, and whom we take for etcd: TLS files, and a user with a password file.

The files are read again for every link, so that whoever renews them (cert-manager, the kubelet, an operator) need not
restart us; a bad one at that time is that link's failure, with the name of the setting in its reason.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

CACERT = "GATEWAY_ETCD_CACERT (--etcd-cacert)"
CERT = "GATEWAY_ETCD_CERT (--etcd-cert)"
KEY = "GATEWAY_ETCD_KEY (--etcd-key)"
PASSWORD_FILE = "GATEWAY_ETCD_PASSWORD_FILE (--etcd-password-file)"  # noqa: S105 -- the setting's name
# How OpenSSL names the certificates of a folder.
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")


class CredentialsError(Exception):
    """A file cannot be used; names the setting and the file, and never holds what is in it."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """See the module. All may be missing: plain text, as nobody."""

    cacert: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str = ""
    password_file: Path | None = None

    @property
    def named(self) -> bool:
        """Whether etcd may know us by a name, so that its roles may refuse us what they allowed before."""
        return bool(self.user) or self.cert is not None

    def check(self, *, tls: bool) -> None:
        """Read all files once, to find at the start what is wrong.

        Raises:
            CredentialsError: with a line for each setting that is wrong.
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
        """For one TLS connection, from the files as they are now. Raises CredentialsError."""
        roots = _certificates(CACERT, self.cacert) if self.cacert is not None else _system_roots()
        if self.cert is None or self.key is None:
            return grpc.ssl_channel_credentials(roots)
        chain, key = _certificates(CERT, self.cert), _read(KEY, self.key)
        _check_pair(self.cert, self.key)
        return grpc.ssl_channel_credentials(roots, key, chain)

    def password(self) -> str:
        """The file's content without the line end of its editor. Raises CredentialsError."""
        assert self.password_file is not None, "the settings ask for it beside a user"
        try:
            text = _read(PASSWORD_FILE, self.password_file).decode().strip()
        except UnicodeDecodeError:
            msg = f"{PASSWORD_FILE}: {self.password_file} is no text"
            raise CredentialsError(msg) from None
        if not text:
            msg = f"{PASSWORD_FILE}: {self.password_file} is empty"
            raise CredentialsError(msg)
        return text


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        msg = f"{setting}: cannot read {path}: {error.strerror or error}"
        raise CredentialsError(msg) from None


def _certificates(setting: str, path: Path) -> bytes:
    data = _read(setting, path)
    try:
        # gRPC takes any bytes, and says only at the handshake that something is wrong.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError):
        msg = f"{setting}: {path} holds no certificate in PEM"
        raise CredentialsError(msg) from None
    return data


def _check_pair(cert: Path, key: Path) -> None:
    def refuse() -> str:
        msg = f"{KEY}: {key} is encrypted: there is no setting for its passphrase"
        raise CredentialsError(msg)

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password=refuse)
    except ssl.SSLError as error:
        why = f"is not the key of {cert}" if error.reason == "KEY_VALUES_MISMATCH" else "holds no private key in PEM"
        msg = f"{KEY}: {key} {why}"
        raise CredentialsError(msg) from None
    except OSError as error:  # gone since it was read
        msg = f"{KEY}: cannot read {cert} and {key}: {error.strerror or error}"
        raise CredentialsError(msg) from None


def _system_roots() -> bytes:
    """What this system trusts, as OpenSSL finds it (``SSL_CERT_FILE``, ``SSL_CERT_DIR``).

    gRPC alone would take the list that it was built with, which knows no CA of a company and is never updated.
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
