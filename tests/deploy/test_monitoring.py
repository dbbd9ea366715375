"""A real Prometheus scrapes real gateways: the alerts fire on leaks and only then, and every panel shows data."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from aetcd import rpc

from app.dev.etcd import LOOPBACK_OPTIONS
from tests.support.chart import CHART, CHOICE, get_helm, manifests, template
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway, start
from tests.support.leaks import LEAKS
from tests.support.prometheus import Prometheus, Target, prometheus, promtool
from tests.support.streams import watch
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd

# Time is compressed: a minute of the rules takes half a second, so half an hour takes 15 s. A scrape each quarter of a
# second then stands for one each 30 s, as in the chart. The gateway's own times are not compressed.
MINUTE = 500
INTERVAL = "250ms"
# These alerts fire when scrapes, or etcd's answers, are late. Their 10 and 5 minutes are 5 and 2.5 s here, and a busy
# machine can be that late. ``test_alerts`` shows when each of them fires.
LATE = {"GatewayMetricsMissing", "GatewayFeedsStale", "GatewayWithoutEtcd"}
# No linger, so that watches and their streams come and go; the other settings are the defaults, for busy machines.
SETTINGS = {"GATEWAY_PORT": "0", "GATEWAY_LINGER": "0"}

WHERE = {"namespace": "default", "service": "demo-etcd-watch-gateway"}
DASHBOARD = json.loads((CHART / "dashboards" / "etcd-watch-gateway.json").read_text(encoding="utf-8"))


def rules() -> dict[str, Any]:
    """The chart's rules, with every time in them compressed: ``for:``, ranges, offsets."""
    spec = manifests(template(get_helm(4), *CHOICE, "--set", "prometheusRule.enabled=true"))["PrometheusRule"]["spec"]

    def compressed(text: str) -> str:
        return re.sub(r"\b(\d+)m\b", lambda match: f"{int(match[1]) * MINUTE}ms", text)

    for group in spec["groups"]:
        for rule in group["rules"]:
            rule |= {key: compressed(rule[key]) for key in ("expr", "for") if key in rule}
            assert not re.search(r"\b\d+[smh]\b", rule["expr"] + rule.get("for", ""))
    assert isinstance(spec, dict)
    return spec


def pod(name: str, running: GatewayProcess) -> Target:
    """A target with the labels that a ServiceMonitor gives."""
    return f"127.0.0.1:{running.port}", {**WHERE, "pod": name}


@contextlib.asynccontextmanager
async def leaky(etcd: str, leak: str) -> AsyncIterator[GatewayProcess]:
    """A gateway that leaks; it is killed, because a gateway that forgot its calls cannot end them."""
    settings = {**SETTINGS, "GATEWAY_ETCD": etcd}
    running = await start(settings=settings, program=("tests.support.leaks", leak))
    try:
        await running.listening()
        yield running
    finally:
        await running.stop(signal.SIGKILL)


async def pass_by(bases: Sequence[str]) -> None:
    """At each gateway, let five clients a second follow their own range for a moment."""

    async def visit(base: str, number: int) -> None:
        async with await watch(base, f"prefix=/passer/{number}/") as stream:
            await stream.next_event()

    for number in itertools.count(1):
        await asyncio.gather(*(visit(base, number) for base in bases))
        await asyncio.sleep(0.2)


async def leak_at(endpoint: str) -> None:
    """A client of etcd that releases nothing: five streams a second, with twelve watchers each."""
    async with grpc.aio.insecure_channel(endpoint.removeprefix("http://"), LOOPBACK_OPTIONS) as channel:
        calls = []
        while True:
            call = rpc.WatchStub(channel).Watch()
            for _ in range(12):
                await call.write(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"/elsewhere")))
            calls.append(call)
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def going_on(*work: Any) -> AsyncIterator[None]:
    """Run the coroutines in the background. They have no end of their own: raise what ends one of them."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()  # raises what has ended it
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def evaluated(server: Prometheus) -> bool:
    """Whether every target was scraped and every rule evaluated; no rule may have failed."""
    found = await server.rules()
    assert not any(rule.get("lastError") for rule in found), found
    return all(rule["health"] == "ok" for rule in found) and set((await server.targets()).values()) == {"up"}


@pytest.mark.slow
@pytest.mark.usefixtures("kv")
async def test_leaks_are_found(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """Each leak fires its own critical alert, at its own gateway; a client that leaks at etcd fires a warning. The
    healthy gateway between them, with the same clients, fires nothing.
    """
    expected = {
        ("GatewayWatchersAboveFeeds", "critical", "watches"),
        ("GatewayWatchStreamsAboveMax", "critical", "streams"),
        ("GatewaySubscribersWithoutStream", "critical", "leases"),
        ("GatewayFeedsGrow", "critical", "lingers"),
        ("EtcdWatchStreamsGrow", "warning", ""),
        ("EtcdWatchersGrow", "warning", ""),
    }
    async with contextlib.AsyncExitStack() as stack:
        pods = {leak: await stack.enter_async_context(leaky(etcd.endpoint, leak)) for leak in LEAKS}
        pods["healthy"] = await stack.enter_async_context(gateway(etcd.endpoint, settings=SETTINGS, quick=False))
        jobs: dict[str, Sequence[Target]] = {
            "gateway": [pod(name, running) for name, running in pods.items()],
            "etcd": [(etcd.endpoint.removeprefix("http://"), {})],
        }
        server = await stack.enter_async_context(prometheus(tmp_path, jobs, rules(), interval=INTERVAL))
        await stack.enter_async_context(
            going_on(pass_by([running.base for running in pods.values()]), leak_at(etcd.endpoint))
        )

        seen: set[tuple[str, str, str]] = set()

        async def all_fired() -> bool:
            for alert in await server.alerts():
                labels = alert["labels"]
                if labels["alertname"] in LATE:
                    continue
                seen.add((labels["alertname"], labels["severity"], labels.get("pod", "")))
                assert labels.get("pod", "") in alert["annotations"]["summary"]
                assert "<no value>" not in alert["annotations"]["summary"]
            return expected <= seen

        await eventually(lambda: evaluated(server))
        await eventually(all_fired)
        assert seen == expected


@pytest.mark.usefixtures("kv")
async def test_metrics_are_good(server: GatewayProcess) -> None:
    """promtool finds no fault with a scrape, and finds one in a worse scrape."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"{server.base}/metrics")).text
    checked = promtool("check", "metrics", text=text)

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    worse = text.replace("etcd_watch_gateway_deliveries_total", "etcd_watch_gateway_deliveries")
    assert promtool("check", "metrics", text=worse).returncode != 0


# --- the dashboard ----------------------------------------------------------------------------------------------------


def expressions() -> list[tuple[str, str]]:
    """The (panel, expression) pairs of all panels."""
    return [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]


async def filled_in(server: Prometheus, expression: str) -> str:
    """Fill in each variable's values, queried as Grafana queries them, and Grafana's interval."""
    for variable in DASHBOARD["templating"]["list"]:
        if f"${variable['name']}" in expression and variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert match is not None
            matcher = await filled_in(server, match[1])
            values = await server.ask(f"label/{match[2]}/values", **{"match[]": matcher})
            assert values, variable["query"]
            expression = expression.replace(f"${variable['name']}", "|".join(values))
    return expression.replace("$__rate_interval", f"{2 * MINUTE}ms")


async def test_every_panel_shows_data(etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path) -> None:
    """Prometheus accepts each expression, and each has series; a series that must have counted is more than 0."""
    busy = {
        "Subscribers",
        "Feeds by state",
        "Watchers: the gateway's and etcd's",
        "Watch streams: the gateway's and etcd's",
        "Keys",
    }
    async with (
        gateway(etcd.endpoint, settings=SETTINGS, quick=False) as running,
        prometheus(
            tmp_path,
            {"gateway": [pod("healthy", running)], "etcd": [(etcd.endpoint.removeprefix("http://"), {})]},
            rules(),
            interval=INTERVAL,
        ) as server,
    ):
        await kv.put("/svc/a", "1")
        async with await watch(running.base, "prefix=/svc/") as stream:
            await stream.next_event()
            async with httpx.AsyncClient(trust_env=False) as client:
                assert (await client.get(f"{running.base}/v1/kv?prefix=/svc/")).status_code == 200

            empty: dict[str, str] = {}

            async def shown() -> bool:
                empty.clear()
                for panel, expression in expressions():
                    found = await server.query(await filled_in(server, expression))
                    values = [float(series["value"][1]) for series in found]
                    if not values or (panel in busy and not any(values)):
                        empty[expression] = panel
                return not empty

            await eventually(lambda: evaluated(server))
            try:
                await eventually(shown)
            except TimeoutError:
                pytest.fail(f"these expressions have no data: {empty}")
            # By now any alert would have fired.
            assert [alert for alert in await server.alerts() if alert["labels"]["alertname"] not in LATE] == []


def test_the_dashboard_is_whole() -> None:
    """Panels have unique ids, do not overlap, and use existing variables; the ConfigMap has the dashboard unchanged."""
    panels = DASHBOARD["panels"]
    places = {
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in panels
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    }
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval", "__all"}

    assert len({panel["id"] for panel in panels}) == len(panels) > 15
    assert len(places) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in panels)
    assert all(panel["title"] and panel["description"] for panel in panels)
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) == variables
    for major in (3, 4):
        shown = manifests(template(get_helm(major), *CHOICE, "--set", "dashboard.enabled=true"))["ConfigMap"]
        assert shown["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert json.loads(shown["data"]["etcd-watch-gateway.json"]) == DASHBOARD
