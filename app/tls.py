"""TLS on the gateway's own ports, and to an upstream gateway: the certificates' files, the contexts that are made of
them, and the handshakes that failed.

Each connection uses the context that is current when the connection arrives. A context is never changed: after
``load_verify_locations``, OpenSSL has the new CAs and the old CAs. There is no session resumption: a client could
otherwise resume a session that a removed CA had permitted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .core.timestamps import rfc3339
from .file_watch import FileError, WatchedFiles
from .files import certificates
from .ports import Clock
from .settings import Settings

logger = logging.getLogger("gateway.http")

# Bytes of one file. A chain of four certificates has 8 KiB, a system's whole list of CAs 250 KiB.
MAX_FILE = 1 << 20
# The clocks of two nodes may differ by this many seconds: a certificate that becomes valid within them is accepted.
SKEW = 300.0
# Seconds between two log lines about failed handshakes for the same reason: a port scanner makes thousands.
LOG_INTERVAL = 60.0

# The reasons why a handshake failed, and what the log says.
FAILURES = {
    "plain-http": "plain HTTP was sent to the TLS port: the client must use https://",
    "not-tls": "something else than TLS was sent to the TLS port",
    "client-certificate": "a client has no certificate of GATEWAY_TLS_CLIENT_CA",
    "refused-by-client": "a client refused the TLS handshake: it may not trust the gateway's certificate",
    "unsupported": "a client offered no TLS version or cipher that the gateway accepts",
    "protocol": "a TLS handshake broke the protocol",
    "timeout": "a TLS handshake was not finished in time",
    "left": "a client left before the TLS handshake was finished",
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """The files' content, ready for use. ``operators`` is the context of the admin port."""

    clients: ssl.SSLContext
    operators: ssl.SSLContext
    expires: float  # seconds since 1970


@dataclass(frozen=True, slots=True)
class TlsStatistics:
    """The certificate in use, what is wrong with its files, and the failed handshakes by reason."""

    expires: float
    trouble: str
    failures: Mapping[str, int]


class Tls:
    """TLS for the listeners. The constructor reads the files, and raises SettingsError if they cannot be used.

    *read_before*: the files' contents in another process. They count instead, until a change is seen.
    """

    def __init__(
        self, settings: Settings, *, clock: Clock, wall: Clock, read_before: Mapping[str, bytes] | None = None
    ) -> None:
        given = {"tls_cert": settings.tls_cert, "tls_key": settings.tls_key, "tls_client_ca": settings.tls_client_ca}
        files = {name: path for name, path in given.items() if path is not None}
        parse = partial(parse_certificate, wall=wall)
        what = "the TLS certificate"
        in_force = partial(parse_certificate, wall=None)  # a certificate that has expired meanwhile stays in use
        self.files: WatchedFiles[Certificate] = WatchedFiles(files, parse, MAX_FILE, what, read_before, in_force)
        self._clock = clock
        self._failures: Counter[str] = Counter()
        self._said: dict[str, float] = {}

    def for_clients(self) -> ssl.SSLContext:
        """Return the context for a new connection to the main port."""
        return self.files.value.clients

    def for_operators(self) -> ssl.SSLContext:
        """Return the context for a new connection to the admin port. It demands no client certificate: the kubelet
        cannot send one.
        """
        return self.files.value.operators

    def failed(self, reason: str, detail: str, address: str) -> None:
        """Count a failed handshake, and log the first of its kind in a minute."""
        self._failures[reason] += 1
        now = self._clock()
        if reason == "left" or now - self._said.get(reason, float("-inf")) < LOG_INTERVAL:
            return  # "left": a load balancer that only tests whether the port is open does that every few seconds
        self._said[reason] = now
        more = {"detail": detail} if detail else {}
        logger.warning(
            FAILURES[reason], extra={"reason": reason, "client": address, "so_far": self._failures[reason], **more}
        )

    def statistics(self) -> TlsStatistics:
        """Return the present state."""
        failures = {reason: self._failures[reason] for reason in FAILURES}
        return TlsStatistics(self.files.value.expires, self.files.trouble, failures)


def make_tls(
    settings: Settings, *, clock: Clock, wall: Clock, read_before: Mapping[str, bytes] | None = None
) -> Tls | None:
    """Return the TLS that the settings describe, or None for plain HTTP. See ``Tls``."""
    return Tls(settings, clock=clock, wall=wall, read_before=read_before) if settings.tls_cert is not None else None


def parse_certificate(chain: bytes, key: bytes, client_ca: bytes | None = None, *, wall: Clock | None) -> Certificate:
    """Return the contexts for a certificate, its chain and its key, all in PEM form.

    Args:
        wall: the time now. None if the certificate is in use already: then it is used for as long as there is no other.

    Raises:
        FileError: a file cannot be used, the two do not belong together, or the certificate is not valid now.
    """
    expires = _check(chain, key, None if wall is None else wall(), ("tls_cert", "tls_key"))
    operators = _context(chain, key)
    if client_ca is None:
        return Certificate(operators, operators, expires)
    clients = _context(chain, key)
    clients.verify_mode = ssl.CERT_REQUIRED
    try:
        clients.load_verify_locations(cadata="".join(_pem(client_ca)))
    except ssl.SSLError as error:
        raise FileError(f"OpenSSL refuses the CA: {error.reason}", "tls_client_ca") from None
    return Certificate(clients, operators, expires)


class UpstreamTls:
    """TLS to an upstream gateway. ``context`` is for new connections: it changes when the files do.

    The constructor reads the files, and raises SettingsError if they cannot be used.
    """

    def __init__(self, settings: Settings, *, wall: Clock) -> None:
        given = {
            "upstream_cacert": settings.upstream_cacert,
            "upstream_cert": settings.upstream_cert,
            "upstream_key": settings.upstream_key,
        }
        files = {name: path for name, path in given.items() if path is not None}

        def parse(*data: bytes) -> ssl.SSLContext:
            return _upstream_context(dict(zip(files, data, strict=True)), wall())

        self.files = WatchedFiles(files, parse, MAX_FILE, "the TLS files for the upstream") if files else None
        self._default = ssl.create_default_context() if self.files is None else self.files.value

    @property
    def context(self) -> ssl.SSLContext:
        """The context for the next connection."""
        return self._default if self.files is None else self.files.value


def _upstream_context(data: Mapping[str, bytes], now: float) -> ssl.SSLContext:
    cas = certificates(data["upstream_cacert"]) if "upstream_cacert" in data else None
    try:
        if cas == "":  # OpenSSL would trust the system's CAs instead
            raise ValueError
        context = ssl.create_default_context(cadata=cas)
    except (ssl.SSLError, ValueError):
        raise FileError("has no CA in PEM form", "upstream_cacert") from None
    if "upstream_cert" in data:
        chain, key = data["upstream_cert"], data["upstream_key"]
        _check(chain, key, now, ("upstream_cert", "upstream_key"))
        _load(context, chain, key, "upstream_cert")
    return context


def _check(chain: bytes, key: bytes, now: float | None, settings: tuple[str, str]) -> float:
    """Check what OpenSSL would report in its own words, or not at all. Return when the certificate expires.

    *now*: None if the dates of the certificate do not matter.
    """
    cert_setting, key_setting = settings
    # Only a gateway with TLS pays for the import of cryptography, 0.1 s.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificates

    try:
        leaf = load_pem_x509_certificates(chain)[0]
        certified = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise FileError("has no certificate in PEM form, or a damaged one", cert_setting) from None
    try:
        owned: Any = load_pem_private_key(key, None)
    except TypeError:
        why = "the key is encrypted; store it without a password, readable by the gateway alone"
        raise FileError(why, key_setting) from None
    except (ValueError, UnsupportedAlgorithm):
        raise FileError("has no private key in PEM form, or a damaged one", key_setting) from None
    if owned.public_key() != certified:
        raise FileError(
            f"the key does not belong to the first certificate in GATEWAY_{cert_setting.upper()}", key_setting
        )
    begins, expires = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    if now is not None and expires <= now:
        raise FileError(f"the certificate expired at {rfc3339(expires)}; renew it", cert_setting)
    if now is not None and begins > now + SKEW:
        raise FileError(f"the certificate is valid from {rfc3339(begins)} only", cert_setting)
    return expires


def _pem(client_ca: bytes) -> Iterator[str]:
    """Return the certificates of *client_ca* alone: such files often have comments that are not ASCII."""
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509 import load_pem_x509_certificates

    try:
        for certificate in load_pem_x509_certificates(client_ca):
            yield certificate.public_bytes(Encoding.PEM).decode()
    except ValueError:
        raise FileError("has no certificate in PEM form, or a damaged one", "tls_client_ca") from None


def _context(chain: bytes, key: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # No session resumption: see the module. These two are the tickets of TLS 1.3 and of TLS 1.2.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    # A client of TLS 1.2 could otherwise make the gateway pay for any number of handshakes on one connection.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _load(context, chain, key, "tls_cert")
    return context


def _load(context: ssl.SSLContext, chain: bytes, key: bytes, setting: str) -> None:
    with _readable(chain) as chain_path, _readable(key) as key_path:
        try:
            context.load_cert_chain(chain_path, key_path, password=lambda: "")
        except ssl.SSLError as error:
            raise FileError(f"OpenSSL refuses the certificate: {error.reason}", setting) from None


@contextlib.contextmanager
def _readable(data: bytes) -> Iterator[str]:
    """Give *data* the name of a file: ``load_cert_chain`` takes nothing else.

    It must not read the original files: they may have changed since they were checked. On Linux the copy is in memory,
    because a container may have no folder to write to.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("tls")
        try:
            os.write(descriptor, data)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            yield file.name
