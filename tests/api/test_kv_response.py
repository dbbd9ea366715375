"""A body that may be large: shared by equal requests, counted while it exists, sent in slices."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Scope

from app.api.kv_response import SLICE, KvBody, KvResponse
from app.core.budget import Budget, Hold, Use
from app.core.errors import OverCapacityError
from app.core.page_token import PageToken
from app.stream.transport import EXTENSION, ClientTransport
from tests.support.asgi_client import http_scope


@pytest.fixture(name="budget")
def _budget() -> Budget:
    return Budget(1 << 20)


def body_of(budget: Budget, *parts: bytes) -> tuple[KvBody, Hold]:
    """A body, and the budget that counts it."""
    hold = budget.hold(Use.ANSWER)
    return KvBody(7, parts, hold), hold


def test_a_body_whose_memory_was_needed_while_it_was_made(budget: Budget) -> None:
    """The last step may be to deflate it, for which others run: afterwards nothing would count its bytes."""
    hold = budget.ask(Use.ANSWER, 1 << 10, lambda: None)
    hold.revoke()
    with pytest.raises(OverCapacityError) as refused:
        KvBody(7, [b"x" * 1024], hold)
    assert refused.value.code == "too-many-reads"


class Client:
    """A client that takes its bytes when the test tells it to."""

    def __init__(self, *, takes: bool = True) -> None:
        self.takes = asyncio.Event()
        if takes:
            self.takes.set()
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        await asyncio.Event().wait()
        raise AssertionError("it never leaves")

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body":
            await self.takes.wait()

    async def ask(self, body: KvBody, send_timeout: float = 60.0) -> None:
        """Send the answer to the client."""
        response = KvResponse(body, {"X-Etcd-Revision": "7"}, "", send_timeout=send_timeout)
        del body
        await response(http_scope("/v1/kv"), self.receive, self.send)

    @property
    def received(self) -> bytes:
        """The body so far."""
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def whole(self) -> bool:
        """Whether the client was told that the body is complete."""
        return self.sent[-1].get("more_body") is False


async def test_in_slices(budget: Budget) -> None:
    """The body arrives whole, with its length, and no piece is larger than a slice."""
    parts = (b"head", b"x" * (2 * SLICE + 5), b"", b"tail")
    body, hold = body_of(budget, *parts)
    client = Client()
    await client.ask(body)

    assert client.received == b"".join(parts)
    assert client.whole
    headers = dict(client.sent[0]["headers"])
    assert headers[b"content-length"] == str(hold.size).encode()
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-etcd-revision"] == b"7"
    assert max(len(message["body"]) for message in client.sent[1:]) == SLICE


async def test_counted_once_until_the_last_has_it(budget: Budget) -> None:
    """A body counts once, however many clients it is sent to, until the last of them has it."""
    body, _hold = body_of(budget, b"x" * 1000)
    clients = [Client(takes=False) for _ in range(3)]
    asking = [asyncio.create_task(client.ask(body)) for client in clients]
    del body
    for client, task in zip(clients, asking, strict=True):
        await asyncio.sleep(0)
        assert budget.of(Use.ANSWER) == 1000
        client.takes.set()
        await task
    asking.clear()
    await asyncio.sleep(0)

    assert budget.of(Use.ANSWER) == 0


async def test_a_feed_needs_the_bytes(budget: Budget) -> None:
    """When a feed needs the bytes they are free at once; a client in the middle of the body is cut off and never told
    that the body is complete.
    """
    body, hold = body_of(budget, b"x" * (3 * SLICE))
    slow, other = Client(takes=False), Client()
    asking = asyncio.create_task(slow.ask(body))
    await asyncio.sleep(0)
    await other.ask(body)
    given = hold.revoke()
    assert given == 3 * SLICE
    assert budget.of(Use.ANSWER) == 0
    assert (body.revoked, body.parts, body.size) == (True, None, 0)
    slow.takes.set()
    await asking

    assert other.whole
    assert not slow.whole
    assert len(slow.received) < 3 * SLICE


async def test_a_client_that_takes_nothing(budget: Budget) -> None:
    """A client that takes nothing is disconnected without an error, and its body is released."""
    body, _hold = body_of(budget, b"x" * (2 * SLICE))
    client = Client(takes=False)
    await client.ask(body, send_timeout=0.05)
    del body

    assert not client.whole
    assert budget.of(Use.ANSWER) == 0


class Transport(asyncio.Transport):
    """A connection whose kernel takes so many bytes, until the client reads."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.buffered = 0
        self.aborted = False

    def write(self, data: Any) -> None:
        """Take bytes."""
        taken = min(self.room, len(data))
        self.room -= taken
        self.buffered += len(data) - taken

    def get_write_buffer_size(self) -> int:
        """See ``asyncio.WriteTransport``."""
        return self.buffered

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See ``asyncio.WriteTransport``."""

    def is_closing(self) -> bool:
        """See ``asyncio.BaseTransport``."""
        return self.aborted

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See ``asyncio.BaseTransport``. Without a socket, only the buffer is known."""
        del name
        return default

    def abort(self) -> None:
        """See ``asyncio.WriteTransport``."""
        self.aborted = True


def on(transport: Transport) -> tuple[ClientTransport, Scope]:
    """The client of a connection, and a request on it."""
    client = ClientTransport(transport)
    return client, http_scope("/v1/kv", extensions={EXTENSION: {"client": client}})


async def test_a_small_body_on_an_empty_connection(budget: Budget) -> None:
    """It goes at once, as one message, without a wait."""
    body, _hold = body_of(budget, b"head", b"x" * 1000, b"tail")
    transport, client = Transport(room=SLICE), Client()

    async def send(message: Message) -> None:
        client.sent.append(message)
        transport.write(message.get("body", b""))

    response = KvResponse(body, {}, "", send_timeout=60.0)
    await response(on(transport)[1], client.receive, send)

    assert client.whole
    assert [message.get("body") for message in client.sent[1:]] == [b"head" + b"x" * 1000 + b"tail"]
    assert transport.buffered == 0


async def test_a_small_body_that_the_client_does_not_take(budget: Budget, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts until the client has it, and the wait for that is not for ever."""
    monkeypatch.setattr(ClientTransport, "unacked_bytes", property(lambda self: self.buffered))
    body, hold = body_of(budget, b"x" * 1000)
    transport, client = Transport(room=100), Client()

    async def send(message: Message) -> None:
        client.sent.append(message)
        transport.write(message.get("body", b""))

    response = KvResponse(body, {}, "", send_timeout=0.05)
    sending = asyncio.create_task(response(on(transport)[1], client.receive, send))
    await asyncio.sleep(0)
    assert (transport.buffered, hold.size) == (900, 1000)
    await sending

    assert transport.aborted


async def test_the_end_of_a_large_body_that_the_client_does_not_take(budget: Budget) -> None:
    """The server takes the last slice without a wait. Nothing else would ever end this connection: it looks idle, and
    a connection with bytes to send does not close.
    """
    body, hold = body_of(budget, b"x" * (2 * SLICE))
    transport, client = Transport(room=SLICE + 100), Client()

    async def send(message: Message) -> None:
        client.sent.append(message)
        transport.write(message.get("body", b""))

    response = KvResponse(body, {}, "", send_timeout=0.05)
    sending = asyncio.create_task(response(on(transport)[1], client.receive, send))
    await asyncio.sleep(0)
    assert (client.whole, transport.buffered, hold.size) == (True, SLICE - 100, 2 * SLICE)
    await sending

    assert transport.aborted


@pytest.mark.parametrize("size", [10, SLICE, 5 * SLICE])
async def test_the_next_page_is_for_the_reader(budget: Budget, size: int) -> None:
    """Equal requests share the body; only the token at its end differs."""
    body = KvBody(7, [b"x" * size], budget.hold(Use.ANSWER), page=PageToken("16214fff", 7, b"/a"))
    for reader in ("ann", "ben", ""):
        client = Client()
        response = KvResponse(body, {}, reader, send_timeout=60.0)
        await response(http_scope("/v1/kv"), client.receive, client.send)
        end = f'"next_page":"{PageToken("16214fff", 7, b"/a").token(reader)}"}}\n'.encode()

        assert client.whole
        assert client.received.startswith(b"x" * size + b",")
        assert client.received.endswith(end)
        assert response.headers["content-length"] == str(len(client.received))
        assert not any(message.get("body") == b"" for message in client.sent[1:])


async def test_no_such_key(budget: Budget) -> None:
    """An answer without a key is empty and counts nothing."""
    hold = budget.hold(Use.ANSWER)
    body = KvBody(7, None, hold)

    assert (body.size, list(body.slices()), hold.size) == (0, [], 0)
