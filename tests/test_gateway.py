"""The gateway as one object: what it reports, what it reads again, and how it notices its own failure."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from app.core.keys import KeyRange
from app.gateway import Gateway, upstream_token_of
from app.settings import SettingsError, load
from app.watch.subscriber import Subscriber

NOWHERE = "http://127.0.0.1:1"
SVC, KEY = KeyRange("prefix", b"/svc/"), KeyRange("key", b"/svc/a")


def subscribe(gateway: Gateway, watched: KeyRange, address: str = "") -> Subscriber:
    """Subscribe before the gateway runs: it does not know yet that etcd is away, so the feed waits for etcd."""
    return gateway.registry.subscribe((watched,), address=address, user_agent="u", request_id="r", has_cursor=False)


async def test_what_it_holds() -> None:
    """The gateway reports each feed with its subscribers, or one range's feed if asked for that range."""
    gateway = Gateway(load({"etcd": NOWHERE}))
    subscribers = [subscribe(gateway, SVC, "a:1"), subscribe(gateway, SVC, "b:2"), subscribe(gateway, KEY)]
    subscribers.pop().release()
    watch = gateway.statistics().watch

    assert [(feed.range, feed.subscribers, feed.lingering) for feed in watch.feeds] == [(SVC, 2, False), (KEY, 0, True)]
    assert (watch.subscribers, watch.feeds_started, watch.draining) == (2, 2, False)
    assert [feed.range for feed in gateway.statistics((KEY,)).watch.feeds] == [KEY]
    assert gateway.statistics((KeyRange("key", b"x"),)).watch.feeds == ()
    followers = gateway.registry.subscriber_statistics((SVC,))
    assert [(one.address, one.user_agent, one.request_id, one.behind) for one in followers] == [
        ("a:1", "u", "r", 0),
        ("b:2", "u", "r", 0),
    ]
    for subscriber in subscribers:
        subscriber.release()
    await gateway.registry.aclose()


async def test_statistics_are_a_value() -> None:
    """Statistics stay as they were when taken, and are immutable."""
    gateway = Gateway(load({"etcd": NOWHERE}))
    before = gateway.statistics()
    counters = gateway.streams.counters
    counters.opened += 1
    counters.closed["drain"] += 1
    counters.handed.resets["initial"] += 1
    subscriber = subscribe(gateway, SVC)
    after = gateway.statistics()

    assert (before.streams.opened, before.streams.closed, before.streams.resets, before.watch.feeds) == (0, {}, {}, ())
    assert (after.streams.opened, after.streams.closed, after.streams.resets) == (1, {"drain": 1}, {"initial": 1})
    assert len(after.watch.feeds) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.watch = after.watch  # type: ignore[misc]
    subscriber.release()
    await gateway.registry.aclose()


async def test_an_etcd_that_was_never_reached() -> None:
    """Before etcd's first answer ``/readyz`` and the metrics already have values."""
    etcd = Gateway(load({"etcd": NOWHERE})).statistics().etcd

    assert (etcd.reached, etcd.watchers, etcd.highest_revision, etcd.reconnects, etcd.ranges) == (False, 0, 0, 0, 0)
    assert (etcd.condition.endpoint, etcd.condition.state) == (NOWHERE, "connecting")


async def test_a_reload_says_what_came_of_each_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A reload reads the token file; files for etcd are read for each connection anyway."""
    file = tmp_path / "token"
    file.write_text("one")
    with_token, without = Gateway(load({"etcd": NOWHERE, "token_file": str(file)})), Gateway(load({"etcd": NOWHERE}))
    file.write_text("two")
    with caplog.at_level(logging.INFO, "gateway"):
        await with_token.reload()
        await without.reload()

    reloaded = [vars(record) for record in caplog.records if record.getMessage() == "reloaded"]
    assert [(line["token"], line["etcd"]) for line in reloaded] == [
        ("changed", "read for each connection"),
        ("not set", "read for each connection"),
    ]


async def test_credentials_that_cannot_be_used(tmp_path: Path) -> None:
    """Unusable credentials are an error when the gateway is created, and the error names their setting."""
    with pytest.raises(SettingsError, match=r"^GATEWAY_ETCD_PASSWORD_FILE \(--etcd-password-file\): "):
        Gateway(load({"etcd": NOWHERE, "etcd_user": "a", "etcd_password_file": str(tmp_path / "none")}))


@pytest.mark.parametrize(("etcd", "warned"), [("http://192.0.2.1:2379", True), (NOWHERE, False)])
async def test_a_password_in_plain_text(
    etcd: str, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A password over plain text is warned about, unless etcd is on this machine."""
    (tmp_path / "password").write_text("s3cret")
    Gateway(load({"etcd": etcd, "etcd_user": "a", "etcd_password_file": str(tmp_path / "password")}))

    said = [record.getMessage() for record in caplog.records]
    assert ("the password for etcd is sent in plain text" in said) == warned
    assert "s3cret" not in caplog.text


async def test_the_name_of_the_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    """The instance is named by its setting, otherwise by the host."""
    monkeypatch.setattr("socket.gethostname", lambda: "the-host")

    assert Gateway(load({"etcd": NOWHERE})).instance == "the-host"
    assert Gateway(load({"etcd": NOWHERE, "instance": "one"})).instance == "one"


async def test_it_hears_of_its_own_failure(caplog: pytest.LogCaptureFixture) -> None:
    """A failure sets ``broken``, which the server waits for."""
    gateway = Gateway(load({"etcd": NOWHERE}))
    assert not gateway.broken.is_set()
    gateway.fail(RuntimeError("a defect"))

    assert gateway.broken.is_set()
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL]


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"trusted_proxies": "*", "address_streams": 5}, True),
        ({"trusted_proxies": "*", "address_reads": 5}, True),
        ({"trusted_proxies": "*", "identity_streams": 5}, False),
        ({"trusted_proxies": "10.0.0.7", "address_joins": 5}, False),
    ],
)
async def test_quotas_by_an_address_that_clients_choose(
    settings: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """If everybody is trusted, X-Forwarded-For is the client's own text: no quota of an address limits anybody."""
    gateway = Gateway(load({"etcd": NOWHERE, **settings}))

    assert gateway.registry.quotas is not None
    assert any("clients choose the address" in record.getMessage() for record in caplog.records) == warned


async def test_no_quotas() -> None:
    """Without quotas there is nothing that counts."""
    assert Gateway(load({"etcd": NOWHERE})).registry.quotas is None


def test_the_token_for_an_upstream_is_read_each_time(tmp_path: Path) -> None:
    """A file that cannot be used at the start is an error; later, each request reads it anew."""
    file = tmp_path / "token"
    settings = load({"upstream": "https://root:8080", "upstream_token_file": str(file)})
    with pytest.raises(SettingsError, match="GATEWAY_UPSTREAM_TOKEN_FILE"):
        upstream_token_of(settings)
    file.write_text("one\n")
    token = upstream_token_of(settings)
    file.write_text("two\n")
    assert token() == "two"
    file.unlink()
    assert token() == "two"
    assert upstream_token_of(load({"upstream": "http://root:8080"}))() == ""


async def test_a_drain_leaves_the_merges_of_the_gateways_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """They end when all streams have ended."""
    gateway = Gateway(load({"etcd": NOWHERE}))
    stopped: list[bool] = []
    monkeypatch.setattr(gateway.merges_below, "stop", lambda: stopped.append(True))
    async with gateway.running():
        gateway.drain()
        assert stopped == []
    assert stopped == [True]
