"""A link that is given up while a read waits on it for another token."""

from __future__ import annotations

from pathlib import Path

import pytest
from aetcd import rpc

from app.etcd.credentials import Credentials
from app.etcd.link import Link
from app.etcd.login import LoginError
from tests.etcd.conftest import USER
from tests.support.secure import Admin, SecureEtcd

pytestmark = pytest.mark.etcd


@pytest.mark.usefixtures("root")
async def test_a_closed_channel_is_no_defect(etcd: SecureEtcd, root: Admin, password_file: Path) -> None:
    """Found by the torture, as a 500: the password had changed, which ended the link under the renewal."""
    credentials = Credentials(user=USER, password_file=password_file)
    link = Link(
        etcd.endpoint,
        credentials,
        proof_interval=1,
        on_header=lambda _header: None,
        on_room=lambda: None,
        clock=lambda: 0.0,
    )
    assert await link.check(5) is None
    await root.change_password(USER, "another")
    renew = link.login.renew

    async def renew_too_late(stale: str) -> None:
        await link.aclose("the password is another one")
        await renew(stale)

    link.login.renew = renew_too_late  # type: ignore[method-assign]
    with pytest.raises(LoginError, match="given up"):
        await link.range(rpc.RangeRequest(key=b"/svc/a"), 5)
