"""The chart's alerts: promtool shows that each fires on its own fault and nothing else, and each is in the runbook."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from app.core.reasons import END_REASONS, REFUSAL_REASONS, RESET_REASONS
from app.metrics import ACCESS_FILES, NAMESPACE
from tests.support.chart import CHART, CHOICE, TOP, get_helm, manifests, template
from tests.support.prometheus import promtool

Rule = dict[str, Any]

EDGE = ("-f", str(CHART / "ci" / "upstream-values.yaml"))
ON = (*CHOICE, "--set", "prometheusRule.enabled=true")
pytestmark = pytest.mark.process  # helm is a process

EVERYTHING = ("-f", str(CHART / "ci" / "full-values.yaml"))


@cache
def rendered(*arguments: str) -> dict[str, Any]:
    """The PrometheusRule's spec: a rules file as Prometheus reads it."""
    spec = manifests(template(get_helm(4), *arguments))["PrometheusRule"]["spec"]
    assert isinstance(spec, dict)
    return spec


def alerts(*arguments: str) -> dict[str, Rule]:
    """The rules by name."""
    rules = [rule for group in rendered(*(arguments or ON))["groups"] for rule in group["rules"]]
    found = {rule["alert"]: rule for rule in rules}
    assert len(found) == len(rules)
    return found


# --- a world, by the minute -------------------------------------------------------------------------------------------

# A constant value, or a function of the minute; None where the series does not exist.
Shape = float | Callable[[float], float | None]
World = dict[str, Shape]

# The fault begins here; before, all is well.
START = 30.0
END = 100.0
DAY = 86_400.0  # seconds; the world begins at the second 0


def at(shape: Shape, minute: float) -> float | None:
    return shape(minute) if callable(shape) else shape


def later(before: Shape, after: Callable[[float], float | None], start: float = START) -> Shape:
    """Follow *before*; from *start* on follow *after*, which takes the minutes since *start*."""
    return lambda minute: at(before, minute) if minute < start else after(minute - start)


def labelled(name: str, **labels: str) -> str:
    """``name{a="b"}`` with more labels."""
    bare, _, inner = name.rstrip("}").partition("{")
    pairs = [f'{key}="{value}"' for key, value in labels.items()]
    return f"{bare}{{{','.join([inner, *pairs] if inner else pairs)}}}"


def pod(name: str, **changed: Shape) -> World:
    """A gateway that follows 10 ranges for 100 subscribers; *changed* by metric, ``resets_total__lagged`` by reason."""
    shapes: World = {
        "subscribers": 100,
        "subscribers_max": 20_000,
        'streams{sink="fast"}': 100,
        'streams{sink="portable"}': 0,
        "held_answers": 0,
        "streams_opened_total": lambda minute: 1000 + 4 * minute,
        'feeds{state="live"}': 10,
        'feeds{state="opening"}': 0,
        'feeds{state="watch-retry"}': 0,
        "feeds_lingering": 1,
        "feeds_stale": 0,
        "feeds_max": 1000,
        "channels": 12,
        "channels_lingering": 1,
        "channels_max": 10_000,
        "pins": 2,
        "pins_unavailable": 0,
        "feed_bytes": 1 << 20,
        "feed_bytes_max": 1 << 28,
        "etcd_watchers": 10,
        "etcd_history_watchers": 0,
        "etcd_watch_streams": 1,
        "etcd_watch_streams_max": 4,
        "etcd_up": 1,
        "token_unusable": 0,
        "tls_certificate_unusable": 0,
        "tls_certificate_expiry_timestamp_seconds": 90 * DAY,
        "log_lines_dropped_total": 0,
        **{f'access_file_unusable{{file="{file}"}}': 0 for file in ACCESS_FILES.values()},
        **{f'resets_total{{reason="{reason}"}}': 0 for reason in RESET_REASONS},
        'resets_total{reason="initial"}': lambda minute: 1000 + 3 * minute,
        **{f'refusals_total{{reason="{reason}"}}': 0 for reason in REFUSAL_REASONS},
        **{f'streams_closed_total{{reason="{reason}"}}': 0 for reason in END_REASONS},
    }
    labels = {"feeds": "state", "streams": "sink", "access_file_unusable": "file"}
    for key, shape in changed.items():
        metric, _, label = key.partition("__")
        full = f'{metric}{{{labels.get(metric, "reason")}="{label.replace("_", "-")}"}}' if label else metric
        assert full in shapes
        shapes[full] = shape
    where = {"namespace": "default", "service": "demo-etcd-watch-gateway", "pod": name, "instance": f"{name}:8080"}
    return {labelled(f"{NAMESPACE}_{metric}", **where): shape for metric, shape in shapes.items()}


def member(number: int, watchers: Shape, streams: Shape) -> World:
    """The counts of an etcd member."""
    where = {"job": "etcd", "instance": f"etcd-{number}:2379"}
    return {
        labelled("etcd_debugging_mvcc_watcher_total", **where): watchers,
        labelled("etcd_debugging_mvcc_watch_stream_total", **where): streams,
    }


def world(a: Mapping[str, Shape] | None = None, etcd: World | None = None) -> World:
    """Two gateways and an etcd of three members, the first with a foreign client; *a* changes gateway a."""
    foreign = member(0, 15, 4) if etcd is None else etcd
    return {**pod("a", **(a or {})), **pod("b"), **foreign, **member(1, 10, 1), **member(2, 0, 0)}


def notation(shape: Shape) -> str:
    """The series in promtool's notation, every half minute; where a series ends it is stale, as after a scrape that
    does not find it.
    """
    written: list[str] = []
    for half in range(int(2 * END) + 1):
        value = at(shape, half / 2)
        if value is None:
            written.append("stale" if written and written[-1] not in ("stale", "_") else "_")
        else:
            written.append(f"{value:g}" if value < 1e6 else f"{value:.0f}")
    return " ".join(written)


def check(folder: Path, given: World, expected: Mapping[float, set[tuple[str, str]]], *arguments: str) -> None:
    """Check that exactly these alerts (name, severity) fire at each minute; at END, exactly these ever fired."""
    (folder / "rules.yaml").write_text(json.dumps(rendered(*(arguments or ON))), encoding="utf-8")
    firing = 'ALERTS{alertstate="firing"}'
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "30s",
                "input_series": [{"series": name, "values": notation(shape)} for name, shape in given.items()],
                "promql_expr_test": [
                    {
                        "expr": f"count by (alertname, severity) (count_over_time({firing}[{END:.0f}m]))"
                        if minute == END
                        else f"count by (alertname, severity) ({firing})",
                        "eval_time": f"{60 * minute:.0f}s",
                        "exp_samples": [
                            {"labels": f'{{alertname="{name}",severity="{severity}"}}', "value": 1}
                            for name, severity in sorted(names)
                        ],
                    }
                    for minute, names in expected.items()
                ],
            }
        ],
    }
    (folder / "test.yaml").write_text(json.dumps(test), encoding="utf-8")
    done = promtool("test", "rules", folder / "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def minutes(duration: str) -> float:
    """The minutes of a ``for:``."""
    match = re.fullmatch(r"(\d+)([smh])", duration)
    assert match is not None
    return int(match[1]) * {"s": 1 / 60, "m": 1, "h": 60}[match[2]]


# --- each fires -------------------------------------------------------------------------------------------------------

# Each alert's fault, which begins at START, and the minutes within which the alert must fire.
SEEDS: dict[str, tuple[World, float]] = {
    "GatewayWatchersAboveFeeds": (world({"etcd_watchers": later(11, lambda _: 12), "etcd_history_watchers": 1}), 6),
    "GatewayWatchStreamsAboveMax": (world({"etcd_watch_streams": later(1, lambda _: 5)}), 6),
    "GatewaySubscribersWithoutStream": (world({"subscribers": later(100, lambda _: 101)}), 6),
    "GatewayFeedsGrow": (
        world(
            {"feeds__live": later(10, lambda since: 10 + since), "etcd_watchers": later(10, lambda since: 10 + since)},
            member(0, later(15, lambda since: 15 + since), 4),
        ),
        30,
    ),
    "GatewayFeedsStale": (world({"feeds_stale": later(0, lambda _: 1)}), 6),
    "GatewayResetsLoop": (world({"resets_total__unproven": later(0, lambda since: 100 * since)}), 15),
    "EtcdWatchStreamsGrow": (world(etcd=member(0, 15, later(4, lambda since: 4 + 2 * since))), 31),
    "EtcdWatchersGrow": (world(etcd=member(0, later(15, lambda since: 15 + 20 * since), 4)), 31),
    "GatewaySubscribersNearCap": (
        world({"subscribers": later(100, lambda _: 16_500), "streams__fast": later(100, lambda _: 16_500)}),
        16,
    ),
    "GatewayFeedsNearCap": (
        world(
            {
                "feeds__live": later(10, lambda _: 900),
                "feeds_lingering": later(1, lambda _: 50),
                "subscribers": later(100, lambda _: 1000),
                "streams__fast": later(100, lambda _: 1000),
            }
        ),
        16,
    ),
    "GatewayChannelsNearCap": (
        world({"channels": later(12, lambda _: 8500), "channels_lingering": later(1, lambda _: 400)}),
        16,
    ),
    "GatewayPinUnavailable": (world({"pins_unavailable": later(0, lambda _: 1)}), 6),
    "GatewayFeedBytesNearCap": (world({"feed_bytes": later(1 << 20, lambda _: 0.9 * (1 << 28))}), 16),
    "GatewayRefuses": (world({"refusals_total__too_many_feeds": later(0, lambda since: 1 + since)}), 7),
    "GatewayResets": (world({"resets_total__lagged": later(0, lambda since: 10 * since)}), 26),
    "GatewayStreamErrors": (world({"streams_closed_total__error": later(0, lambda _: 1)}), 1),
    "GatewayWithoutEtcd": (world({"etcd_up": later(1, lambda _: 0)}), 6),
    "GatewayTokenUnusable": (world({"token_unusable": later(0, lambda _: 1)}), 6),
    "GatewayTlsCertificateUnusable": (world({"tls_certificate_unusable": later(0, lambda _: 1)}), 6),
    "GatewayTlsCertificateExpires": (
        world({"tls_certificate_expiry_timestamp_seconds": later(90 * DAY, lambda _: 7 * DAY)}),
        11,
    ),
    "GatewayAccessFileUnusable": (world({"access_file_unusable__policy": later(0, lambda _: 1)}), 6),
    "GatewayLogLinesDropped": (world({"log_lines_dropped_total": later(0, lambda _: 40)}), 1),
    "GatewayMetricsMissing": (
        {
            name: later(shape, lambda _: None) if name.startswith(NAMESPACE) else shape
            for name, shape in world().items()
        },
        11,
    ),
}


@pytest.mark.parametrize("name", SEEDS)
def test_fires(name: str, tmp_path: Path) -> None:
    """The alert fires on its own fault, alone, in time, and not before its ``for:`` is over."""
    given, soon = SEEDS[name]
    rule = alerts()[name]
    waits = minutes(rule.get("for", "0s"))
    fires = {(name, rule["labels"]["severity"])}

    check(tmp_path, given, {START - 0.5: set(), START + max(waits - 1, -1): set(), START + soon: fires})


def test_every_alert_is_seeded() -> None:
    assert set(SEEDS) == set(alerts())


def test_etcd_of_our_own(tmp_path: Path) -> None:
    """If only gateways use etcd, watches that no gateway knows of are critical."""
    arguments = (*ON, "--set", "etcd.shared=false")

    for name in ("EtcdWatchStreamsGrow", "EtcdWatchersGrow"):
        given, soon = SEEDS[name]
        check(tmp_path, given, {START - 0.5: set(), START + soon: {(name, "critical")}}, *arguments)
    assert {name for name, rule in alerts(*arguments).items() if rule != alerts()[name]} == {
        "EtcdWatchStreamsGrow",
        "EtcdWatchersGrow",
    }


# --- and is quiet -----------------------------------------------------------------------------------------------------


def born(start: float, shape: Shape) -> Shape:
    """A series that begins at *start*."""
    return lambda minute: None if minute < start else at(shape, minute - start)


def gone(end: float, shape: Shape) -> Shape:
    """A series that ends at *end*."""
    return lambda minute: None if minute >= end else at(shape, minute)


def missing(start: float, end: float, shape: Shape, after: Shape | None = None) -> Shape:
    """A series with a gap; *after* follows the gap, from its own beginning."""

    def value(minute: float) -> float | None:
        if start <= minute < end:
            return None
        return at(shape, minute) if after is None or minute < end else at(after, minute - end)

    return value


def rollout() -> World:
    """Pods c and d replace a and b, one at a time; a stopped pod's clients go to the remaining pods. Counters
    restart.
    """
    crowd: dict[str, Shape] = {}
    for metric in ("subscribers", "streams__fast", "streams_opened_total", "resets_total__compacted"):
        crowd[metric] = lambda minute: min(100.0, 50 * minute)
    moving: Shape = later(100, lambda _: 150)
    staying: dict[str, Shape] = {"subscribers": moving, "streams__fast": moving}

    def ours(minute: float) -> float:
        return 30 if 30 <= minute < 33 else 20

    return {
        **{name: gone(31, shape) for name, shape in pod("a").items()},
        **{name: gone(33, shape) for name, shape in pod("b", **staying).items()},
        **{name: born(30, shape) for name, shape in pod("c", **crowd).items()},
        **{name: born(32, shape) for name, shape in pod("d", **crowd).items()},
        **member(0, lambda minute: ours(minute) + 5, lambda minute: ours(minute) / 10 + 3),
        **member(1, 0, 0),
    }


def killed_container() -> World:
    """The container of a dies: the same pod without its counts, and all clients come back at once."""
    fresh = pod(
        "a",
        subscribers=lambda since: 0 if since < 0.5 else 100,
        streams__fast=lambda since: 0 if since < 0.5 else 100,
        streams_opened_total=lambda since: 0 if since < 0.5 else 100 + 4 * since,
        resets_total__initial=lambda since: 0 if since < 0.5 else 50 + 3 * since,
        resets_total__unproven=lambda since: 0 if since < 0.5 else 50,
    )
    return {
        **world(),
        **{name: missing(30, 31, shape, fresh[name]) for name, shape in pod("a").items()},
    }


def etcd_restarts() -> World:
    """The members restart one after the other, two minutes each; each time every client is reset."""

    def down(minute: float) -> bool:
        return any(start <= minute < start + 2 for start in (30, 35, 40))

    changed: dict[str, Shape] = {
        "etcd_up": lambda minute: 0 if down(minute) else 1,
        "feeds_stale": lambda minute: 10 if down(minute) else 0,
        "feeds__live": lambda minute: 0 if down(minute) else 10,
        "feeds__watch_retry": lambda minute: 10 if down(minute) else 0,
        "etcd_watchers": lambda minute: 0 if down(minute) else 10,
        "etcd_watch_streams": lambda minute: 0 if down(minute) else 1,
        "resets_total__unproven": lambda minute: 100 * sum(minute >= start + 2 for start in (30, 35, 40)),
    }
    etcd: World = {}
    for number, start in enumerate((30, 35, 40)):
        for name, shape in member(number, 10, 2).items():
            etcd[name] = missing(start, start + 2, shape)
    return {**pod("a", **changed), **pod("b", **changed), **etcd}


def foreign_client() -> World:
    """A foreign client comes with 2,000 watchers on 50 streams, restarts, and opens and closes one all the time."""

    def present(minute: float) -> int:
        return int(30 <= minute < 50 or minute >= 55)

    return world(
        etcd=member(
            0,
            lambda minute: 15 + 2000 * present(minute) + (2 * minute) % 2,
            lambda minute: 4 + 50 * present(minute) + (2 * minute) % 2,
        )
    )


def more_clients() -> World:
    """A morning: within an hour, seventy times as many subscribers follow seventy times as many ranges."""
    people: Shape = later(100, lambda since: min(7000, 100 + 120 * since))
    ranges: Shape = later(10, lambda since: min(700, 10 + 12 * since))
    return world(
        {
            "subscribers": people,
            "streams__fast": people,
            "streams_opened_total": later(lambda minute: 4 * minute, lambda since: 120 + 150 * since),
            "feeds__live": ranges,
            "etcd_watchers": ranges,
        },
        member(0, lambda minute: 5 + (at(ranges, minute) or 0), 4),
    )


def passers_by() -> World:
    """More and more clients each follow their own range for a moment: the feeds that linger (30 s) grow."""
    a_second = 1 / 6  # the increase for each minute
    feeds: Shape = later(10, lambda since: 10 + 30 * a_second * since)
    return world(
        {
            "streams_opened_total": later(1000, lambda since: 1000 + 60 * a_second * since**2 / 2),
            "feeds__live": feeds,
            "feeds_lingering": later(1, lambda since: 1 + 30 * a_second * since),
            "etcd_watchers": feeds,
        },
        member(0, lambda minute: 5 + (at(feeds, minute) or 0), 4),
    )


QUIET: dict[str, Callable[[], World]] = {
    "all is well": world,
    "rollout": rollout,
    "killed container": killed_container,
    "etcd restarts": etcd_restarts,
    "etcd restored": lambda: world({"resets_total__restored": later(0, lambda _: 100)}),
    "foreign client": foreign_client,
    "more clients": more_clients,
    "passers-by": passers_by,
    "other ranges": lambda: world({"feeds__live": later(10, lambda _: 80), "etcd_watchers": later(10, lambda _: 80)}),
    "clients leave": lambda: world(
        {
            "subscribers": later(100, lambda since: max(0, 100 - 5 * since)),
            "streams__fast": later(100, lambda since: max(0, 100 - 5 * since)),
        }
    ),
    "long polls": lambda: world({"subscribers": later(100, lambda _: 150), "held_answers": later(0, lambda _: 50)}),
    "history is read all the time": lambda: world({"etcd_watchers": 13, "etcd_history_watchers": 3}),
    "a scrape between": lambda: world({"etcd_watchers": lambda minute: 11 if minute % 4 < 2 else 10}),
    "pins without clients": lambda: world(
        {"subscribers": 0, "streams__fast": 0, "feeds_lingering": 0, "pins": 10, "channels": 0, "channels_lingering": 0}
    ),
    "a failed pin starts again": lambda: world(
        {
            "pins_unavailable": lambda minute: 1 if 30 <= minute < 33 else 0,
            "feeds__live": lambda minute: 9 if 30 <= minute < 33 else 10,
            "feeds__opening": lambda minute: (2 * minute) % 2 if 30 <= minute < 33 else 0,
        }
    ),
    "a token is replaced": lambda: world({"token_unusable": lambda minute: 30 <= minute < 32}),
    "a certificate is renewed in time": lambda: world(
        {
            "tls_certificate_unusable": lambda minute: 30 <= minute < 32,
            "tls_certificate_expiry_timestamp_seconds": lambda minute: (8 if minute < 32 else 90) * DAY,
        }
    ),
    "scrapes fail": lambda: {name: missing(30, 34, shape) for name, shape in world().items()},
}


@pytest.mark.parametrize("name", QUIET)
def test_quiet(name: str, tmp_path: Path) -> None:
    """Nothing fires at any time, even if etcd is declared to be ours alone."""
    check(tmp_path, QUIET[name](), {END: set()}, *ON, "--set", "etcd.shared=false")


def test_a_client_cannot_cause_what_is_critical(tmp_path: Path) -> None:
    """A client that comes back every second with the same old cursor, and a client that is always too slow, cause a
    warning, not critical.
    """
    mad = world(
        {
            "streams_opened_total": later(1000, lambda since: 1000 + 60 * since),
            "resets_total__compacted": later(0, lambda since: 60 * since),
            "resets_total__lagged": later(0, lambda since: 300 * since),
        }
    )

    check(tmp_path, mad, {END: {("GatewayResets", "warning")}})


def test_pins_that_come_back_are_not_growth(tmp_path: Path) -> None:
    """Pins that did not fit become live one after the other, without subscribers: a leak would look like that."""
    back = world(
        {
            "pins": 40,
            "pins_unavailable": later(30, lambda since: max(0, 30 - since)),
            "feeds__live": later(10, lambda since: min(40, 10 + since)),
            "etcd_watchers": later(10, lambda since: min(40, 10 + since)),
        },
        member(0, later(15, lambda since: min(45, 15 + since)), 4),
    )

    check(tmp_path, back, {END: {("GatewayPinUnavailable", "warning")}})


# --- the rules themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [ON, EVERYTHING], ids=["default", "full"])
def test_rules(values: tuple[str, ...], tmp_path: Path) -> None:
    """promtool accepts the rules; each states its severity, what is wrong, what to do, and where to read on."""
    (tmp_path / "rules.yaml").write_text(json.dumps(rendered(*values)), encoding="utf-8")
    done = promtool("check", "rules", tmp_path / "rules.yaml")
    base = None if values is ON else "https://wiki.example/etcd-watch-gateway/runbook"

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(alerts(*values))} rules found" in done.stdout
    for name, rule in alerts(*values).items():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description", *(["runbook_url"] if base else [])}
        assert all(rule["annotations"].values())
        assert rule["annotations"].get("runbook_url") == (f"{base}#{name.lower()}" if base else None)


def test_severities_of_ones_own() -> None:
    """The label's values can be those that Alertmanager's routes expect; nothing else changes."""
    own = alerts(*ON, "--set", "prometheusRule.severities.critical=page")

    for name, rule in alerts().items():
        severity = rule["labels"]["severity"].replace("critical", "page")
        assert own[name] == {**rule, "labels": {**rule["labels"], "severity": severity}}


def test_what_is_critical_is_ours() -> None:
    """Nothing is critical that another client of etcd, or a client of the gateway, can cause alone."""
    assert {name for name, rule in alerts().items() if rule["labels"]["severity"] == "critical"} == {
        "GatewayWatchersAboveFeeds",
        "GatewayWatchStreamsAboveMax",
        "GatewaySubscribersWithoutStream",
        "GatewayFeedsGrow",
        "GatewayFeedsStale",
        "GatewayResetsLoop",
    }


def test_matchers() -> None:
    """Every series of ours is selected as this release's, or as the values specify; etcd's as the values specify."""

    def selectors(*arguments: str) -> dict[bool, set[str]]:
        text = " ".join(rule["expr"] for rule in alerts(*arguments).values())
        found: dict[bool, set[str]] = {True: set(), False: set()}
        for metric, inner in re.findall(r"((?:etcd_debugging|etcd_watch_gateway)_\w+)\{([^}]*)\}", text):
            found[metric.startswith(NAMESPACE)].add(re.sub(r",?reason!?=~?\"[^\"]*\"", "", inner))
        assert len(re.findall(r"\betcd_(?:debugging|watch_gateway)_\w+(?!\w|\{)", text)) == 0
        return found

    assert selectors(*ON) == {True: {'namespace="default",service="demo-etcd-watch-gateway"'}, False: {""}}
    assert selectors(*EVERYTHING) == {
        True: {'job="gateway",cluster=~"a|b"', 'job=~"gateway.*"'},
        False: {'job="etcd"'},
    }


def test_what_is_left_out() -> None:
    """Without etcd's metrics its alerts, and without replicas the alerts about missing ones, are left out."""
    etcd = {"EtcdWatchStreamsGrow", "EtcdWatchersGrow"}

    assert set(alerts()) - set(alerts(*ON, "--set", "prometheusRule.etcdMetrics=false")) == etcd
    assert set(alerts()) - set(alerts(*EDGE, "--set", "prometheusRule.enabled=true")) == etcd, (
        "an edge has no watch there"
    )
    assert set(alerts()) - set(alerts(*ON, "--set", "replicas=0")) == {"GatewayMetricsMissing"}
    assert set(alerts(*ON, "--set", "replicas=0,autoscaling.enabled=true")) == set(alerts())


def documented() -> set[str]:
    """The metrics of docs/metrics.md, which another test compares with a scrape."""
    text = (TOP / "docs" / "metrics.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(\w+)` \| (?:gauge|counter)", text, re.MULTILINE))


def test_metrics_and_reasons_exist() -> None:
    """A rule uses only exported metrics and reasons: a rule on an unknown name would stay quiet for ever."""
    text = " ".join(rule["expr"] for rule in alerts().values())
    named = set(re.findall(rf"\b{NAMESPACE}_\w+", text))

    assert len(named) > 10
    assert named <= documented()
    assert {name.partition("{")[0] for name in world() if name.startswith(NAMESPACE)} <= documented()
    reasons = {*RESET_REASONS, *END_REASONS, *REFUSAL_REASONS}
    for matched in re.findall(r'reason!?=~?"([^"]+)"', text):
        assert set(matched.split("|")) <= reasons


# --- the runbook ------------------------------------------------------------------------------------------------------


def test_runbook() -> None:
    """Every alert has an entry and every entry an alert; each explains the alert, where to look and what to do."""
    text = (TOP / "docs" / "runbook.md").read_text(encoding="utf-8")
    entries = re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)

    assert sorted(name for name, _ in entries) == sorted(alerts())
    for name, entry in entries:
        assert re.findall(r"^\*\*(\w+)\*\*", entry, re.MULTILINE) == ["Means", "Look", "Do"], name
    critical = text[text.index("## Critical") : text.index("## Warnings")]
    severities = {name: rule["labels"]["severity"] for name, rule in alerts().items()}
    assert {name for name in severities if f"### {name}\n" in critical} == {
        name for name, severity in severities.items() if severity == "critical"
    }
