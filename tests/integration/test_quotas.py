"""The quotas of identities and addresses, in front of a real etcd: who is at a quota harms nobody else."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import etcd_client
from tests.support.gateway import GatewayProcess, gateway
from tests.support.metrics import etcd_metric, gateway_metric
from tests.support.streams import Stream, request, watch
from tests.support.waiting import HANG, eventually

pytestmark = [pytest.mark.etcd, pytest.mark.one_etcd]

WATCHERS = "etcd_debugging_mvcc_watcher_total"
# More than the quota, so that every further connection is refused.
FLOOD, QUOTA = 200, 10


def code(answer: Stream) -> str:
    """The code of a problem."""
    return str(json.loads(answer.body)["code"])


async def refused(http: httpx.AsyncClient, reason: str) -> float:
    """How many streams were refused for *reason*."""
    return await gateway_metric_of(http, f'refusals_total{{reason="{reason}"}}')


async def gateway_metric_of(http: httpx.AsyncClient, series: str) -> float:
    """The value of one series of a gateway."""
    answer = await http.get("/metrics")
    (found,) = [line for line in answer.text.splitlines() if line.startswith(f"etcd_watch_gateway_{series} ")]
    return float(found.rpartition(" ")[2])


async def test_one_identity_at_its_quota(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """An identity that is at its quota, from whatever address, is refused by name; another identity is served."""
    tokens = {name: f"{name}-token-0123456789" for name in ("greedy", "modest")}
    lines = [
        f"  - {{name: {name}, sha256: {sha256(token.encode()).hexdigest()}, roles: [operator]}}\n"
        for name, token in tokens.items()
    ]
    (tmp_path / "tokens.yaml").write_text("tokens:\n" + "".join(lines))
    settings = {
        "GATEWAY_TOKENS_FILE": str(tmp_path / "tokens.yaml"),
        "GATEWAY_IDENTITY_STREAMS": "3",
        "GATEWAY_IDENTITY_SELECTIONS": "2",
    }

    def sent(name: str, address: str = "203.0.113.7", accept: str = "*/*") -> dict[str, str]:
        return {"Authorization": f"Bearer {tokens[name]}", "X-Forwarded-For": address, "Accept": accept}

    async with gateway(etcd.endpoint, settings=settings) as server, AsyncExitStack() as stack:
        target = f"{server.base}/v1/watch?prefix="
        for query in ("prefix=/a/", "prefix=/b/", "prefix=/a/"):
            await stack.enter_async_context(await watch(server.base, query, sent("greedy")))
        at_streams = await request(f"{target}/a/", sent("greedy", "203.0.113.8"))
        assert (at_streams.status, code(at_streams)) == (429, "identity-streams")
        assert int(at_streams.headers["retry-after"]) >= 1
        await at_streams.close()
        for query in ("prefix=/c/", "prefix=/d/"):
            stream = await stack.enter_async_context(await watch(server.base, query, sent("modest")))
            await stream.until("synced")
        at_selections = await request(f"{target}/e/", sent("modest"))
        assert (at_selections.status, code(at_selections)) == (429, "identity-selections")
        await at_selections.close()
        async with await watch(server.base, "prefix=/c/", sent("modest")) as again:
            await again.until("synced")
        headers = {"Authorization": f"Bearer {tokens['modest']}"}
        async with httpx.AsyncClient(base_url=server.base, headers=headers, trust_env=False) as http:
            assert await refused(http, "identity-streams") == 1
            assert await refused(http, "identity-selections") == 1
            assert await refused(http, "address-joins") == 0
            assert "greedy" not in (await http.get("/metrics")).text


async def test_an_event_source_is_refused_in_its_stream(etcd: EmbeddedEtcd) -> None:
    """A 429 would end an EventSource for good: it gets its retry delay, and `close` with the reason."""
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_ADDRESS_STREAMS": "1"}) as server,
        await watch(server.base, "prefix=/a/"),
        await watch(server.base, "prefix=/a/", {"Accept": "text/event-stream"}) as second,
    ):
        closed = await second.next_event()
        assert closed is not None
        assert (closed.type, closed.data["reason"]) == ("close", "overloaded")
        assert second.retry is not None


async def test_short_prefixes(etcd: EmbeddedEtcd) -> None:
    """A prefix below GATEWAY_MIN_PREFIX is refused for good, for streams and for reads."""
    async with gateway(etcd.endpoint, settings={"GATEWAY_MIN_PREFIX": "3"}) as server:
        for path in ("/v1/watch", "/v1/kv"):
            answer = await request(f"{server.base}{path}?prefix=/a", {"Accept": "text/event-stream"})
            assert (answer.status, code(answer)) == (400, "prefix-too-short")
            await answer.close()
        async with httpx.AsyncClient(base_url=server.base, trust_env=False) as http:
            assert (await http.get("/v1/kv?prefix=/a/")).status_code == 200
            assert await refused(http, "prefix-too-short") == 1


async def flood(server: GatewayProcess, address: str) -> tuple[list[Stream], list[Stream]]:
    """Open FLOOD connections at once, each for a range of its own; return who was served and who was refused."""
    headers = {"X-Forwarded-For": address}
    answers = await asyncio.gather(
        *(request(f"{server.base}/v1/watch?prefix=/flood/{number}/", headers) for number in range(FLOOD))
    )
    return [one for one in answers if one.status == 200], [one for one in answers if one.status != 200]


async def test_a_flood_leaves_others_unharmed(etcd: EmbeddedEtcd) -> None:
    """Two addresses open as many streams as they may, of ranges that they choose, and ask for more. Meanwhile another
    address follows every change, joins, and reads. What the flood held is released, and its quota is free again.
    """
    settings = {
        "GATEWAY_ADDRESS_STREAMS": str(QUOTA),
        "GATEWAY_MAX_SUBSCRIBERS": str(3 * QUOTA),
        "GATEWAY_MAX_FEEDS": str(3 * QUOTA),
    }
    user = {"X-Forwarded-For": "198.51.100.1"}
    async with (
        gateway(etcd.endpoint, settings=settings) as server,
        etcd_client(etcd.endpoint) as client,
        httpx.AsyncClient(base_url=server.base, headers=user, trust_env=False, timeout=HANG) as http,
        await watch(server.base, "prefix=/svc/", user) as fast,
    ):
        await fast.until("synced")
        attacks = [asyncio.create_task(flood(server, address)) for address in ("203.0.113.1", "2001:db8::1")]
        for number in range(20):
            await client.put("/svc/a", str(number))
            (put,) = await fast.changes(1)
            assert put.data["value"] == str(number)
        floods = [await attack for attack in attacks]
        for served, others in floods:
            assert len(served) == QUOTA
            assert {(one.status, code(one)) for one in others} == {(429, "address-streams")}
        assert await gateway_metric(http, "subscribers") == 2 * QUOTA + 1
        assert await refused(http, "address-streams") == 2 * (FLOOD - QUOTA)
        assert await refused(http, "too-many-subscribers") == await refused(http, "too-many-feeds") == 0
        other = await request(f"{server.base}/v1/watch?prefix=/a/", {"X-Forwarded-For": "2001:db8::2"})
        assert code(other) == "address-streams"  # the same /64
        await other.close()
        async with await watch(server.base, "prefix=/new/", user) as joins:
            await joins.until("synced")
        assert (await http.get("/v1/kv?prefix=/svc/")).status_code == 200
        for one in [*floods[0][0], *floods[0][1], *floods[1][0], *floods[1][1]]:
            await one.close()

        async def only_the_user() -> bool:
            return await etcd_metric(etcd.endpoint, WATCHERS) == 1

        await eventually(only_the_user)
        async with await watch(server.base, "prefix=/flood/", {"X-Forwarded-For": "203.0.113.1"}) as back:
            await back.until("synced")
