"""``GET /v1/watch``: how the gateway parses a request."""

from __future__ import annotations

import itertools

import pytest
from starlette.requests import Request

from app.access.identity import ANONYMOUS
from app.api.watch import WatchEndpoint, cursor_of
from app.api.watch_query import newest_cursor
from app.api.watch_request import WatchRequest
from app.core.cursor import NOTHING, UNREADABLE, parse_cursor
from app.core.errors import BadRequestError, GatewayError
from app.core.keys import KeyRange
from app.gateway import Gateway
from tests.support.asgi_client import http_scope

A, B, C = (f"0123456{digit}-{digit}" for digit in "123")


@pytest.mark.parametrize("names", [*itertools.combinations(("header", "lastEventId", "last_event_id"), 2), ("header",)])
def test_the_newest_cursor_counts(names: tuple[str, ...]) -> None:
    """The header beats ``lastEventId``, which beats ``last_event_id``: polyfills append to the URL they were given."""
    values = {"header": A, "lastEventId": B, "last_event_id": C}
    query = {name: values[name].encode() for name in names if name != "header"}
    header = A if "header" in names else None

    assert cursor_of(header, newest_cursor(query)) == parse_cursor(values[names[0]])


def test_no_cursor() -> None:
    """An absent cursor is not an empty cursor."""
    assert cursor_of(None, newest_cursor({})) is None
    assert cursor_of("", newest_cursor({})) == NOTHING


@pytest.mark.parametrize("value", [b"nonsense", b"\xff\xfe", b"01234567-x"])
def test_an_unreadable_cursor_is_one(value: bytes) -> None:
    """An unreadable cursor counts as present: a 400 would close an EventSource for good."""
    assert cursor_of(None, newest_cursor({"lastEventId": value, "last_event_id": C.encode()})) == UNREADABLE


def parsed(gateway: Gateway, query: bytes, **headers: str) -> WatchRequest:
    """The watch that a request with this query and these headers asks for."""
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return WatchEndpoint(gateway)._parse_and_authorize(Request(http_scope("/v1/watch", query, headers=raw)), ANONYMOUS)


def test_accept_in_several_lines(gateway: Gateway) -> None:
    """Several lines of a header are one list (RFC 9110, section 5.3): a proxy may divide it."""
    raw = [(b"accept", b"text/html"), (b"accept", b"application/x-ndjson")]
    asked = WatchEndpoint(gateway)._parse_and_authorize(
        Request(http_scope("/v1/watch", b"prefix=/a", headers=raw)), ANONYMOUS
    )

    assert asked.format == "ndjson"


@pytest.mark.parametrize(
    ("query", "accept", "format_", "holdable"),
    [
        (b"", "", "sse", False),
        (b"", "*/*", "sse", False),
        (b"", "text/event-stream", "sse", True),
        (b"", "application/x-ndjson", "ndjson", False),
        (b"", "application/x-ndjson, text/event-stream", "ndjson", True),
        (b"&format=ndjson", "text/event-stream", "ndjson", True),
        (b"&format=sse", "application/x-ndjson", "sse", False),
    ],
)
async def test_format(gateway: Gateway, query: bytes, accept: str, format_: str, holdable: bool) -> None:
    """The parameter beats the header; only its header identifies an EventSource."""
    asked = parsed(gateway, b"prefix=/svc/" + query, accept=accept)

    assert (asked.format, asked.holdable) == (format_, holdable)


async def test_all_of_a_request(gateway: Gateway) -> None:
    """Each part of a request arrives in its field."""
    asked = parsed(
        gateway,
        b"key=%ff&encoding=base64&snapshot=0",
        last_event_id=A,
        user_agent="u" * 300,
        x_request_id="req-1",
    )

    assert asked.selection.ranges == (KeyRange("key", b"\xff"),)
    assert (asked.selection.encoding, asked.snapshot) == ("base64", False)
    assert asked.cursor == parse_cursor(A)
    assert (asked.address, asked.user_agent, asked.request_id) == ("127.0.0.1:1", "u" * 256, "req-1")


async def test_defaults(gateway: Gateway) -> None:
    """A request with nothing but a prefix has the defaults."""
    asked = parsed(gateway, b"prefix=")

    assert asked.selection.ranges == (KeyRange("prefix", b""),)
    assert (asked.selection.encoding, asked.snapshot, asked.cursor, asked.user_agent) == ("auto", True, None, "")


@pytest.mark.parametrize(
    ("query", "interval"),
    [
        (b"", 0.0),
        (b"&mode=latest", 0.5),
        (b"&mode=latest&interval=50ms", 0.05),
        (b"&interval=500ms&mode=latest", 0.5),
        (b"&mode=latest&interval=1s", 1.0),
        (b"&mode=latest&interval=2", 2.0),
        (b"&mode=latest&interval=1.5s", 1.5),
        (b"&mode=latest&interval=1m", 60.0),
        (b"&mode=latest&interval=60s", 60.0),
    ],
)
async def test_mode_and_interval(gateway: Gateway, query: bytes, interval: float) -> None:
    """Durations are written as in settings. The mode is not part of the selection, so a cursor is valid in both."""
    asked = parsed(gateway, b"prefix=/svc/" + query)

    assert asked.interval == interval
    assert asked.selection == parsed(gateway, b"prefix=/svc/").selection


@pytest.mark.parametrize(
    ("query", "code", "parameter"),
    [
        (b"interval=500ms", "conflicting-parameters", "interval"),
        (b"interval=nonsense", "conflicting-parameters", "interval"),
        (b"mode=latest&interval=49ms", "invalid-parameter", "interval"),
        (b"mode=latest&interval=0", "invalid-parameter", "interval"),
        (b"mode=latest&interval=60.1s", "invalid-parameter", "interval"),
        (b"mode=latest&interval=1h", "invalid-parameter", "interval"),
        (b"mode=latest&interval=-1s", "invalid-parameter", "interval"),
        (b"mode=latest&interval=", "invalid-parameter", "interval"),
        (b"mode=latest&interval=%ff", "invalid-parameter", "interval"),
        (b"mode=latest&interval=" + b"9" * 2000, "invalid-parameter", "interval"),
        (b"mode=all", "invalid-parameter", "mode"),
        (b"mode=", "invalid-parameter", "mode"),
        (b"mode=latest&mode=latest", "repeated-parameter", "mode"),
        (b"min_revision=-1", "invalid-parameter", "min_revision"),
        (b"min_revision=", "invalid-parameter", "min_revision"),
        (b"min_revision=1.5", "invalid-parameter", "min_revision"),
        (b"min_revision=%2B1", "invalid-parameter", "min_revision"),
        (b"min_revision=%d" % (1 << 63), "invalid-parameter", "min_revision"),
        (b"min_revision=1&min_revision=1", "repeated-parameter", "min_revision"),
    ],
)
async def test_what_is_wrong_is_named(gateway: Gateway, query: bytes, code: str, parameter: str) -> None:
    """The problem names the parameter."""
    with pytest.raises(BadRequestError) as refused:
        parsed(gateway, b"prefix=/svc/&" + query)

    assert (refused.value.status, refused.value.code, refused.value.parameter) == (400, code, parameter)


@pytest.mark.parametrize("revision", [0, 1, (1 << 63) - 1])
async def test_min_revision(gateway: Gateway, revision: int) -> None:
    """Every revision that etcd can have is accepted."""
    assert parsed(gateway, b"prefix=&min_revision=%d" % revision).min_revision == revision
    assert parsed(gateway, b"prefix=").min_revision == 0


@pytest.mark.parametrize(("method", "refused"), [("GET", 1), ("HEAD", 0)])
async def test_refusals_are_counted(gateway: Gateway, method: str, refused: int) -> None:
    """Refused streams are counted; a HEAD asks for none."""
    request = Request(http_scope("/v1/watch", b"prefix=&bogus=1", method=method))
    with pytest.raises(BadRequestError):
        await WatchEndpoint(gateway).get(request)

    assert gateway.streams.counters.refused["unknown-parameter"] == refused


async def test_nothing_is_held_by_asking(gateway: Gateway) -> None:
    """A response that is never sent has joined no feed."""
    await WatchEndpoint(gateway).get(Request(http_scope("/v1/watch", b"prefix=/svc/")))

    assert len(gateway.registry) == 0
    assert list(gateway.registry.feeds) == []


@pytest.mark.parametrize("query", [b"", b"prefix=&limit=1", b"prefix=&format=json", b"prefix=&snapshot=2"])
async def test_what_is_permanent_is_refused_at_once(gateway: Gateway, query: bytes) -> None:
    """A permanent refusal is sent at once, also to an EventSource: it would only ask the same again."""
    with pytest.raises(GatewayError) as refused:
        parsed(gateway, query, accept="text/event-stream")

    assert refused.value.status == 400
