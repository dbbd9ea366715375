"""``app.workers.split_settings``: which settings the hub has, and which a worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.settings import load
from app.workers.split_settings import hub_settings, worker_settings


@pytest.mark.usefixtures("clean_environment")
def test_a_worker_has_what_the_operator_has_given() -> None:
    """What is not given stays not given: some settings may not be set together. The pace of a drain is shared."""
    given = load(
        {"port": 8081, "allow_prefixes": "/svc/", "upstream": "http://root:8080", "drain_pace": 5, "address_reads": 3}
    )
    found = load(json.loads(json.dumps(worker_settings(given, 2, "json"))))
    assert found.model_fields_set == {*given.model_fields_set, "log_format"}
    assert (found.upstream, found.allow_prefixes) == (given.upstream, given.allow_prefixes)
    assert (found.log_format, found.drain_pace, found.address_reads) == ("json", 2, 3)
    assert worker_settings(given, 64, "json")["drain_pace"] == 1


@pytest.mark.usefixtures("clean_environment")
def test_the_hub_checks_no_client(tmp_path: Path) -> None:
    """Its clients are the workers, which nobody else can be. The limits and etcd are its own."""
    given = load({
        "host": "0.0.0.0", "allow_prefixes": "/svc/", "token_file": tmp_path / "t", "admin_port": 1, "max_feeds": 7,
        "linger": 9.0, "pin": "/svc/",
    })  # fmt: skip
    hub = hub_settings(given)
    assert (hub.allow_prefixes, hub.token_file, hub.admin_port, hub.linger) == (None, None, None, 0.0)
    assert (hub.max_feeds, hub.pins, hub.etcd) == (7, given.pins, given.etcd)
