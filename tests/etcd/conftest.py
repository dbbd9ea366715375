"""Every test here runs on each etcd of this machine; tests marked `one_etcd`, which are about the gateway itself, run
on the first etcd only (tests/conftest.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.gateway import STALE_SOON, GatewayProcess
from tests.support.secure import Admin, SecureEtcd, administered
from tests.support.versions import Candidate, real_etcds

USER = "gateway"
PASSWORD = "hunter2"


@pytest.fixture(name="candidate", params=real_etcds(), ids=lambda candidate: candidate.version)
def _candidate(request: pytest.FixtureRequest) -> Candidate:
    """One of the etcds."""
    found: Candidate = request.param
    return found


@pytest.fixture(name="etcd")
async def _etcd(candidate: Candidate) -> AsyncIterator[SecureEtcd]:
    """The test's own etcd, without TLS."""
    async with SecureEtcd(folder=candidate.folder) as etcd:
        yield etcd


@pytest.fixture(name="root")
async def _root(etcd: SecureEtcd) -> AsyncIterator[Admin]:
    """Root's access, with auth enabled; the gateway's user may read only /svc/."""
    async with administered(etcd) as root:
        await root.add_user(USER, PASSWORD, "/svc/")
        yield root


@pytest.fixture(name="password_file")
def _password_file(tmp_path: Path) -> Path:
    """The password file of the gateway's user."""
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    return path


@pytest.fixture(name="login")
def _login(password_file: Path) -> dict[str, str]:
    """The settings for the user; its permissions are checked again as often as a feed becomes stale."""
    return {**STALE_SOON, "GATEWAY_ETCD_USER": USER, "GATEWAY_ETCD_PASSWORD_FILE": str(password_file)}


async def condition(server: GatewayProcess) -> tuple[str, str]:
    """The condition of etcd in /readyz: the state, and the reason."""
    async with httpx.AsyncClient(trust_env=False) as client:
        etcd = (await client.get(f"{server.base}/readyz")).json()["etcd"]
    return etcd["state"], etcd.get("reason", "")


async def says(server: GatewayProcess, state: str, *words: str) -> bool:
    """Whether /readyz reports that state, with these words."""
    found, reason = await condition(server)
    return found == state and all(word in reason for word in words)


async def values(server: GatewayProcess, prefix: str = "/svc/") -> tuple[int, dict[str, str]]:
    """The status of a read, and the values that it found."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{server.base}/v1/kv", params={"prefix": prefix})
    return answer.status_code, {kv["key"]: kv["value"] for kv in answer.json().get("kvs", ())}
