"""Reads of ``/v1/kv`` that count for their caller's quotas: from the first Range until the client has the answer."""

from __future__ import annotations

import asyncio
import gc

import httpx
import pytest
from starlette.responses import Response

from app.api.counted_read import CountedRead
from app.api.kv_response import KvBody, KvResponse
from app.core.budget import Budget, Use
from app.core.errors import OverCapacityError
from app.core.quotas import Caller, Quotas, QuotaSettings
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.api.test_kv_response import Client
from tests.support.asgi_client import http_scope
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import HANG, eventually

CALLER = Caller("token:dash", "192.0.2.7")


@pytest.fixture(name="quotas")
def _quotas() -> Quotas:
    return Quotas(QuotaSettings(identity_reads=1, address_reads=1))


def response_of(size: int) -> KvResponse:
    """An answer with a body."""
    body = KvBody(7, [size * b"x"], Budget(1 << 20).hold(Use.ANSWER))
    return KvResponse(body, {}, "", send_timeout=HANG)


def counted(quotas: Quotas) -> tuple[int, int]:
    """How many reads count for identities, and for addresses."""
    return quotas.identities.reading, quotas.addresses.reading


async def test_until_the_client_has_the_answer(quotas: Quotas) -> None:
    """However slowly it takes it: the answer's bytes count in the memory of all answers until then."""
    with CountedRead(quotas.begin_read(CALLER)) as reading:
        response = reading.until_sent(response_of(1000))
    client = Client(takes=False)
    sending = asyncio.create_task(response(http_scope("/v1/kv"), client.receive, client.send))
    await asyncio.sleep(0)
    assert counted(quotas) == (1, 1)
    with pytest.raises(OverCapacityError, match="GATEWAY_ADDRESS_READS is 1: wait for one of them"):
        quotas.begin_read(CALLER)
    client.takes.set()
    await sending

    assert counted(quotas) == (0, 0)
    del response
    assert counted(quotas) == (0, 0)


async def test_an_answer_that_is_never_sent(quotas: Quotas) -> None:
    """Its client may be gone before."""
    with CountedRead(quotas.begin_read(CALLER)) as reading:
        response = reading.until_sent(response_of(1))
    assert counted(quotas) == (1, 1)
    del response
    gc.collect()

    assert counted(quotas) == (0, 0)


def test_what_has_no_body_is_over_at_once(quotas: Quotas) -> None:
    """A 304, and an error."""
    with CountedRead(quotas.begin_read(CALLER)) as reading:
        reading.until_sent(Response(None, 304))
    assert counted(quotas) == (0, 0)
    with pytest.raises(ZeroDivisionError), CountedRead(quotas.begin_read(CALLER)):
        raise ZeroDivisionError
    assert counted(quotas) == (0, 0)


def test_without_quotas() -> None:
    """Nothing is counted."""
    with CountedRead(None) as reading:
        response = response_of(1)
        assert reading.until_sent(response) is response


@pytest.mark.parametrize("setting", ["identity_reads", "address_reads"])
async def test_one_client_does_not_use_up_the_reads_of_all(fake: FakeEtcd, setting: str) -> None:
    """Further reads of the same caller are refused, from memory too; those of another address go on."""
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": HANG, setting: 2}))
    quotas = gateway.registry.quotas
    assert quotas is not None

    def client(host: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(create_app(gateway=gateway), client=(host, 4711))
        return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=HANG)

    async def two() -> bool:
        return max(counted(quotas)) == 2

    async with gateway.running(), client("192.0.2.7") as http, client("192.0.2.8") as other:
        assert (await http.get("/v1/kv?prefix=/svc/&consistency=feed")).status_code == 200
        fake.hold_ranges()
        reading = [asyncio.create_task(http.get(f"/v1/kv?prefix=/{name}")) for name in ("a", "b")]
        await eventually(two)
        for query in ("prefix=/svc/", "prefix=/svc/&consistency=feed"):
            refused = await http.get(f"/v1/kv?{query}")
            assert (refused.status_code, refused.json()["code"]) == (429, setting.replace("_", "-"))
            assert int(refused.headers["retry-after"]) >= 1
        assert gateway.streams.counters.refused[setting.replace("_", "-")] == 2
        if setting == "address_reads":
            assert (await other.get("/v1/kv?prefix=/svc/&consistency=feed")).status_code == 200
        fake.release_ranges()
        assert [answer.status_code for answer in await asyncio.gather(*reading)] == [200, 200]
        assert (await http.get("/v1/kv?prefix=/svc/")).status_code == 200
    assert counted(quotas) == (0, 0)
