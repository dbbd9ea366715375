"""``app.core.merged_feeds``: the feeds of the hub and its workers as those of one gateway."""

from __future__ import annotations

from typing import Any

from app.core.merged_feeds import Body, merge_feeds, merge_pins


def feed(name: str, subscribers: int, *, lag: int = 0, held_by: tuple[str, ...] = (), **more: Any) -> Body:
    """A feed of ``/v1/feeds``."""
    return {
        "range": name, "subscribers": subscribers, "lag": lag, "lingering": subscribers == 0, "pinned": False,
        "channels": len(held_by), "held_by": [[one] for one in held_by], "revision": 7, **more,
    }  # fmt: skip


def channel(*ranges: str, subscribers: int = 1, state: str = "live", **more: Any) -> Body:
    """A channel of ``/v1/feeds``."""
    return {
        "ranges": list(ranges), "feeds": list(ranges), "subscribers": subscribers, "revision": 5, "state": state,
        "lag": subscribers, "lingering": subscribers == 0, "keys": 2, "bytes": 10, **more,
    }  # fmt: skip


def body(*feeds: Body, channels: tuple[Body, ...] = (), linger: float = 30.0, fast: int = 0) -> Body:
    """An answer of ``/v1/feeds``."""
    sinks = {"fast": fast, "portable": 0}
    return {
        "instance": "a",
        "linger": linger,
        "sinks": sinks,
        "feeds": list(feeds),
        "channels": list(channels),
        "pins": [],
    }


def test_streams_are_those_of_all_workers() -> None:
    """The hub knows which feeds there are, and the workers who follows them."""
    hub = body(feed("prefix=/a/", 2), feed("prefix=/p/", 1, pinned=True), feed("prefix=/gone/", 1), linger=0.0)
    first = body(feed("prefix=/a/", 3, lag=4, held_by=("prefix=/a/",)), fast=3, channels=(channel("prefix=/a/"),))
    second = body(
        feed("prefix=/a/", 1, held_by=("prefix=/a/", "prefix=/a/b")),
        fast=1,
        channels=(channel("prefix=/a/b", subscribers=0), channel("prefix=/a/", state="stale", trouble="etcd")),
    )
    found = merge_feeds(hub, [first, second])
    assert (found["instance"], found["linger"], found["sinks"]["fast"]) == ("a", 30.0, 4)
    shared, pinned, gone = found["feeds"]
    assert (shared["subscribers"], shared["lag"], shared["channels"], shared["lingering"]) == (4, 4, 2, False)
    assert shared["held_by"] == [["prefix=/a/"], ["prefix=/a/b"]]
    assert (pinned["lingering"], gone["lingering"], gone["subscribers"]) == (False, True, 0)
    both, narrow = found["channels"]
    assert (both["subscribers"], both["state"], both["trouble"], both["bytes"]) == (2, "stale", "etcd", 20)
    assert (narrow["subscribers"], narrow["lingering"]) == (0, True)


def test_each_feed_is_looked_at_once() -> None:
    """Not once for each feed of the hub: with thousands of ranges, each scrape would stop the hub for seconds."""
    looks = 0

    class Counted(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            nonlocal looks
            looks += name == "range"
            return super().__getitem__(name)

    names = [f"prefix=/{number}/" for number in range(100)]
    worker = body(*(Counted(feed(name, 1)) for name in names))
    merge_feeds(body(*(feed(name, 0) for name in names)), [worker, worker])
    assert looks == 2 * len(names)


def test_the_subscribers_of_one_channel_are_listed_together() -> None:
    """``/v1/feeds?prefix=`` lists them, whichever worker serves them."""
    ask: Body = {"subscriber_list": []}
    lists: list[Body] = [{"subscriber_list": [{"address": name}]} for name in ("one", "two")]
    workers = [body(feed("prefix=/a/", 1, **one), channels=(channel("prefix=/a/", **one),)) for one in lists]
    found = merge_feeds(body(feed("prefix=/a/", 0, **ask)), workers)
    for part in (found["feeds"][0], found["channels"][0]):
        assert [one["address"] for one in part["subscriber_list"]] == ["one", "two"]


def test_a_pin_that_one_worker_cannot_hold_is_seen() -> None:
    """Each process has the pin in its own memory, and the clients of one worker are refused. The worst state counts."""
    held = {"range": "prefix=/a/", "state": "held"}
    waiting = {"range": "prefix=/a/", "state": "waiting"}
    large = {"range": "prefix=/a/", "state": "unavailable", "trouble": "too large"}
    other = {"range": "prefix=/b/", "state": "held"}
    reports = [body() | {"pins": [one, other]} for one in (waiting, large, held)]
    assert merge_feeds(body() | {"pins": [held, other]}, reports)["pins"] == [large, other]
    assert merge_pins([], [large]) == merge_pins([large], []) == [large]
