"""The operators' view: probes, feeds, metrics, log and documentation."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from app import __version__
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import gateway
from tests.support.metrics import etcd_metric
from tests.support.streams import request, watch
from tests.support.waiting import HANG, eventually

pytestmark = [pytest.mark.etcd, pytest.mark.asyncio(loop_scope="module")]

NS = "etcd_watch_gateway"
ADMIN_PATHS = ("/metrics", "/v1/feeds", "/livez", "/readyz")
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@pytest_asyncio.fixture(name="etcd", scope="module", loop_scope="module")
async def _etcd() -> AsyncIterator[EmbeddedEtcd]:
    """One etcd for all tests of this module except those that stop it."""
    async with EmbeddedEtcd() as etcd:
        yield etcd


def client(base: str) -> httpx.AsyncClient:
    """A client of one listener."""
    return httpx.AsyncClient(base_url=base, timeout=HANG)


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(http: httpx.AsyncClient) -> Samples:
    """All samples of /metrics, by name and labels."""
    answer = await http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            name = (sample.name, tuple(sorted(sample.labels.items())))
            assert name not in found, f"the sample {name} appears twice"
            found[name] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    """The value of one of our metrics."""
    return samples[f"{NS}_{name}", tuple(sorted(labels.items()))]


# --- probes -----------------------------------------------------------------------------------------------------------


async def test_ready_when_etcd_appears_and_from_then_on() -> None:
    """While etcd is absent at the start, the gateway is not ready, and names the endpoint and the reason; later
    absences do not matter.
    """
    async with EmbeddedEtcd() as etcd:
        await etcd.kill()
        async with gateway(etcd.endpoint) as server, client(server.base) as http:

            async def answers(status: int, state: str) -> bool:
                assert (await http.get("/livez")).json() == {"status": "ok"}
                found = await http.get("/readyz")
                return (found.status_code, found.json()["etcd"]["state"]) == (status, state)

            await eventually(lambda: answers(503, "down"))
            waiting = (await http.get("/readyz")).json()
            await etcd.restart()
            await eventually(lambda: answers(200, "ready"))
            ready = (await http.get("/readyz")).json()
            await etcd.kill()
            await eventually(lambda: answers(200, "down"))
            away = (await http.get("/readyz")).json()

    assert waiting["status"] == "waiting for etcd"
    assert waiting["etcd"]["endpoint"] == etcd.endpoint
    assert "refused" in waiting["etcd"]["reason"]
    assert INSTANT.fullmatch(waiting["etcd"]["since"])
    assert ready["status"] == "ok"
    assert "reason" not in ready["etcd"]
    assert away["status"] == "ok"
    assert away["etcd"]["reason"]


async def test_ready_does_not_depend_on_having_been_asked() -> None:
    """Readiness does not depend on an earlier probe: the first probe comes after etcd was there and has gone again."""
    async with EmbeddedEtcd() as etcd, gateway(etcd.endpoint) as server, client(server.base) as http:
        assert (await http.get("/v1/kv?prefix=/")).status_code == 200
        await etcd.kill()

        async def down() -> bool:
            return bool((await http.get("/v1/feeds")).json()["etcd"]["state"] == "down")

        await eventually(down)
        answer = await http.get("/readyz")

    assert answer.status_code == 200


async def test_fails_over_to_the_endpoint_that_works(etcd: EmbeddedEtcd) -> None:
    """With several endpoints, the first may be dead from the start."""
    async with gateway(f"http://127.0.0.1:1,{etcd.endpoint}") as server, client(server.base) as http:

        async def on_that_one() -> bool:
            found = (await http.get("/v1/feeds")).json()["etcd"]
            return (found["state"], found["endpoint"]) == ("ready", etcd.endpoint)

        await eventually(on_that_one)
        assert (await http.get("/readyz")).status_code == 200


# --- /v1/feeds --------------------------------------------------------------------------------------------------------


async def test_feeds(etcd: EmbeddedEtcd, etcd_kv: EtcdClient) -> None:
    """``/v1/feeds`` lists the feeds; for a named range, the subscribers too."""
    await etcd_kv.transact({"/fd/a": "1", "/fd/b": "2", "/fe/\xff": ""})
    headers = {"User-Agent": "tester/1.0 \u00e9", "X-Request-Id": "req-1"}
    settings = {"GATEWAY_INSTANCE": "gw-7f9c", "GATEWAY_EPOCH": "e1", "GATEWAY_LINGER": "60s"}
    async with gateway(etcd.endpoint, settings=settings) as server, client(server.base) as http:
        empty = (await http.get("/v1/feeds")).json()
        async with (
            await watch(server.base, "prefix=/fd/", headers) as one,
            await watch(server.base, "prefix=/fd/") as other,
            await watch(server.base, "key=/fe/%ff") as third,
        ):
            await asyncio.gather(*(stream.until("synced") for stream in (one, other, third)))
            last = await etcd_kv.put("/fd/a", "2")
            await asyncio.gather(one.changes(1), other.changes(1))
            every = (await http.get("/v1/feeds")).json()
            detailed = (await http.get("/v1/feeds?prefix=/fd/")).json()
            by_key = (await http.get("/v1/feeds?key=/fe/%ff")).json()
            none = (await http.get("/v1/feeds?prefix=/fd")).json()

        async def lingers() -> bool:
            feeds = (await http.get("/v1/feeds")).json()["feeds"]
            return all(feed["lingering"] and feed["subscribers"] == 0 for feed in feeds)

        await eventually(lingers)

    assert list(empty) == [
        "instance",
        "version",
        "epoch",
        "linger",
        "sinks",
        "etcd",
        "feeds",
        "channels",
        "pins",
        "tier",
    ]
    assert (empty["instance"], empty["version"], empty["epoch"]) == ("gw-7f9c", __version__, "e1")
    assert empty["linger"] == 60
    assert empty["feeds"] == []
    assert INSTANT.fullmatch(every["etcd"].pop("since"))
    assert every["etcd"] == {"endpoint": etcd.endpoint, "version": "3.5.1", "state": "ready"}
    (feed, _key) = sorted(every["feeds"], key=lambda found: found["range"] != "prefix=/fd/")
    assert INSTANT.fullmatch(feed.pop("started"))
    assert feed.pop("bytes") > 0
    assert feed == {
        "range": "prefix=/fd/",
        "subscribers": 2,
        "revision": last,
        "state": "live",
        "lag": 0,
        "lingering": False,
        "pinned": False,
        "channels": 1,
        "held_by": [["prefix=/fd/"]],
        "keys": 2,
    }
    (shown,) = detailed["feeds"]
    assert shown["range"] == "prefix=/fd/"
    first, second = shown["subscriber_list"]
    assert first["user_agent"].startswith("tester/1.0")
    assert (first["request_id"], first["behind"]) == ("req-1", 0)
    assert re.fullmatch(r"127\.0\.0\.1:\d+", first["address"])
    assert first["age"] >= second["age"] > 0
    assert first["bytes"] > 0
    assert [found["range"] for found in by_key["feeds"]] == ["key=/fe/%FF"]
    assert none["feeds"] == []


# --- /metrics ---------------------------------------------------------------------------------------------------------


async def test_metrics_count_what_happens(etcd: EmbeddedEtcd, etcd_kv: EtcdClient) -> None:
    """Before, during and after, every metric counts exactly what was done."""
    await etcd_kv.transact({"/m/a": "1", "/m/b": "1"})
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_MAX_SUBSCRIBERS": "2"}) as server,
        client(server.base) as http,
    ):

        async def ready() -> bool:
            return (await http.get("/readyz")).status_code == 200

        await eventually(ready)
        before = await scrape(http)
        async with (
            await watch(server.base, "prefix=/m/") as one,
            await watch(server.base, "prefix=/m/&last_event_id=nonsense") as other,
        ):
            await asyncio.gather(one.until("synced"), other.until("synced"))
            await etcd_kv.transact({"/m/a": "2", "/m/b": None})
            await asyncio.gather(one.changes(2), other.changes(2))
            refused = await request(f"{server.base}/v1/watch?prefix=/m/")
            await refused.close()
            during = await scrape(http)
            at_etcd = await etcd_metric(etcd.endpoint, "etcd_debugging_mvcc_watcher_total")

        async def released() -> bool:
            return value(await scrape(http), "etcd_watchers") == 0

        await eventually(released)
        after = await scrape(http)

    for name in ("subscribers", "etcd_watchers", "etcd_watch_streams", "keys", "feed_bytes", "lag_revisions"):
        assert value(before, name) == 0
        assert value(after, name) == 0, name
    assert value(during, "subscribers") == 2
    assert value(during, "feeds", state="live") == 1
    assert (value(during, "etcd_watchers"), at_etcd) == (1, 1)
    assert value(during, "etcd_watch_streams") == 1
    assert value(during, "keys") == 1
    assert 0 <= value(during, "staleness_seconds") < HANG
    assert value(during, "events_total") == 2
    assert value(during, "deliveries_total") == 2 * 2 + 2 * 2
    assert value(during, "resets_total", reason="initial") == 1
    assert value(during, "resets_total", reason="cursor-lost") == 1
    assert value(during, "refusals_total", reason="too-many-subscribers") == 1
    assert value(during, "streams_opened_total") == 2
    assert value(during, "streams_closed_total", reason="client") == 0
    assert value(after, "streams_closed_total", reason="client") == 2
    assert value(after, "sent_bytes_total") >= value(during, "sent_bytes_total") > 500
    counters = ("events_total", "deliveries_total", "streams_opened_total", "feeds_started_total")
    assert [value(after, name) for name in counters] == [2, 8, 2, 1]
    assert value(after, "etcd_up") == 1
    assert value(after, "etcd_revision") > 0
    assert value(after, "build_info", version=__version__, etcd_version="3.5.1") == 1


def label_values(samples: Samples) -> Iterable[str]:
    """The values of all labels."""
    return {text for _name, labels in samples for _label, text in labels}


async def ask_secrets(http: httpx.AsyncClient, number: str) -> None:
    """Send one request of each kind, with a secret in every part."""
    headers = {"User-Agent": f"secret-{number}", "X-Request-Id": f"secret-{number}", "Host": f"secret{number}.host"}
    for target in ("/v1/kv?prefix=/secret-prefix/", "/v1/kv?secret=", "/v1/kv?key=/secret", "/secret/", "/v1/watch/no"):
        await http.get(f"{target}{number}", headers=headers)


async def test_no_label_comes_from_a_request(etcd: EmbeddedEtcd, etcd_kv: EtcdClient) -> None:
    """Requests add no series: clients cannot fill a Prometheus from outside."""
    await etcd_kv.put("/secret-prefix/key", "secret-value")
    async with (
        gateway(etcd.endpoint) as server,
        client(server.base) as http,
        await watch(server.base, "prefix=/secret-prefix/") as stream,
    ):
        await stream.until("synced")
        await ask_secrets(http, "0")
        await scrape(http)  # so that the scrape itself is counted in both of the others
        samples = await scrape(http)
        for number in range(1, 20):
            await ask_secrets(http, f"{number}")
        again = await scrape(http)

    assert not [text for text in label_values(again) if "secret" in text or "no1" in text]
    assert set(again) == set(samples)


async def test_streams_stay_out_of_the_latency(etcd: EmbeddedEtcd) -> None:
    """Streams are not in the latency histogram, because their length is not a latency; reads are."""
    async with gateway(etcd.endpoint) as server, client(server.base) as http:
        await http.get("/v1/kv?prefix=/")
        async with await watch(server.base, "prefix=/") as stream:
            await stream.until("synced")
        samples = await scrape(http)

    handlers = {dict(labels).get("handler") for name, labels in samples if "duration" in name or "http_request" in name}
    assert "/v1/kv" in handlers
    assert "/v1/watch" not in handlers
    assert any(name.startswith(f"{NS}_") and name.endswith("_bucket") for name, _labels in samples)


async def test_metrics_without_etcd() -> None:
    """The metrics are there while etcd is away, when they are needed most."""
    async with gateway("http://127.0.0.1:1") as server, client(server.base) as http:

        async def down() -> bool:
            samples = await scrape(http)
            return value(samples, "etcd_up") == 0 and value(samples, "subscribers") == 0

        await eventually(down)
        assert (await http.get("/v1/feeds")).json()["etcd"]["version"] == ""


# --- the operators' own port ------------------------------------------------------------------------------------------


async def test_admin_port(etcd: EmbeddedEtcd) -> None:
    """Probes, metrics and feeds move to the admin port and are nowhere else; the data does not move."""
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_ADMIN_PORT": "0"}) as server,
        client(server.base) as http,
        client(f"http://127.0.0.1:{server.admin_port}") as admin,
        await watch(server.base, "prefix=/adm/") as stream,
    ):
        await stream.until("synced")
        assert server.admin_port != server.port
        for path in ADMIN_PATHS:
            there, here = await admin.get(path), await http.get(path)

            assert there.status_code == 200, path
            head = await admin.head(path)
            assert (head.status_code, head.headers["content-type"]) == (200, there.headers["content-type"])
            assert "x-etcd-revision" in there.headers
            assert here.status_code == 404, path
            assert here.json()["code"] == "no-such-path"
        for path in ("/v1/kv?prefix=/", "/v1/watch?prefix=/", "/"):
            assert (await admin.get(path)).status_code == 404, path
        assert (await admin.post("/livez")).json()["code"] == "method-not-allowed"
        assert (await admin.get("/v1/feeds?bogus=1")).json()["parameter"] == "bogus"
        feeds = (await admin.get("/v1/feeds?prefix=/adm/")).json()["feeds"]
        samples = await scrape(admin)
        spec = (await http.get("/openapi.json")).json()

    assert [feed["subscribers"] for feed in feeds] == [1]
    assert value(samples, "subscribers") == 1
    assert set(spec["paths"]) == {"/v1/access", "/v1/kv", "/v1/progress", "/v1/watch"}


# --- the log ----------------------------------------------------------------------------------------------------------


async def test_log(etcd: EmbeddedEtcd, etcd_kv: EtcdClient) -> None:
    """The log has one line for each start and each end, none for what is in between, and no stored or secret value."""
    await etcd_kv.put("/log/a", "value-at-first")
    async with gateway(etcd.endpoint) as server, client(server.base) as http:
        async with (
            await watch(server.base, "prefix=/log/", {"X-Request-Id": "abc-123"}) as named,
            await watch(server.base, "prefix=/log/", {"X-Request-Id": "in valid\u00e9" + "x" * 100}) as unnamed,
        ):
            await asyncio.gather(named.until("synced"), unnamed.until("synced"))
            await server.logged("feed live")
            for number in range(50):
                await etcd_kv.put("/log/a", f"value-{number}")
            await asyncio.gather(named.changes(50), unnamed.changes(50))
            await http.get("/v1/kv?prefix=/log/", headers={"Authorization": "Bearer value-token"})
            await http.get("/v1/kv?bogus=value-of-parameter")
            shown = unnamed.headers["x-request-id"]

        await server.logged("feed stop")
        status = await server.stop()

    assert status == 0
    messages = [line["message"] for line in server.lines]
    assert messages.index("stream end") == messages.index("feed live") + 1
    said = [line["message"] for line in server.lines if line["logger"] in ("gateway.feed", "gateway.stream")]
    assert said == ["feed start", "feed live", "stream end", "stream end", "feed stop"]
    ends = {line["request_id"]: line for line in server.lines if line["message"] == "stream end"}
    assert set(ends) == {"abc-123", shown}
    assert re.fullmatch("[0-9a-f]{16}", shown)
    assert named.headers["x-request-id"] == "abc-123"
    end = ends["abc-123"]
    assert (end["range"], end["reason"], end["events"]) == ("prefix=/log/", "client", 51)
    assert end["bytes"] > 1000
    assert end["seconds"] > 0
    assert end["address"].startswith("127.0.0.1:")
    assert all({"time", "level", "logger", "message"} <= set(line) for line in server.lines)
    assert "value-" not in json.dumps(server.lines)


async def test_log_of_trouble_with_etcd() -> None:
    """The log has one line when etcd goes and one when it is back, not one for each attempt."""
    async with EmbeddedEtcd() as etcd, gateway(etcd.endpoint) as server, client(server.base) as http:

        async def state(wanted: str) -> bool:
            return bool((await http.get("/v1/feeds")).json()["etcd"]["state"] == wanted)

        await eventually(lambda: state("ready"))
        await etcd.kill()
        await eventually(lambda: state("down"))
        for _ in range(5):  # each read takes as long as it may wait for etcd: attempts continue meanwhile
            assert (await http.get("/v1/kv?prefix=/")).status_code == 503
        await etcd.restart()
        await eventually(lambda: state("ready"))

    said = [line["message"] for line in server.lines if line["logger"] == "gateway.etcd"]
    assert said.count("etcd is ready") == 2
    assert 1 <= said.count("etcd is out of reach") <= 3


# --- documentation and page -------------------------------------------------------------------------------------------


async def test_documentation_and_page(etcd: EmbeddedEtcd) -> None:
    """/docs and /openapi.json list every endpoint and parameter; the page at / is ours and complete."""
    async with gateway(etcd.endpoint) as server, client(server.base) as http:
        spec = (await http.get("/openapi.json")).json()
        docs = await http.get("/docs")
        page = await http.get("/")
        page_of_prefix = await http.get("/?prefix=/svc/")

    assert spec["info"] == {
        "title": "etcd-watch-gateway",
        "version": __version__,
        "description": spec["info"]["description"],
    }
    assert set(spec["paths"]) == {"/v1/access", "/v1/kv", "/v1/progress", "/v1/watch", *ADMIN_PATHS}
    parameters = {
        path: {parameter["name"] for parameter in spec["paths"][path]["get"]["parameters"]}
        for path in ("/v1/kv", "/v1/watch", "/v1/feeds")
    }
    assert parameters == {
        "/v1/kv": {
            "key",
            "prefix",
            "limit",
            "page",
            "keys_only",
            "count_only",
            "consistency",
            "min_revision",
            "scope",
            "encoding",
            "If-None-Match",
            "Prefer",
        },
        "/v1/watch": {
            "key",
            "prefix",
            "keys_only",
            "snapshot",
            "mode",
            "interval",
            "min_revision",
            "scope",
            "encoding",
            "format",
            "last_event_id",
            "Last-Event-ID",
        },
        "/v1/feeds": {"key", "prefix"},
    }
    assert "422" not in json.dumps(spec)
    assert "HTTPValidationError" not in json.dumps(spec)
    assert docs.status_code == 200
    assert "/openapi.json" in docs.text
    assert page.headers["content-type"].startswith("text/html")
    assert page.text == page_of_prefix.text
    assert "<!doctype html>" in page.text
