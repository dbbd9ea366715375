"""TLS to etcd: which servers the gateway trusts, its own certificate, and files that change while the gateway runs."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.etcd.conftest import says, values
from tests.integration.test_faults import all_hold, follow
from tests.support.certificates import Ca
from tests.support.etcd import etcd_client
from tests.support.gateway import gateway
from tests.support.secure import SecureEtcd
from tests.support.streams import watch
from tests.support.versions import Candidate
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd


@pytest.fixture(name="ca")
def _ca(tmp_path: Path) -> Ca:
    """The CA of etcd's certificate."""
    return Ca(tmp_path / "ca")


@pytest.fixture(name="etcd")
async def _etcd(candidate: Candidate, tmp_path: Path, ca: Ca) -> AsyncIterator[SecureEtcd]:
    """An etcd that any client may read."""
    etcd = SecureEtcd(folder=candidate.folder, pki=tmp_path / "pki")
    etcd.install(ca)
    async with etcd:
        yield etcd


@pytest.fixture(name="strict")
async def _strict(candidate: Candidate, tmp_path: Path, ca: Ca) -> AsyncIterator[SecureEtcd]:
    """An etcd that requires a client certificate."""
    etcd = SecureEtcd(folder=candidate.folder, pki=tmp_path / "pki", client_auth=True)
    etcd.install(ca)
    async with etcd:
        yield etcd


def client_files(folder: Path, ca: Ca, name: str = "gateway") -> dict[str, str]:
    """The settings for a certificate of *ca*; the files may exist already, and are then replaced."""
    folder.mkdir(exist_ok=True)
    pair = ca.sign(name)
    for source, file in ((ca.cert, "ca.crt"), (pair.cert, "tls.crt"), (pair.key, "tls.key")):
        shutil.copy(source, folder / file)
    return {
        "GATEWAY_ETCD_CACERT": str(folder / "ca.crt"),
        "GATEWAY_ETCD_CERT": str(folder / "tls.crt"),
        "GATEWAY_ETCD_KEY": str(folder / "tls.key"),
    }


async def test_reads_and_watches(etcd: SecureEtcd, ca: Ca) -> None:
    """Reads and watches work over TLS, by name and by address."""
    endpoints = (etcd.tls_endpoint, etcd.tls_endpoint.replace("localhost", "127.0.0.1"))
    for endpoint in endpoints:
        async with (
            etcd_client(etcd.endpoint) as kv,
            gateway(endpoint, settings={"GATEWAY_ETCD_CACERT": str(ca.cert)}) as server,
            await watch(server.base, "prefix=/svc/") as stream,
        ):
            await stream.until("synced")
            await kv.put("/svc/a", "2")
            (change,) = await stream.changes(1)

            assert change.data["value"] == "2"
            assert await values(server) == (200, {"/svc/a": "2"})


@pytest.mark.one_etcd
async def test_the_systems_roots(etcd: SecureEtcd, ca: Ca) -> None:
    """Without a CA file, the system's CAs are trusted: those that OpenSSL would find."""
    async with gateway(etcd.tls_endpoint, settings={"SSL_CERT_FILE": str(ca.cert)}) as server:
        await eventually(lambda: says(server, "ready"))


@pytest.mark.one_etcd
async def test_a_certificate_of_somebody_else(etcd: SecureEtcd, tmp_path: Path) -> None:
    """A server with a foreign certificate is refused, and reported.

    Once the right CA file is there, the next connection works.
    """
    other = tmp_path / "ca.crt"
    shutil.copy(Ca(tmp_path, "other").cert, other)
    async with gateway(etcd.tls_endpoint, settings={"GATEWAY_ETCD_CACERT": str(other)}) as server:
        await eventually(lambda: says(server, "down", "GATEWAY_ETCD_CACERT", "unable to get local issuer"))

        shutil.copy(tmp_path / "ca" / "tests.crt", other)
        await eventually(lambda: says(server, "ready"))


@pytest.mark.one_etcd
async def test_a_certificate_for_another_name(etcd: SecureEtcd, ca: Ca) -> None:
    """A certificate of the right CA for another server's name is refused."""
    assert etcd.pki is not None
    wrong = ca.sign("wrong", names="etcd.example")
    shutil.copy(wrong.cert, etcd.pki / "server.crt")
    shutil.copy(wrong.key, etcd.pki / "server.key")
    async with gateway(etcd.tls_endpoint, settings={"GATEWAY_ETCD_CACERT": str(ca.cert)}) as server:
        await eventually(lambda: says(server, "down", "for other names"))


async def test_client_certificate(strict: SecureEtcd, ca: Ca, tmp_path: Path) -> None:
    """etcd accepts the right certificate; without one, or with one of another CA, /readyz reports that etcd is down."""
    files = client_files(tmp_path / "client", ca)
    async with gateway(strict.tls_endpoint, settings=files) as server:
        assert (await values(server))[0] == 200

    stranger = client_files(tmp_path / "stranger", Ca(tmp_path, "other"))
    for settings in ({}, {name: stranger[name] for name in ("GATEWAY_ETCD_CERT", "GATEWAY_ETCD_KEY")}):
        async with gateway(strict.tls_endpoint, settings={"GATEWAY_ETCD_CACERT": str(ca.cert), **settings}) as server:
            await eventually(lambda server=server: says(server, "down", "GATEWAY_ETCD_CERT"))  # type: ignore[misc]


@pytest.mark.one_etcd
async def test_everything_is_renewed(strict: SecureEtcd, ca: Ca, tmp_path: Path) -> None:
    """Another CA, server certificate and client certificate need no restart of the gateway, and cause no reset."""
    files = client_files(tmp_path / "client", ca)
    async with (
        etcd_client(strict.endpoint) as kv,
        gateway(strict.tls_endpoint, settings=files) as server,
        follow(server.base, 1) as (follower,),
    ):
        renewed = Ca(tmp_path / "renewed", "renewed")
        strict.install(renewed)
        await strict.restart()
        await eventually(lambda: says(server, "down"))
        # A file that is read while it is being written costs one more failed connection, and no more.
        shutil.copy(__file__, files["GATEWAY_ETCD_CACERT"])
        await eventually(lambda: says(server, "down", "GATEWAY_ETCD_CACERT", "has no certificate in PEM form"))
        client_files(tmp_path / "client", renewed)
        await kv.put("/svc/a", "renewed")
        await eventually(lambda: all_hold([follower], kv))

        assert await says(server, "ready")
        assert follower.mirror.resets == ["initial"]
