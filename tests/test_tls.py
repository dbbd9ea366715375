"""The certificate's files: what is refused and in which words, when a change counts, and what a context permits."""

from __future__ import annotations

import logging
import os
import ssl
import time
from datetime import timedelta
from pathlib import Path

import pytest

from app.settings import SettingsError, load
from app.tls import FAILURES, Tls, UpstreamTls, make_tls
from tests.support.certificates import Ca, Pair, openssl

DAY = 86_400.0


@pytest.fixture(name="ca")
def _ca(tmp_path: Path) -> Ca:
    return Ca(tmp_path / "ca")


@pytest.fixture(name="pair")
def _pair(ca: Ca, tmp_path: Path) -> Pair:
    """A certificate in the files that the settings name."""
    return put(ca.sign("one"), tmp_path)


def put(source: Pair, folder: Path) -> Pair:
    """Copy a certificate to the files that the settings name."""
    pair = Pair(folder / "tls.crt", folder / "tls.key")
    pair.cert.write_bytes(source.cert.read_bytes())
    pair.key.write_bytes(source.key.read_bytes())
    return pair


def make(pair: Pair, client_ca: Path | None = None, *, now: float | None = None, clock: float = 0.0) -> Tls:
    """TLS with these files."""
    settings = {"tls_cert": str(pair.cert), "tls_key": str(pair.key)}
    if client_ca is not None:
        settings["tls_client_ca"] = str(client_ca)
    return Tls(load(settings), clock=lambda: clock, wall=lambda: time.time() if now is None else now)


def shake(server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLObject:
    """A handshake in memory; the client's side of it."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname="localhost", session=session)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (one, other):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    other.write(b"data")
    assert one.read(4) == b"data"
    return one


def trusting(*cas: Path) -> ssl.SSLContext:
    """A client's context that trusts these CAs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for ca in cas:
        context.load_verify_locations(ca)
    return context


def name_of(tls: Tls, ca: Ca) -> str:
    """The name in the certificate that new connections see."""
    found = shake(tls.for_clients(), trusting(ca.cert)).getpeercert()
    assert found is not None
    return str(dict(item[0] for item in found["subject"])["commonName"])  # type: ignore[misc]  # a loose type


def test_nothing_without_settings() -> None:
    """Without a certificate, the ports speak plain HTTP."""
    assert make_tls(load({}), clock=time.monotonic, wall=time.time) is None


def test_the_expiry_is_reported(pair: Pair) -> None:
    """The statistics have the time at which the certificate expires."""
    statistics = make(pair).statistics()

    assert 0.9 * DAY < statistics.expires - time.time() < 1.1 * DAY
    assert (statistics.trouble, set(statistics.failures)) == ("", set(FAILURES))


def test_what_is_refused_at_the_start(ca: Ca, pair: Pair, tmp_path: Path) -> None:
    """Each fault names the setting, the file, and what is wrong; nothing quotes the key."""
    junk, gone, locked = tmp_path / "junk", tmp_path / "gone", tmp_path / "locked"
    junk.write_text("no PEM")
    openssl("pkey", "-in", pair.key, "-aes256", "-passout", "pass:secret", "-out", locked)
    other, large = ca.sign("two"), tmp_path / "large"
    large.write_bytes(b"a" * (2 << 20))
    torn = tmp_path / "torn"
    torn.write_bytes(pair.cert.read_bytes()[:300])

    def refusal(cert: Path, key: Path, client_ca: Path | None = None, now: float | None = None) -> str:
        with pytest.raises(SettingsError) as caught:
            make(Pair(cert, key), client_ca, now=now)
        assert "PRIVATE KEY" not in str(caught.value)
        return str(caught.value)

    cert, key = "GATEWAY_TLS_CERT (--tls-cert): ", "GATEWAY_TLS_KEY (--tls-key): "
    client_ca = "GATEWAY_TLS_CLIENT_CA (--tls-client-ca): "
    both = (pair.cert, pair.key)
    damaged = "has no certificate in PEM form, or a damaged one"
    assert refusal(gone, pair.key) == f"{cert}{gone}: cannot be read: No such file or directory"
    assert refusal(junk, pair.key) == f"{cert}{junk}: {damaged}"
    assert refusal(torn, pair.key) == f"{cert}{torn}: {damaged}"
    assert refusal(large, pair.key) == f"{cert}{large}: has more than 1048576 bytes"
    assert refusal(pair.cert, gone) == f"{key}{gone}: cannot be read: No such file or directory"
    assert refusal(pair.cert, junk).startswith(f"{key}{junk}: has no private key in PEM form")
    assert refusal(pair.cert, locked).startswith(f"{key}{locked}: the key is encrypted")
    assert refusal(pair.cert, other.key).startswith(f"{key}{other.key}: the key does not belong to the first")
    assert refusal(pair.cert, pair.key, junk) == f"{client_ca}{junk}: {damaged}"
    assert refusal(pair.cert, pair.key, gone).startswith(f"{client_ca}{gone}: cannot be read")
    assert refusal(*both, now=time.time() + 2 * DAY).startswith(f"{cert}{pair.cert}: the certificate expired at 20")
    assert refusal(*both, now=time.time() - DAY).startswith(f"{cert}{pair.cert}: the certificate is valid from 20")


def test_a_weak_key_is_refused(pair: Pair) -> None:
    """What OpenSSL itself refuses is said in OpenSSL's words."""
    arguments = (
        "-newkey",
        "rsa:1024",
        "-nodes",
        "-keyout",
        pair.key,
        "-out",
        pair.cert,
        "-days",
        "1",
        "-subj",
        "/CN=a",
    )
    openssl("req", "-x509", *arguments)

    with pytest.raises(SettingsError, match="OpenSSL refuses the certificate: EE_KEY_TOO_SMALL"):
        make(pair)


def test_clocks_may_differ_a_little(ca: Ca) -> None:
    """A certificate that the issuer made a moment ago, by its own clock, is valid."""
    assert make(ca.sign("new", age=timedelta()), now=time.time() - 60).statistics().trouble == ""


async def test_a_renewed_certificate_is_used(ca: Ca, pair: Pair) -> None:
    """New connections see the new certificate once both files belong together; the old one serves until then."""
    tls = make(pair)
    renewed = ca.sign("two")
    pair.cert.write_bytes(renewed.cert.read_bytes())

    assert [await tls.files.poll() for _ in range(3)] == ["unchanged", "unusable", "unusable"]
    assert "does not belong" in tls.statistics().trouble
    assert name_of(tls, ca) == "one"

    pair.key.write_bytes(renewed.key.read_bytes())

    assert [await tls.files.poll() for _ in range(3)] == ["unchanged", "changed", "unchanged"]
    assert tls.statistics().trouble == ""
    assert name_of(tls, ca) == "two"


async def test_kubernetes_swaps_a_link(ca: Ca, tmp_path: Path) -> None:
    """The kubelet replaces both files of a Secret at once: by renaming a link to another folder."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        put(ca.sign(name), tmp_path / name)
    (tmp_path / "..data").symlink_to("one")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    tls = make(Pair(tmp_path / "tls.crt", tmp_path / "tls.key"))
    (tmp_path / "..data_tmp").symlink_to("two")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")

    assert [await tls.files.poll(), await tls.files.poll()] == ["unchanged", "changed"]
    assert name_of(tls, ca) == "two"


async def test_what_is_in_use_is_used_until_there_is_another(ca: Ca, pair: Pair) -> None:
    """A worker that begins after the certificate has expired does as the running ones do, which go on with it."""
    now = time.time() + 2 * DAY
    settings = load({"tls_cert": str(pair.cert), "tls_key": str(pair.key)})
    contents = Tls(settings, clock=lambda: 0.0, wall=time.time).files.contents
    tls = Tls(settings, clock=lambda: 0.0, wall=lambda: now, read_before=contents)

    assert name_of(tls, ca) == "one"
    assert tls.statistics().expires < now
    assert [await tls.files.look(), await tls.files.poll()] == ["unchanged", "unchanged"]
    put(ca.sign("two"), pair.cert.parent)  # as expired as the first
    assert await tls.files.look() == "unusable"
    assert "expired at" in tls.statistics().trouble


@pytest.mark.parametrize("bad", ["removed", "empty", "torn", "expired"])
async def test_a_bad_file_changes_nothing(bad: str, ca: Ca, pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """A file that cannot be used is logged once, is reported, and changes nothing; also for SIGHUP."""
    now = [time.time()]
    settings = load({"tls_cert": str(pair.cert), "tls_key": str(pair.key)})
    tls = Tls(settings, clock=lambda: 0.0, wall=lambda: now[0])
    good = pair.cert.read_bytes()
    if bad == "removed":
        pair.cert.unlink()
    elif bad == "expired":
        now[0] += 2 * DAY
        put(ca.sign("two"), pair.cert.parent)
    else:
        pair.cert.write_bytes(b"" if bad == "empty" else good[:200])

    with caplog.at_level(logging.WARNING, "gateway"):
        assert await tls.files.look() == "unusable"
        assert await tls.files.poll() in ("unchanged", "unusable")
        assert await tls.files.poll() == "unusable"

    assert [record.getMessage() for record in caplog.records] == [
        "the TLS certificate cannot be used: what was read before stays valid"
    ]
    assert tls.statistics().trouble.startswith(f"GATEWAY_TLS_CERT (--tls-cert): {pair.cert}: ")
    assert name_of(tls, ca) == "one"


async def test_a_removed_ca_permits_nobody(tmp_path: Path, pair: Pair) -> None:
    """After a CA is replaced, a client of the old CA is refused, also one that would resume its session."""
    first, second = Ca(tmp_path / "1", "first"), Ca(tmp_path / "2", "second")
    file = tmp_path / "clients.crt"
    file.write_text("# müsli\n" + first.cert.read_text())
    tls = make(pair, file)
    clients = []
    for ca in (first, second):
        context = trusting(tmp_path / "ca" / "tests.crt")
        own = ca.sign("client")
        context.load_cert_chain(own.cert, own.key)
        clients.append(context)
    session = shake(tls.for_clients(), clients[0]).session
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(tls.for_clients(), clients[1])

    file.write_text(second.cert.read_text())
    assert await tls.files.look() == "changed"

    with pytest.raises(ssl.SSLCertVerificationError):
        shake(tls.for_clients(), clients[0], session)
    shake(tls.for_clients(), clients[1])
    shake(tls.for_operators(), trusting(tmp_path / "ca" / "tests.crt"))  # the kubelet has no certificate


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_is_resumed(version: ssl.TLSVersion, ca: Ca, pair: Pair) -> None:
    """The client of each version begins anew, whatever it remembers. The same client resumes elsewhere."""
    client = trusting(ca.cert)
    client.minimum_version = client.maximum_version = version
    elsewhere = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    elsewhere.load_cert_chain(pair.cert, pair.key)
    for server, resumes in ((make(pair).for_clients(), False), (elsewhere, True)):
        first = shake(server, client)

        assert shake(server, client, first.session).session_reused is resumes


def test_what_is_negotiated(ca: Ca, pair: Pair) -> None:
    """HTTP/1.1 alone, TLS 1.2 at least, and the client cannot renegotiate."""
    context, client = make(pair).for_clients(), trusting(ca.cert)
    client.set_alpn_protocols(["h2", "http/1.1"])

    assert shake(context, client).selected_alpn_protocol() == "http/1.1"
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_failures_are_counted_and_logged_now_and_then(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """A port scanner does not fill the log: one line per reason and minute. All are counted."""
    now = 0.0
    settings = load({"tls_cert": str(pair.cert), "tls_key": str(pair.key)})
    tls = Tls(settings, clock=lambda: now, wall=lambda: time.time())
    with caplog.at_level(logging.WARNING, "gateway.http"):
        for reason in (*FAILURES, *FAILURES):
            tls.failed(reason, "detail", "192.0.2.1")
        said = len(caplog.records)
        now = 61.0
        tls.failed("plain-http", "", "192.0.2.1")

    assert said == len(FAILURES) - 1  # a client that leaves is not worth a line
    assert len(caplog.records) == said + 1
    assert caplog.records[-1].getMessage().startswith("plain HTTP was sent to the TLS port")
    assert tls.statistics().failures == {**dict.fromkeys(FAILURES, 2), "plain-http": 3}


def test_without_memfd(ca: Ca, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without files in memory, the copies are temporary files."""
    monkeypatch.delattr(os, "memfd_create", raising=False)

    assert name_of(make(pair), ca) == "one"


def above(**files: Path) -> UpstreamTls:
    """TLS to an upstream with these files."""
    chosen = {f"upstream_{name}": str(path) for name, path in files.items()}
    return UpstreamTls(load({"upstream": "https://root:8080", **chosen}), wall=time.time)


def test_what_is_refused_of_the_files_for_an_upstream(ca: Ca, pair: Pair, tmp_path: Path) -> None:
    """The start fails with a line that names the setting, the file and the fault."""
    junk, gone, other = tmp_path / "junk", tmp_path / "gone", ca.sign("two")
    junk.write_text("no PEM")
    empty = tmp_path / "empty"
    empty.touch()
    both, cas = {"cert": pair.cert, "key": pair.key}, "GATEWAY_UPSTREAM_CACERT (--upstream-cacert): {}: "
    for files, fault in (
        (
            {"cacert": gone},
            cas + "cannot be read: No such file or directory",
        ),
        ({"cacert": junk}, cas + "has no CA in PEM form"),
        ({"cacert": empty}, cas + "has no CA in PEM form"),  # the system's CAs were trusted instead
        ({**both, "cert": junk}, "GATEWAY_UPSTREAM_CERT (--upstream-cert): {}: has no certificate in PEM form"),
        ({**both, "key": other.key}, "GATEWAY_UPSTREAM_KEY (--upstream-key): {}: the key does not belong to the first"),
    ):
        (wrong,) = set(files.values()) - set(both.values())
        with pytest.raises(SettingsError) as caught:
            above(**files)
        assert str(caught.value).startswith(fault.format(wrong))


def test_comments_of_a_ca_for_an_upstream(ca: Ca, tmp_path: Path) -> None:
    """A list of CAs may have comments in any language, and line ends of any system."""
    commented = tmp_path / "commented"
    commented.write_bytes("# Autorité\r\n".encode() + ca.cert.read_bytes().replace(b"\n", b"\r\n"))
    assert above(cacert=commented).context.get_ca_certs() == above(cacert=ca.cert).context.get_ca_certs()


async def test_the_files_for_an_upstream_are_read_again(ca: Ca, pair: Pair, tmp_path: Path) -> None:
    """A context that is in use is not changed: the next connection gets another one."""
    tls = above(cacert=ca.cert, cert=pair.cert, key=pair.key)
    first = tls.context
    put(ca.sign("two"), tmp_path)
    assert tls.files is not None
    assert await tls.files.look() == "changed"
    server = make(pair, ca.cert)
    assert tls.context is not first
    assert [shake(server.for_clients(), context).version() for context in (first, tls.context)] == ["TLSv1.3"] * 2
    assert above().context is not None
