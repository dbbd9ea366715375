"""What a client trusts, and its own certificate. Files are read again when they have changed."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import httpx

File = str | Path
# A file with the certificates to trust, or a whole TLS context; None is what httpx trusts.
Trust = File | ssl.SSLContext | None

CONNECT_TIMEOUT = 10.0  # seconds; then the next gateway is tried


def make_context(ca: File | None, cert: File | None = None, key: File | None = None) -> ssl.SSLContext:
    """Return a TLS context, or raise OSError, which names the file that cannot be used.

    *ca*: the certificates to trust instead of the system's. *cert*: the client's own, with *key* in a file of its own.
    """
    # OpenSSL names no file in its errors, so each file is opened here first.
    for path in (ca, cert, key):
        if path is not None:
            Path(path).open("rb").close()
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        msg = f"{ca}: no certificate to trust, in PEM form: {error.reason or error}"
        raise OSError(msg) from None
    if cert is not None:
        try:
            context.load_cert_chain(cert, key, password=lambda: "")  # an encrypted key is an error, not a prompt
        except ssl.SSLError as error:
            files = cert if key is None else f"{cert} and {key}"
            msg = f"{files}: not a certificate and its key, in PEM form, not encrypted: {error.reason or error}"
            raise OSError(msg) from None
    return context


class Http:
    """The HTTP client of a mirror. After a change of its files a new one takes its place, for the next stream."""

    def __init__(
        self,
        ca: Trust = None,
        cert: File | None = None,
        key: File | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if isinstance(ca, ssl.SSLContext) and cert is not None:
            msg = "pass either an SSLContext as ca, with the client's certificate in it, or files as ca, cert and key"
            raise ValueError(msg)
        if key is not None and cert is None:
            msg = "a key needs cert, the certificate that it belongs to"
            raise ValueError(msg)
        self._ca, self._cert, self._key = ca, cert, key
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._stamp: list[tuple[int, int, int]] = []

    async def client(self) -> httpx.AsyncClient:
        """Return the present client. Raises OSError at the first time, if a file cannot be used."""
        try:
            stamp = self._look()
            if self._client is not None and stamp == self._stamp:
                return self._client
            fresh = self._make()
        except OSError:
            if self._client is None:
                raise
            return self._client  # the files are being replaced; what was read before is still valid
        await self.aclose()
        self._client, self._stamp = fresh, stamp
        return fresh

    async def aclose(self) -> None:
        """Close the client. Idempotent. Connections that fail once more while they are closed are closed."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                await client.aclose()

    def _look(self) -> list[tuple[int, int, int]]:
        files = [one for one in (self._ca, self._cert, self._key) if isinstance(one, (str, Path))]
        found = [Path(file).stat() for file in files]
        return [(one.st_mtime_ns, one.st_ino, one.st_size) for one in found]

    def _make(self) -> httpx.AsyncClient:
        verify: ssl.SSLContext | bool = True
        if isinstance(self._ca, ssl.SSLContext):
            verify = self._ca
        elif self._ca is not None or self._cert is not None:
            verify = make_context(self._ca, self._cert, self._key)
        # A stream may be silent, so only connecting has a timeout; `messages` notices a silence that is too long.
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT)
        return httpx.AsyncClient(verify=verify, timeout=timeout, transport=self._transport)
