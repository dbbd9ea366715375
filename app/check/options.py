"""The flags of ``check``."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..access.token import read_token
from ..settings import SettingsError
from .client import TlsFiles


@dataclass(frozen=True, slots=True)
class Options:
    """The command's flags. URLs do not end with a slash."""

    prefix: bytes
    url: str
    admin_url: str
    etcd_metrics: tuple[str, ...]  # if empty: the endpoint that the gateway reports
    token: str
    streams: int
    rounds: int
    timeout: float
    tls: ssl.SSLContext | None = None  # None: the system's CAs
    through: str = ""  # "": prove the release; else measure what is before this URL
    put: str = ""  # a shell command that changes a key of the prefix
    lasting: float = 0.0  # seconds; at least three heartbeats are followed
    json: bool = False

    @property
    def authorization(self) -> dict[str, str]:
        """The header for the gateway, not for etcd."""
        # The token is UTF-8, but the client encodes headers as Latin-1. Decoded as Latin-1 here, the token is sent as
        # its original bytes.
        token = self.token.encode(errors="surrogateescape").decode("latin-1")
        return {"Authorization": f"Bearer {token}"} if token else {}


def options_of(flags: dict[str, Any]) -> Options:
    """Return the options of the command line. Raises SettingsError if a flag or a file cannot be used."""
    url = flags["url"].rstrip("/")
    token_file: Path | None = flags["token_file"]
    for name in ("put", "for"):
        if flags[name] and not flags["through"]:
            raise SettingsError(f"--{name}: needs --through, the URL of the proxy")
    return Options(
        prefix=os.fsencode(flags["prefix"]),
        url=url,
        admin_url=(flags["admin_url"] or url).rstrip("/"),
        etcd_metrics=tuple(part.strip() for each in flags["etcd_metrics"] for part in each.split(",") if part.strip()),
        token=read_token(token_file, "--token-file").get_secret_value() if token_file else "",
        streams=flags["streams"],
        rounds=flags["rounds"],
        timeout=flags["timeout"],
        tls=_tls(TlsFiles(flags["cacert"], flags["cert"], flags["key"])),
        through=flags["through"].rstrip("/"),
        put=flags["put"],
        lasting=flags["for"],
        json=flags["json"],
    )


def _tls(files: TlsFiles) -> ssl.SSLContext | None:
    if files.key is not None and files.cert is None:
        raise SettingsError("--key: needs --cert, the certificate of the key")
    return files.context() if files != TlsFiles() else None
