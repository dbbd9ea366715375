"""Gateways that follow gateways (``--upstream``), with a real etcd below all of them."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from app.core.versions import progress_is_trusted
from tests.integration.test_faults import Follower, becomes, follow
from tests.integration.test_operations import commands
from tests.integration.test_release import WATCHERS
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import QUICK, STALE_SOON, UNPROVEN_SOON, GatewayProcess, gateway, orderly, start
from tests.support.metrics import etcd_metric
from tests.support.proxy import proxy
from tests.support.streams import watch
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd

# A port of this machine where nothing listens.
NOWHERE = "http://127.0.0.1:9"


@asynccontextmanager
async def edge(*upstreams: str, **settings: str) -> AsyncIterator[GatewayProcess]:
    """A gateway that follows other gateways."""
    chosen = {**QUICK, "GATEWAY_PORT": "0", "GATEWAY_UPSTREAM": ",".join(upstreams), **settings}
    async with orderly(await start(settings=chosen)) as running:
        yield running


@pytest.mark.one_etcd
async def test_the_commands_of_the_operations_page(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A root and an edge start with the flags of the page, on other ports."""
    await kv.put("/svc/a", "1")
    lines = commands("tiers").splitlines()
    flags = [shlex.split(line, comments=True)[2:] for line in lines]
    assert [line.split()[:2] for line in lines] == [["etcd-watch-gateway", "serve"]] * 2
    url = etcd.endpoint
    async with AsyncExitStack() as stack:
        for chosen in flags:
            given = [url if flag.startswith("http://") else "0" if flag.isdecimal() else flag for flag in chosen]
            running = await start(*given, settings=QUICK)
            stack.push_async_callback(running.stop)
            await running.listening()
            url = running.base
        await eventually(lambda: ready(running))
        (follower,) = await stack.enter_async_context(follow(url, 1))
        await agree(follower, kv)
        assert follower.stream.headers["x-gateway-tier"] == "1"


async def readiness(server: GatewayProcess) -> dict[str, object]:
    """The body of ``/readyz``."""
    async with httpx.AsyncClient(base_url=server.base) as http:
        found: dict[str, object] = (await http.get("/readyz")).json()
        return found


async def ready(server: GatewayProcess) -> bool:
    """Whether the gateway is ready."""
    return (await readiness(server))["status"] == "ok"


async def agree(follower: Follower, kv: EtcdClient, prefix: str = "/svc/") -> None:
    """Wait until a mirror equals etcd."""

    async def equal() -> bool:
        return follower.holds((await kv.state(prefix))[1])

    await eventually(equal)


@pytest.mark.one_etcd
async def test_two_tiers_hold_one_watch(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """What is written is read through two tiers; etcd sees one watch, and none after the clients have left."""
    async with AsyncExitStack() as stack:
        root = await stack.enter_async_context(gateway(etcd.endpoint))
        near = [await stack.enter_async_context(edge(root.base)) for _ in range(2)]
        far = await stack.enter_async_context(edge(near[0].base, near[1].base))
        await kv.put("/svc/a", "1")
        async with AsyncExitStack() as clients:
            mirrors = [
                follower
                for server in (root, *near, far)
                for follower in await clients.enter_async_context(follow(server.base, 2))
            ]
            await kv.put("/svc/b", "2")
            await kv.delete("/svc/a")
            for follower in mirrors:
                await agree(follower, kv)
            assert await etcd_metric(etcd.endpoint, WATCHERS) == 1
            assert [follower.stream.headers["x-gateway-tier"] for follower in mirrors[::2]] == ["0", "1", "1", "2"]

        async def none() -> bool:
            return await etcd_metric(etcd.endpoint, WATCHERS) == 0

        await eventually(none)


@pytest.mark.one_etcd
async def test_a_cursor_is_valid_on_every_tier(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A client goes from one tier to the other, and back, without a reset; so it does when an edge is a new one."""
    await kv.put("/svc/a", "1")
    # The root keeps its log while the new edge starts: on some etcds it may not read a quiet range's history.
    lasting = {"GATEWAY_LINGER": "60s"}
    async with gateway(etcd.endpoint, settings=lasting) as root, edge(root.base) as near:
        cursor, seen = "", []
        for number, base in enumerate([near.base, root.base, near.base]):
            async with await watch(base, f"prefix=/svc/&last_event_id={cursor}") as stream:
                await stream.until("synced")
                await kv.put("/svc/a", f"{number}")
                seen.append((await stream.until("put"))[-1].data["value"])
                cursor = stream.last_id or ""
        written = await kv.put("/svc/a", "missed")  # which the root may not have yet
        resumed = f"prefix=/svc/&last_event_id={cursor}&min_revision={written}"
        async with edge(root.base) as new, await watch(new.base, resumed) as stream:
            events = await stream.until("synced")
    assert seen == ["0", "1", "2"]
    assert [(event.type, event.data.get("value")) for event in events] == [("put", "missed"), ("synced", None)]


@pytest.mark.one_etcd
async def test_an_edge_goes_on_after_its_root(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """Whether the root ends, is killed or is another one: what was written meanwhile comes, and nothing is reset."""
    await kv.put("/svc/a", "1")
    async with AsyncExitStack() as stack:
        roots = [await stack.enter_async_context(gateway(etcd.endpoint)) for _ in range(2)]
        between = await stack.enter_async_context(proxy(roots[0].base))
        near = await stack.enter_async_context(edge(between.endpoint))
        (follower,) = await stack.enter_async_context(follow(near.base, 1))
        for target in (roots[1].base, roots[0].base):
            between.lead_to(target)
            between.cut()
            await kv.put("/svc/b", target)
            await kv.delete("/svc/a")
            between.heal()
            await agree(follower, kv)
            await kv.put("/svc/a", "again")
        await agree(follower, kv)
        assert follower.mirror.resets == ["initial"]


@pytest.mark.one_etcd
async def test_the_reason_of_a_reset_passes_down(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """What the root cannot continue, the edge does not continue either, and says the root's reason."""
    await kv.put("/svc/a", "1")
    async with AsyncExitStack() as stack:
        # The new root has no log, and may not read etcd's history.
        roots = [
            await stack.enter_async_context(gateway(etcd.endpoint, settings={"GATEWAY_REACH_BACK": "0"}))
            for _ in range(2)
        ]
        between = await stack.enter_async_context(proxy(roots[0].base))
        near = await stack.enter_async_context(edge(between.endpoint))
        (follower,) = await stack.enter_async_context(follow(near.base, 1))
        between.lead_to(roots[1].base)
        between.cut()
        for number in range(3):
            await kv.put("/svc/b", f"{number}")
        between.heal()
        await agree(follower, kv)
        assert follower.mirror.resets == ["initial", "lagged"]


@pytest.mark.one_etcd
async def test_stale_at_the_root_is_stale_at_the_edge(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """An edge is never more confident than its root, nor with a root that is silent."""
    await kv.put("/svc/a", "1")
    async with AsyncExitStack() as stack:
        to_etcd = await stack.enter_async_context(proxy(etcd.endpoint))
        root = await stack.enter_async_context(gateway(to_etcd.endpoint, settings=STALE_SOON))
        to_root = await stack.enter_async_context(proxy(root.base))
        near = await stack.enter_async_context(edge(to_root.endpoint, **STALE_SOON))
        (follower,) = await stack.enter_async_context(follow(near.base, 1))
        for cut in (to_etcd, to_root):
            await becomes(follower, "live")
            cut.freeze()
            await becomes(follower, "stale")
            cut.heal()
        await becomes(follower, "live")
        await kv.put("/svc/a", "2")
        await agree(follower, kv)
        assert follower.mirror.resets == ["initial"]


@pytest.mark.one_etcd
async def test_an_edge_of_a_root_that_is_stale_is_not_live(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A stream that begins while etcd is away gets what the root has, and is told at once that it is stale."""
    await kv.put("/svc/a", "1")
    async with AsyncExitStack() as stack:
        to_etcd = await stack.enter_async_context(proxy(etcd.endpoint))
        root = await stack.enter_async_context(gateway(to_etcd.endpoint, settings=STALE_SOON))
        (at_root,) = await stack.enter_async_context(follow(root.base, 1))
        to_etcd.cut()
        await becomes(at_root, "stale")
        near = await stack.enter_async_context(edge(root.base, **STALE_SOON))
        await eventually(lambda: ready(near))
        (follower,) = await stack.enter_async_context(follow(near.base, 1))
        await eventually(lambda: has_said(follower, "stale"))
        to_etcd.heal()
        await becomes(follower, "live")
        await agree(follower, kv)


async def has_said(follower: Follower, state: str) -> bool:
    """Whether the stream has said so."""
    return state in follower.states


@pytest.mark.trust
async def test_read_and_then_watch_on_a_quiet_range(
    etcd: EmbeddedEtcd, kv: EtcdClient, version: tuple[int, int, int]
) -> None:
    """The cursor of a read is ahead of a quiet range. The root proves at once that nothing lies between, if it can."""
    await kv.put("/svc/a", "1")
    trusted = progress_is_trusted(version)
    hasty = {} if trusted else UNPROVEN_SOON
    async with AsyncExitStack() as stack:
        root = await stack.enter_async_context(gateway(etcd.endpoint, settings={**hasty, "GATEWAY_HEARTBEAT": "60s"}))
        near = await stack.enter_async_context(edge(root.base, **hasty))
        await stack.enter_async_context(follow(near.base, 1))
        await kv.put("/other", "1")
        async with httpx.AsyncClient() as http:
            cursor = (await http.get(f"{near.base}/v1/kv?prefix=/svc/")).json()["cursor"]
        stream = await stack.enter_async_context(await watch(near.base, f"prefix=/svc/&last_event_id={cursor}"))
        events = await stream.until("synced")
        assert [event.data.get("reason") for event in events] == ([None] if trusted else ["unproven", None, None])


@pytest.mark.one_etcd
async def test_gateways_that_follow_each_other_are_never_ready(etcd: EmbeddedEtcd) -> None:
    """A loop has no tier. An edge whose root is replaced by a gateway of its own tier does not follow that."""
    async with AsyncExitStack() as stack:
        root = await stack.enter_async_context(gateway(etcd.endpoint))
        near = await stack.enter_async_context(edge(root.base))
        between = await stack.enter_async_context(proxy(root.base))
        other = await stack.enter_async_context(edge(between.endpoint))
        loop = await stack.enter_async_context(proxy(NOWHERE))
        circle = await stack.enter_async_context(edge(loop.endpoint))
        loop.lead_to(circle.base)
        for server in (near, other):
            await eventually(lambda server=server: ready(server))  # type: ignore[misc]
        between.lead_to(near.base)
        between.cut()
        between.heal()
        await eventually(lambda: names(other, "only a lower tier may be followed"))
        await eventually(lambda: names(circle, "it is not of a gateway"))
        assert not await ready(circle)


async def names(server: GatewayProcess, text: str) -> bool:
    """Whether ``/readyz`` gives this reason."""
    return text in str(await readiness(server))


@pytest.mark.one_etcd
async def test_there_are_at_most_three_tiers_of_edges(etcd: EmbeddedEtcd) -> None:
    """Each tier adds to the time that a change takes."""
    async with AsyncExitStack() as stack:
        last = await stack.enter_async_context(gateway(etcd.endpoint))
        for _ in range(3):
            last = await stack.enter_async_context(edge(last.base))
            await eventually(lambda: ready(last))  # noqa: B023  # called before the next one is made
        too_far = await stack.enter_async_context(edge(last.base))
        await eventually(lambda: names(too_far, "of tier 3"))


@pytest.mark.one_etcd
async def test_tiers_with_different_epochs_do_not_serve(etcd: EmbeddedEtcd) -> None:
    """Otherwise a cursor of one tier would be of no use on the other, and nobody would know why."""
    async with gateway(etcd.endpoint) as root, edge(root.base, GATEWAY_EPOCH="2") as near:
        await eventually(lambda: names(near, "give all tiers the same GATEWAY_EPOCH"))


@pytest.mark.one_etcd
async def test_a_token_for_the_upstream(etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path) -> None:
    """An edge is one client of its root: with its own token, and its own clients need none."""
    await kv.put("/svc/a", "1")
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("right")
    bad.write_text("wrong")
    async with AsyncExitStack() as stack:
        root = await stack.enter_async_context(gateway(etcd.endpoint, settings={"GATEWAY_TOKEN_FILE": str(good)}))
        near = await stack.enter_async_context(edge(root.base, GATEWAY_UPSTREAM_TOKEN_FILE=str(good)))
        refused = await stack.enter_async_context(edge(root.base, GATEWAY_UPSTREAM_TOKEN_FILE=str(bad)))
        (follower,) = await stack.enter_async_context(follow(near.base, 1))
        await agree(follower, kv)
        await eventually(lambda: names(refused, "401"))
        bad.write_text("right")
        await eventually(lambda: ready(refused))


@pytest.mark.one_etcd
async def test_reads_are_passed_up(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A read at an edge has the bytes of the root's answer: lists, pages, keys, absent keys, tags, refusals."""
    for name in "abc":
        await kv.put(f"/svc/{name}", name)
    async with gateway(etcd.endpoint) as root, edge(root.base) as near, httpx.AsyncClient() as http:
        await eventually(lambda: ready(near))
        page = (await http.get(f"{root.base}/v1/kv?prefix=/svc/&limit=1")).json()["next_page"]
        for query in (
            "prefix=/svc/",
            "key=/svc/a",
            "key=/svc/absent",
            "prefix=/svc/&count_only=1",
            "prefix=/svc/&keys_only=1&limit=2",
            "prefix=/svc/&key=/other",
            f"prefix=/svc/&limit=1&page={page}",
            "prefix=/svc/&encoding=base64",
        ):
            answers = [await http.get(f"{server.base}/v1/kv?{query}") for server in (root, near)]
            assert answers[0].content == answers[1].content, query
            assert (
                len({(one.status_code, one.headers.get("etag"), one.headers["x-etcd-revision"]) for one in answers})
                == 1
            )
        tag = (await http.get(f"{root.base}/v1/kv?prefix=/svc/")).headers["etag"]
        same = await http.get(f"{near.base}/v1/kv?prefix=/svc/", headers={"If-None-Match": tag})
        late = await http.get(f"{near.base}/v1/kv?prefix=/svc/&page=rubbish")
        assert (same.status_code, late.status_code) == (304, 400)
        root_state = await http.get(f"{near.base}/v1/kv?prefix=/svc/&consistency=feed")
        assert root_state.headers["x-gateway-state"] == "live"


@pytest.mark.one_etcd
@pytest.mark.parametrize(
    ("policies", "workers"),
    [(1, {}), (2, {}), (2, {"GATEWAY_WORKERS": "2"})],
    ids=["root", "root-and-edge", "root-and-workers"],
)
async def test_a_page_of_an_edges_memory_is_read_on_at_the_root(
    etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path, policies: int, workers: dict[str, str]
) -> None:
    """The edge has made the token, and so it has no reader of the root. After a change only the root has the page."""
    written = 0
    for name in "abc":
        written = await kv.put(f"/svc/{name}", "1")
    (tmp_path / "policy").write_text("roles: {r: {read: ['/svc/']}}\nanonymous: [r]")
    guarded = {"GATEWAY_POLICY_FILE": str(tmp_path / "policy")}
    settings = {**workers, **(guarded if policies == 2 else {})}
    async with (
        gateway(etcd.endpoint, settings=guarded) as root,
        edge(root.base, **settings) as near,
        httpx.AsyncClient(base_url=near.base) as http,
    ):
        await eventually(lambda: ready(near))
        target = "/v1/kv?prefix=/svc/&consistency=feed"
        first = (await http.get(f"{target}&limit=1&min_revision={written}")).json()
        later = await kv.put("/svc/c", "2")
        assert (await http.get(f"{target}&min_revision={later}")).json()["kvs"][2]["value"] == "2"
        for consistency in ("feed", "linearizable"):
            rest = await http.get(f"/v1/kv?prefix=/svc/&page={first['next_page']}&consistency={consistency}")
            assert rest.status_code == 200, rest.text
            assert rest.json()["revision"] == first["revision"] == written
            assert [(one["key"], one["value"]) for one in rest.json()["kvs"]] == [("/svc/b", "1"), ("/svc/c", "1")]
