"""The files of TLS and passwords: which are refused at the start, with which texts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.etcd.credentials import Credentials, CredentialsError
from tests.support.certificates import Ca, Pair, openssl
from tests.support.gateway import start


@pytest.fixture(name="ca", scope="module")
def _ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    """A CA."""
    return Ca(tmp_path_factory.mktemp("ca"))


@pytest.fixture(name="pair", scope="module")
def _pair(ca: Ca) -> Pair:
    """A certificate and its key."""
    return ca.sign("somebody")


def refused(credentials: Credentials, *, tls: bool = True) -> list[str]:
    """The lines of the refusal."""
    with pytest.raises(CredentialsError) as caught:
        credentials.check(tls=tls)
    return str(caught.value).splitlines()


def test_good_files(ca: Ca, pair: Pair, tmp_path: Path) -> None:
    """Good files give no errors; the name under which etcd may know the gateway is a user's or a certificate's."""
    password = tmp_path / "password"
    password.write_text(" p w \n")
    everything = Credentials(ca.cert, pair.cert, pair.key, "user", password)
    everything.check(tls=True)

    assert everything.password() == "p w"
    assert everything.named
    assert Credentials(cert=pair.cert, key=pair.key).named
    assert not Credentials(cacert=ca.cert).named
    Credentials().check(tls=False)


def test_missing_and_unreadable(ca: Ca, pair: Pair, tmp_path: Path) -> None:
    """Each error names the setting and the file, but does not repeat the file's content."""
    gone, text = tmp_path / "gone", tmp_path / "text"
    text.write_text("no PEM, but a s3cret\n")

    assert refused(Credentials(cacert=gone)) == [
        f"GATEWAY_ETCD_CACERT (--etcd-cacert): cannot read {gone}: No such file or directory"
    ]
    assert refused(Credentials(cacert=text)) == [
        f"GATEWAY_ETCD_CACERT (--etcd-cacert): {text} has no certificate in PEM form"
    ]
    for cert, key, said in (
        (gone, pair.key, f"GATEWAY_ETCD_CERT (--etcd-cert): cannot read {gone}: No such file or directory"),
        (text, pair.key, f"GATEWAY_ETCD_CERT (--etcd-cert): {text} has no certificate in PEM form"),
        (pair.cert, gone, f"GATEWAY_ETCD_KEY (--etcd-key): cannot read {gone}: No such file or directory"),
        (pair.cert, text, f"GATEWAY_ETCD_KEY (--etcd-key): {text} holds no private key in PEM"),
        (pair.cert, tmp_path, f"GATEWAY_ETCD_KEY (--etcd-key): cannot read {tmp_path}: Is a directory"),
    ):
        assert refused(Credentials(ca.cert, cert, key)) == [said]


def test_a_key_of_another_certificate(ca: Ca, pair: Pair) -> None:
    """A key of another certificate is refused at the start, and not by a later handshake."""
    other = ca.sign("other")

    assert refused(Credentials(ca.cert, pair.cert, other.key)) == [
        f"GATEWAY_ETCD_KEY (--etcd-key): {other.key} is not the key of {pair.cert}"
    ]


def test_an_encrypted_key(ca: Ca, pair: Pair, tmp_path: Path) -> None:
    """An encrypted key is refused, without a request for a passphrase on a terminal."""
    locked = tmp_path / "locked.key"
    openssl("pkey", "-in", pair.key, "-aes256", "-passout", "pass:s3cret", "-out", locked)

    (line,) = refused(Credentials(ca.cert, pair.cert, locked))
    assert line.startswith(f"GATEWAY_ETCD_KEY (--etcd-key): {locked} is encrypted")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xe9", "is not UTF-8 text"),
        (b"\xef\xbb\xbfword", "begins with a byte order mark; save it without one"),
        (b"word\nmore\n", "has a line break or a control character inside the password"),
        (bytes(20000), "has more than 16384 bytes"),
    ],
)
def test_no_password(tmp_path: Path, content: bytes, said: str) -> None:
    """A file that holds no password is refused: an operator forgot to fill it, or an editor added bytes."""
    path = tmp_path / "password"
    path.write_bytes(content)

    assert refused(Credentials(user="user", password_file=path), tls=False) == [
        f"GATEWAY_ETCD_PASSWORD_FILE (--etcd-password-file): {path} {said}"
    ]


def test_files_that_never_end(tmp_path: Path) -> None:
    """A pipe without a writer, and a device, do not stop the start."""
    pipe, device = tmp_path / "pipe", Path("/dev/zero")
    os.mkfifo(pipe)
    for path, said in ((pipe, "is empty"), (device, "has more than 16384 bytes")):
        (line,) = refused(Credentials(user="user", password_file=path), tls=False)
        assert line.endswith(f"{path} {said}")
    for path, said in ((pipe, "has no certificate in PEM form"), (device, "has more than 1048576 bytes")):
        (line,) = refused(Credentials(cacert=path))
        assert line.endswith(f"{path} {said}")


def test_comments_that_are_not_ascii(ca: Ca, pair: Pair, tmp_path: Path) -> None:
    """Lists of CAs have comments in all languages. Such a file ended the start with a stack trace."""
    cas = tmp_path / "cas"
    cas.write_bytes("# Autoridad de Certificación Raíz\n".encode() + ca.cert.read_bytes())
    Credentials(cas, pair.cert, pair.key).check(tls=True)

    cas.write_bytes(os.urandom(3000))
    assert refused(Credentials(cas)) == [f"GATEWAY_ETCD_CACERT (--etcd-cacert): {cas} has no certificate in PEM form"]


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """All errors are reported at once, a line for each."""
    lines = refused(Credentials(cacert=tmp_path / "a", user="user", password_file=tmp_path / "b"))

    assert [line.partition(" ")[0] for line in lines] == ["GATEWAY_ETCD_CACERT", "GATEWAY_ETCD_PASSWORD_FILE"]


@pytest.mark.process
def test_a_system_without_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root certificates in the system, a CA must be configured; an OpenSSL folder is as good as a file."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    (line,) = refused(Credentials())
    assert line == "GATEWAY_ETCD_CACERT (--etcd-cacert): not set, and this system has no root certificates"

    (tmp_path / "0a1b2c3d.0").write_bytes(Ca(tmp_path / "ca").cert.read_bytes())
    Credentials().check(tls=True)


@pytest.mark.process
async def test_serve_does_not_start(tmp_path: Path) -> None:
    """`serve` exits with status 2 and that line."""
    flags = ("--etcd=https://127.0.0.1:1", f"--etcd-cacert={tmp_path / 'gone'}", "--port=0")
    running = await start(*flags)

    assert await running.process.wait() == 2
    await running._reader
    assert "GATEWAY_ETCD_CACERT (--etcd-cacert): cannot read" in "".join(running.other)
