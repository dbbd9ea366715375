"""The HTTP client of ``check``: every form of an HTTP/1.1 answer, and each departure as the server sees it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from app.check import client as module
from app.check.client import Client, Departure, RefusedError, TlsFiles, UnreachableError, own_refusal, split
from app.settings import SettingsError
from tests.support import connections
from tests.support.certificates import Ca
from tests.support.waiting import HANG

SYNCED = b'{"type":"reset"}\n\n{"type":"syn', b'ced","revision":1}\n'


class Server:
    """A server that answers each request with a given text, and records how each connection ended."""

    def __init__(self, parts: tuple[bytes, ...], *, stay: bool = False) -> None:
        self._parts = parts
        self._stay = stay  # keep the connection open, as a stream does
        self.heads: list[bytes] = []
        self.ends: asyncio.Queue[str] = asyncio.Queue()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            for part in self._parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            if self._stay:
                await reader.read()
            self.ends.put_nowait("end of file")
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            self.ends.put_nowait(type(error).__name__)
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def serving(*parts: bytes, stay: bool = False) -> AsyncIterator[tuple[str, Server]]:
    """The URL of a server, and the server."""
    server = Server(parts, stay=stay)
    async with connections.serving(server.answer) as port:
        yield f"http://127.0.0.1:{port}", server


def chunked(*bodies: bytes, status: bytes = b"200 OK") -> tuple[bytes, ...]:
    """A chunked answer without its last chunk."""
    head = b"HTTP/1.1 %b\r\nTransfer-Encoding: chunked\r\n\r\n" % status
    return (head, *(b"%x\r\n%b\r\n" % (len(body), body) for body in bodies))


async def failure(action: Callable[[], Awaitable[object]]) -> str:
    """The text of the error that the call raises."""
    async with asyncio.timeout(HANG):
        with pytest.raises(UnreachableError) as caught:
            await action()
    return str(caught.value)


# --- a GET ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", b"lo"),
        (b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo"),
        (*chunked(b"hel", b"lo"), b"0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding:  Chunked\r\n\r\n5;name=value\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",),
        (b"HTTP/1.0 200 OK\r\nContent-Length:5\r\n\r\nhello",),
    ],
    ids=["length", "until-closed", "chunks", "chunk-extension", "informational", "http-1.0"],
)
async def test_an_answer(parts: tuple[bytes, ...]) -> None:
    """An answer is read in every form that it can have."""
    async with serving(*parts) as (url, server):
        assert await Client().get(f"{url}/v1/feeds?prefix=/a%20b", {"X-Name": "f\xfcr"}) == b"hello"

    (head,) = server.heads
    assert head.startswith(b"GET /v1/feeds?prefix=/a%20b HTTP/1.1\r\n")
    assert f"Host: {url.removeprefix('http://')}\r\n".encode() in head
    assert b"X-Name: f\xfcr\r\n" in head
    assert b"User-Agent: etcd-watch-gateway-check/" in head


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((b'HTTP/1.1 403 F\r\nContent-Length: 34\r\n\r\n{"code":"forbidden","detail":"no"}',), "403 forbidden: no"),
        ((*chunked(b"bad ", b"gateway", status=b"502 Bad Gateway"), b"0\r\n\r\n"),
         "502 bad gateway"),
        ((b"HTTP/1.1 404 N\r\nContent-Length: 0\r\n\r\n",), "404"),
        ((b"HTTP/1.1 500 I\r\nContent-Length: 2\r\n\r\n[]",), "500 []"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",), "peer closed connection"),
        ((b"SSH-2.0-OpenSSH\r\n\r\n",), "illegal status line"),
        ((), "Remote end closed connection without response"),
    ],
    ids=["problem", "text-in-chunks", "nothing", "not-a-problem", "cut-off", "not-http", "silence"],
)  # fmt: skip
async def test_no_answer(parts: tuple[bytes, ...], said: str) -> None:
    """An answer that cannot be read fails with the URL and the reason."""
    async with serving(*parts) as (url, _server):
        assert (await failure(lambda: Client().get(f"{url}/x", {}))).startswith(f"{url}/x: {said}")


PROBLEM = b'{"code":"address-streams","detail":"too many"}'


@pytest.mark.parametrize(
    ("status", "body", "own"),
    [
        (429, PROBLEM, True),
        (503, PROBLEM, True),
        (403, PROBLEM, False),  # it may be the proxy that changes who asks
        (429, b"<html>too many</html>", False),
        (503, b"", False),
    ],
)
async def test_whose_refusal_it_is(status: int, body: bytes, own: bool) -> None:
    """A problem is the gateway's own; a proxy refuses with its own page."""
    answer = (b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)), body)
    async with serving(*answer) as (url, _server):
        stream = Client().stream(url, {}, Departure.CLOSE)
        with pytest.raises(UnreachableError) as caught:
            await stream.open()
        await stream.close()

    assert isinstance(caught.value, RefusedError) == own
    assert own_refusal(status, body) == (f"{status} address-streams: too many" if own else "")


async def test_nobody_there() -> None:
    """A refused connection fails with the system's own text."""
    said = await failure(lambda: Client().get("http://127.0.0.1:1/", {}))
    assert said == "http://127.0.0.1:1/: Connection refused"


async def test_no_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing answer fails at the timeout."""
    monkeypatch.setattr(module, "REQUEST_TIMEOUT", 0.05)
    async with serving(stay=True) as (url, server):
        assert await failure(lambda: Client().get(url, {})) == f"{url}: timed out"
        assert await server.ends.get() == "end of file"


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8080", "ftp://a", "http://", "http://a..b", f"http://{'a' * 64}.example", "http://127.0.0.1/caf\xe9",
        "http://127.0.0.1:0", "http://127.0.0.1:65536", "http://[::1",
    ],
)  # fmt: skip
def test_what_is_no_url(url: str) -> None:
    """A text that is not a URL fails without a request."""
    with pytest.raises(UnreachableError, match=r"is not a URL; use the form http://127\.0\.0\.1:8080"):
        split(url)


# --- a stream ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("departure", list(Departure))
async def test_each_departure(departure: Departure) -> None:
    """The server sees each departure as documented."""
    async with serving(*chunked(*SYNCED), stay=True) as (url, server), asyncio.timeout(HANG):
        stream = Client().stream(f"{url}/v1/watch", {}, departure)
        await stream.open()
        gone = server.ends.empty()
        await stream.leave()
        end = await server.ends.get()
        await stream.leave()
        stream.abort()

    assert stream.address.startswith("127.0.0.1:")
    assert gone, "the stream must stay open"
    assert end in {
        Departure.RESET: ["ConnectionResetError"],
        # The reset comes before the server reads the request, or after.
        Departure.UNREAD: ["ConnectionResetError", "IncompleteReadError", "end of file"],
    }.get(departure, ["end of file"])


async def test_a_half_close_waits_for_the_goodbye() -> None:
    """After a half-close, the client reads until the server closes."""
    async with serving(*chunked(*SYNCED, b"more" * 100_000), stay=True) as (url, server), asyncio.timeout(HANG):
        stream = Client().stream(url, {}, Departure.HALF_CLOSE)
        await stream.open()
        await stream.leave()
        assert server.ends.get_nowait() == "end of file"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((*chunked(b'{"type":"close","reason":"drain"}\n'),), "the stream was closed: drain"),
        ((*chunked(b'{"type":"reset"}\n'), b"0\r\n\r\n"), "the stream ended before it was synced"),
        ((*chunked(b'{"type":"reset"}\n'),), "peer closed connection"),
        ((*chunked(b"<html>\n"),), "Expecting value"),
        ((b"HTTP/1.1 429 T\r\nContent-Length: 32\r\n\r\n" + b'{"code":"too-many","detail":"4"}',), "429 too-many: 4"),
    ],
    ids=["closed", "ended", "cut-off", "not-ours", "refused"],
)
async def test_a_stream_that_is_not_synced(parts: tuple[bytes, ...], said: str) -> None:
    """A stream that does not reach synced fails with the URL and the reason, and can still be left."""
    async with serving(*parts) as (url, _server):
        stream = Client().stream(url, {}, Departure.CLOSE)
        assert (await failure(stream.open)).startswith(f"{url}: {said}")
        await stream.leave()


async def test_a_stream_that_was_never_open() -> None:
    """A stream that was never open can be left."""
    stream = Client().stream("http://127.0.0.1:1", {}, Departure.RESET)
    assert "Connection refused" in await failure(stream.open)
    await stream.leave()
    stream.abort()


def test_files_for_tls(tmp_path: Path) -> None:
    """A file that cannot be used is named with its flag; the server's own certificate is enough to trust it."""
    ca = Ca(tmp_path)
    pair, other = ca.sign("one"), ca.sign("two")
    (tmp_path / "junk").write_text("junk")

    assert (
        TlsFiles(cacert=pair.cert, cert=pair.cert, key=pair.key).context().verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
    )
    for files, said in (
        (
            TlsFiles(cacert=tmp_path / "gone"),
            f"--cacert: {tmp_path / 'gone'} cannot be used: No such file or directory",
        ),
        (
            TlsFiles(cacert=tmp_path / "junk"),
            f"--cacert: {tmp_path / 'junk'} cannot be used: NO_CERTIFICATE_OR_CRL_FOUND",
        ),
        (TlsFiles(cert=pair.cert, key=other.key), f"--cert, --key: {pair.cert} cannot be used: KEY_VALUES_MISMATCH"),
    ):
        with pytest.raises(SettingsError) as caught:
            files.context()
        assert str(caught.value) == said


async def test_an_answer_of_any_status() -> None:
    """The status, the headers and the body; the answer to a HEAD has no body, whatever its headers say."""
    refusal = b"HTTP/1.1 503 Busy\r\nX-Gateway-Instance: gw-0\r\nContent-Length: 2\r\n\r\n"
    async with serving(refusal, b"no") as (url, server):
        whole = await Client().answer(url, {})
        head = await Client().answer(url, {}, method="HEAD")

    assert (whole.status, whole.body, whole.headers["x-gateway-instance"]) == (503, b"no", "gw-0")
    assert (head.status, head.body) == (503, b"")
    assert [each.split(b" ")[0] for each in server.heads] == [b"GET", b"HEAD"]


@pytest.mark.parametrize(("offered", "chosen"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), ([], "")])
async def test_the_protocol_that_a_server_chooses(tmp_path: Path, offered: list[str], chosen: str) -> None:
    """By ALPN, without a request."""
    pair = Ca(tmp_path).sign("127.0.0.1")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pair.cert, pair.key)
    if offered:
        tls.set_alpn_protocols(offered)

    async def take(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with connections.serving(take, tls) as port:
        client = Client(TlsFiles(cacert=pair.cert).context())
        assert await client.protocol(f"https://127.0.0.1:{port}") == chosen


async def test_without_tls_no_protocol_is_chosen() -> None:
    """Nothing is asked."""
    assert await Client().protocol("http://127.0.0.1:1") == ""


async def test_an_address_is_written_as_the_gateway_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another form of an IPv6 address, the check took itself for the client of a proxy."""

    class Writer:
        def get_extra_info(self, name: str) -> object:
            return ("::1", 5, 0, 0) if name == "sockname" else None

    async def connected(*_arguments: object) -> tuple[None, Writer]:
        return None, Writer()

    monkeypatch.setattr("app.check.client.connect", connected)
    stream = Client().stream("http://[::1]:1/v1/watch", {}, Departure.RESET)
    await stream.connect()
    assert stream.address == "[::1]:5"
