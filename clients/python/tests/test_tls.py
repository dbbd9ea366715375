"""Files of TLS: named when they cannot be used, read again when they change. tests/clients/ has a real handshake."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest
from etcd_watch_client.tls import Http, make_context


def certificate(name: Path) -> Path:
    """A file with certificates to trust: those of httpx."""
    import certifi

    name.write_text(Path(certifi.where()).read_text(encoding="utf-8").partition("\n\n#")[0])
    return name


@pytest.mark.parametrize("wrong", ["ca", "cert", "key"])
@pytest.mark.parametrize("content", [None, "", "not a certificate"])
def test_a_file_that_cannot_be_used_is_named(wrong: str, content: str | None, tmp_path: Path) -> None:
    """OpenSSL's own errors name no file."""
    file = tmp_path / "wrong.pem"
    if content is not None:
        file.write_text(content)
    ca, other = certificate(tmp_path / "ca.pem"), certificate(tmp_path / "cert.pem")
    files = {"ca": ca, "cert": other, wrong: file}
    with pytest.raises(OSError, match=r"wrong\.pem"):
        make_context(files["ca"], files["cert"], files.get("key"))


async def test_files_that_change_are_read_again(tmp_path: Path) -> None:
    """For the next stream. A file that is missing for a moment changes nothing."""
    file = certificate(tmp_path / "ca.pem")
    http = Http(ca=file)
    first = await http.client()
    assert await http.client() is first
    content = file.read_text()
    file.unlink()
    assert await http.client() is first
    file.write_text("half a certifi")
    assert await http.client() is first
    file.write_text(content + "\n")
    second = await http.client()
    assert second is not first
    assert first.is_closed
    await http.aclose()
    await http.aclose()
    assert second.is_closed


async def test_what_fails_at_the_start_is_raised(tmp_path: Path) -> None:
    """It is a mistake."""
    with pytest.raises(FileNotFoundError, match=r"none\.pem"):
        await Http(ca=tmp_path / "none.pem").client()


async def test_a_context_and_a_transport_are_used_as_they_are() -> None:
    """One client for all streams."""
    for http in (Http(ca=ssl.create_default_context()), Http(transport=httpx.MockTransport(lambda _: None))):  # type: ignore[arg-type]
        client = await http.client()
        assert await http.client() is client
        await http.aclose()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ca": ssl.create_default_context(), "cert": "cert.pem"}, "either an SSLContext"),
        ({"key": "key.pem"}, "needs cert"),
    ],
)
def test_what_does_not_go_together(options: dict[str, str], says: str) -> None:
    """Found before anything starts."""
    with pytest.raises(ValueError, match=says):
        Http(**options)  # type: ignore[arg-type]
