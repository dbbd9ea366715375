"""What the check reads from the counts of a gateway and etcd, and what it cannot read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from app.check.client import Client, UnreachableError
from app.check.samples import Metrics, Sampler
from app.check.verdict import EtcdCounts

ADMIN = "http://gateway:8080"
GATEWAY = """\
process_start_time_seconds 12.345
etcd_watch_gateway_etcd_reconnects_total 1
etcd_watch_gateway_streams_opened_total {opened}
etcd_watch_gateway_feeds{{state="live"}} 2
etcd_watch_gateway_feeds{{state="opening"}} 1
etcd_watch_gateway_etcd_watchers 4
etcd_watch_gateway_etcd_watch_streams 2
etcd_watch_gateway_etcd_history_watchers 1
etcd_watch_gateway_subscribers 7
etcd_watch_gateway_streams{{format="sse"}} 2
etcd_watch_gateway_streams{{format="ndjson"}} 4
"""
ETCD = "etcd_debugging_mvcc_watcher_total {watchers}\netcd_debugging_mvcc_watch_stream_total 3\n"


class World(Client):
    """A fake HTTP client: the answer of each URL, and the URLs that were sent a header."""

    def __init__(self) -> None:
        self.feeds: Any = {"linger": 30, "instance": "gw", "etcd": {"endpoint": "http://etcd:2379"}, "feeds": []}
        self.pages = {f"{ADMIN}/metrics": GATEWAY.format(opened=9), "http://etcd:2379/metrics": ETCD.format(watchers=5)}
        self.told: set[str] = set()

    async def get(self, url: str, headers: Mapping[str, str]) -> bytes:
        """Return the answer of *url*, as HTTP would."""
        if headers:
            self.told.add(url)
        if url == f"{ADMIN}/v1/feeds?prefix=/svc/":
            return json.dumps(self.feeds).encode()
        if url not in self.pages:
            raise UnreachableError(f"{url}: 404 no-such-path: nothing is here")
        return self.pages[url].encode()

    def follow(self, *subscribers: tuple[str, str]) -> None:
        """Set the range's subscribers: request id and address."""
        listed = [{"request_id": request, "address": address} for request, address in subscribers]
        self.feeds["feeds"] = [{"subscriber_list": listed}] if listed else []


def sampler(world: World, *etcd_metrics: str, admin: str = ADMIN) -> Sampler:
    """A sampler whose own streams are ``us-…``."""
    return Sampler(world, admin, {"Authorization": "Bearer x"}, "prefix=/svc/", "us", etcd_metrics)


async def test_a_sample() -> None:
    """A sample takes every count from its place; the token goes to the gateway alone."""
    world = World()
    world.follow(("us-1", "10.0.0.1:1"), ("us-2", "10.0.0.1:2"), ("usurper", "10.0.0.2:1"))
    it = sampler(world)
    sample = await it.sample()

    assert sample.gateway.process == "gw since 12.35"
    assert (sample.gateway.reconnects, sample.gateway.opened) == (1, 9)
    assert (sample.gateway.feeds, sample.gateway.live) == (3, 2)
    assert (sample.gateway.held, sample.gateway.history) == (EtcdCounts(4, 2), 1)
    assert (sample.gateway.subscribers, sample.gateway.served) == (7, 6)
    assert (sample.checked.feeds, sample.checked.ours, sample.checked.others) == (1, 2, 1)
    assert sample.etcd == EtcdCounts(5, 3)
    assert (it.linger, it.etcd_metrics) == (30.0, ("http://etcd:2379/metrics",))
    assert it.addresses == {"10.0.0.1:1", "10.0.0.1:2"}
    assert world.told == {f"{ADMIN}/v1/feeds?prefix=/svc/", f"{ADMIN}/metrics"}


async def test_a_pinned_range() -> None:
    """A pin's feed stays, and is not a leak; a channel of the range is, and so is a feed that is not pinned."""
    world = World()
    ours = {"request_id": "us-1", "address": "10.0.0.1:1"}
    pin = {"range": "prefix=/svc/", "pinned": True, "subscriber_list": [ours]}
    world.pages[f"{ADMIN}/metrics"] += "etcd_watch_gateway_pins_unavailable 2\n"
    world.feeds |= {"feeds": [pin], "channels": [{"ranges": ["prefix=/svc/"], "subscriber_list": [ours]}]}
    during = await sampler(world).sample()
    world.feeds |= {"feeds": [pin | {"subscriber_list": []}], "channels": []}
    after = await sampler(world).sample()
    world.feeds |= {"feeds": [{"range": "prefix=/svc/", "pinned": False, "subscriber_list": []}]}
    leaked = await sampler(world).sample()

    assert during.gateway.unavailable == 2
    assert (during.checked.feeds, during.checked.ours, during.checked.pinned) == (1, 1, True)
    assert (after.checked.feeds, after.checked.ours, after.checked.pinned) == (0, 0, True)
    assert (leaked.checked.feeds, leaked.checked.pinned) == (1, False)


async def test_several_members() -> None:
    """The counts of several members are added up; the member that the gateway names is not asked."""
    world = World()
    world.pages |= {"http://a/metrics": ETCD.format(watchers=1), "http://b/metrics": ETCD.format(watchers=2)}
    sample = await sampler(world, "http://a/metrics", "http://b/metrics").sample()

    assert sample.etcd == EtcdCounts(3, 6)


async def test_an_edge() -> None:
    """The watches of an edge are streams of its upstream. That is a gateway, which gets the token."""
    world = World()
    world.feeds |= {"tier": 1, "etcd": {"endpoint": "http://root"}}
    world.pages["http://root/metrics"] = GATEWAY.format(opened=9)
    sample = await sampler(world).sample()

    assert sample.etcd == EtcdCounts(6, 0)
    assert "http://root/metrics" in world.told
    with pytest.raises(UnreachableError, match="of tier 1, so --etcd-metrics must name gateways"):
        await sampler(world, "http://etcd:2379/metrics").sample()


async def test_where_the_start_is_not_known() -> None:
    """Without a known start time, the instance alone names the process."""
    world = World()
    world.pages[f"{ADMIN}/metrics"] = GATEWAY.format(opened=9).split("\n", 1)[1]

    assert (await sampler(world).sample()).gateway.process == "gw"


async def test_the_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quiet begins when the check says so, and again when a client comes, even if the client has left again."""
    now = 100.0
    monkeypatch.setattr("app.check.samples.time.monotonic", lambda: now)
    world = World()
    it = sampler(world)
    quiet = []
    for opened, follower in ((9, None), (9, None), (10, None), (10, None), (10, "other"), (10, None)):
        world.pages[f"{ADMIN}/metrics"] = GATEWAY.format(opened=opened)
        world.follow(*([(follower, "x")] if follower else []))
        quiet.append((await it.sample()).checked.quiet)
        now += 1
    it.begin_quiet()
    quiet.append((await it.sample()).checked.quiet)

    assert quiet == [0, 1, 0, 1, 0, 1, 0]


async def test_who_follows_the_range_with_others() -> None:
    """The feed counts the streams of all its channels. Those of other channels are listed elsewhere, and are others."""
    world = World()
    world.follow(("us-1", "10.0.0.1:1"))
    world.feeds["feeds"][0] |= {"subscribers": 3, "held_by": [["prefix=/svc/"], ["prefix=/other/", "prefix=/svc/"]]}
    sample = await sampler(world).sample()
    world.feeds["feeds"][0] |= {"pinned": True}  # a pin's feed is not the range's own
    pinned = await sampler(world).sample()

    assert (sample.checked.ours, sample.checked.others) == (1, 2)
    assert (pinned.checked.ours, pinned.checked.others) == (1, 0)


async def test_reads_that_may_keep_the_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted by all answers of /v1/kv, whatever their status, and open no stream."""
    now = 100.0
    monkeypatch.setattr("app.check.samples.time.monotonic", lambda: now)
    world = World()
    it = sampler(world)
    seen = []
    for found, unchanged, feeds in ((0, 0, 0), (0, 0, 9), (1, 0, 9), (1, 0, 9), (1, 1, 9), (1, 1, 9)):
        world.pages[f"{ADMIN}/metrics"] = GATEWAY.format(opened=9) + "".join(
            f'etcd_watch_gateway_http_requests_total{{handler="{path}",status="{status}"}} {number}\n'
            for path, status, number in (("/v1/kv", 200, found), ("/v1/kv", 304, unchanged), ("/v1/feeds", 200, feeds))
        )
        checked = (await it.sample()).checked
        seen.append((checked.quiet, checked.unread))
        now += 1
        it.begin_quiet()

    assert seen == [(0, 0), (0, 1), (0, 0), (0, 1), (0, 0), (0, 1)]


@pytest.mark.parametrize("feeds", [[], {}, {"linger": 1, "instance": "x", "etcd": None, "feeds": []}, None])
async def test_a_gateway_that_is_none(feeds: object) -> None:
    """An answer that is not a gateway's is refused."""
    world = World()
    world.feeds = feeds
    with pytest.raises(UnreachableError, match="this is not the response of a gateway of this version"):
        await sampler(world).sample()


async def test_the_other_port() -> None:
    """When the path is missing, the error names the option that is needed."""
    with pytest.raises(
        UnreachableError, match=r"no-such-path.*GATEWAY_ADMIN_PORT is set, --admin-url must name that port"
    ):
        await sampler(World(), admin="http://gateway:80").sample()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"a 1\n", "there is no metric name"),
        (b"name NaN\n", "name is not a finite number: nan"),
        (b"name +Inf\n", "name is not a finite number: inf"),
        (b"name one\n", "this is not a page of metrics: "),
        (b"<html>\n", "this is not a page of metrics: "),
        (b"\xff", "this is not a page of metrics: "),
    ],
)
def test_metrics_that_are_none(body: bytes, said: str) -> None:
    """Metrics that cannot be read fail with the URL and the reason."""
    with pytest.raises(UnreachableError, match=f"^http://etcd/metrics: {said}"):
        Metrics("http://etcd/metrics", body).value("name")


def test_metrics() -> None:
    """Metrics are summed over labels, or given by the values of the labels, or of the first of them."""
    metrics = Metrics("", b'name{a="x",b="y z"} 1\nname{a="x",b="w"} 2\nname_total 7\nother 3.9\n')

    assert (metrics.value("name"), metrics.value("name x y z"), metrics.value("other")) == (3, 1, 3)
    assert (metrics.value("name x"), metrics.find("name y z")) == (3, None)
    assert metrics.find("absent") is None
