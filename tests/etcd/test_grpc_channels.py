"""The channels of a link: the largest message of each, and that no proxy from the environment is used."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from app.etcd.credentials import Credentials
from app.etcd.grpc_channels import MAX_MESSAGE, MAX_PAGE_MESSAGE, open_channels

Opened = list[tuple[str, str, dict[str, int]]]


@pytest.fixture(name="opened")
def _opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """The kind, target and options of each channel that is opened."""
    opened: Opened = []

    def insecure(target: str, *, options: Any) -> None:
        opened.append(("http", target, dict(options)))

    def secure(target: str, _credentials: Any, *, options: Any) -> None:
        opened.append(("https", target, dict(options)))

    monkeypatch.setattr(grpc.aio, "insecure_channel", insecure)
    monkeypatch.setattr(grpc.aio, "secure_channel", secure)
    monkeypatch.setattr(Credentials, "channel", lambda _self: object())
    return opened


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_three_channels(opened: Opened, scheme: str) -> None:
    """Reads accept a page, watches accept their configured limit, and single large items have a third channel."""
    open_channels(f"{scheme}://etcd-0:2379", Credentials(), 32 << 20)
    assert [(kind, target) for kind, target, _ in opened] == [(scheme, "etcd-0:2379")] * 3
    sizes = [options["grpc.max_receive_message_length"] for _, _, options in opened]
    assert sizes == [MAX_PAGE_MESSAGE, 32 << 20, MAX_MESSAGE]
    for _, _, options in opened:
        assert options["grpc.enable_http_proxy"] == 0
        assert options["grpc.use_local_subchannel_pool"] == 1
    # A response that is refused must not be read ahead; a watch response may be.
    assert ["grpc.http2.bdp_probe" in options for _, _, options in opened] == [True, False, True]


def test_no_message_is_larger_than_any_may_be(opened: Opened) -> None:
    """No channel accepts more than the largest possible message, whatever the settings are."""
    open_channels("http://etcd-0:2379", Credentials(), 2 * MAX_MESSAGE)
    assert opened[1][2]["grpc.max_receive_message_length"] == MAX_MESSAGE
