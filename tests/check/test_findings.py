"""``app.check.findings`` against simulated proxies: the test knows what each of them does to streams."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.check.findings import DELAY, PROMPT, Finding, Level, findings, status_of, summary_of
from app.check.lines import Line
from app.check.measurements import Arrival, Departed, Followed, Measurements, Requests, Silence
from app.check.verdict import GRACE

BEAT = 15.0
STAY = 3 * BEAT + 0.5
HEADERS = {"content-type": "text/event-stream", "cache-control": "no-store, no-transform"}
SUBJECTS = {
    "first byte",
    "buffering",
    "event latency",
    "idle time",
    "streams at once",
    "a client that left",
    "while one drains",
    "transformation",
    "Last-Event-ID",
    "HTTP version",
}


@dataclass(frozen=True)
class Proxy:
    """What a proxy does. The default does nothing."""

    distance: float = 0.0  # seconds that the connection takes
    delay: float = 0.0  # seconds that each later event waits
    hold: bool = False  # it keeps everything until the answer ends
    bunches: bool = False  # it keeps heartbeats until two are there
    idle: float = 120.0  # seconds of silence, after which it cuts
    notice: float | None = 0.0  # seconds until it notices that a client left; None: never
    places: int = 1000
    fails: int = 0
    drops_cursor: bool = False


def stream(proxy: Proxy, *, quiet: bool = False) -> Followed:
    """What a client sees of a stream through the proxy."""
    empty = Followed(began=0.0, until=STAY, connecting=proxy.distance)
    if proxy.hold:
        return empty
    first = 0.01 + proxy.distance
    arrivals = [
        Arrival(first, Line("reset", "e-0", reason="initial")),
        Arrival(first, Line("synced", "e-1", heartbeat=BEAT)),
    ]
    if not quiet:
        arrivals += [Arrival(number + first + proxy.delay, Line("put", f"e-{number}")) for number in range(2, 7)]
    beats = [first + BEAT, first + 2 * BEAT]
    if proxy.bunches:
        beats = [beats[1], beats[1]]
    arrivals += [Arrival(at, Line("bookmark", "e-7")) for at in beats]
    cut = quiet and proxy.idle < BEAT
    return replace(
        empty,
        until=first + proxy.idle if cut else STAY,
        ended="the connection was closed" if cut else "",
        answered=first,
        last_byte=first if cut else beats[1],
        status=200,
        headers=HEADERS,
        arrivals=tuple(each for each in arrivals if not cut or each.at <= first),
    )


def measure(proxy: Proxy, *, writes: bool = True) -> Measurements:
    """All measurements through the proxy."""
    sse, asked = stream(proxy, quiet=not writes), 45.0
    cut = proxy.idle < asked
    resumed = Arrival(
        1.0, Line("reset", "e-0", reason="initial") if proxy.drops_cursor else Line("synced", "e-1", heartbeat=BEAT)
    )
    released = proxy.notice if proxy.notice is not None and proxy.notice < 60 else None
    return Measurements(
        direct=stream(Proxy(), quiet=not writes),
        sse=sse,
        ndjson=sse,
        quiet=stream(proxy, quiet=True),
        resumed=None if proxy.hold else replace(sse, arrivals=(resumed,)),
        silence=Silence(asked, min(proxy.idle, asked), 504 if cut else 304),
        departed=Departed(100, min(100, proxy.places), min(100, proxy.places), released, 60.0, refusal="503"),
        requests=Requests(90, {"502": proxy.fails} if proxy.fails else {}, frozenset({"gw-0", "gw-1"})),
        secure=True,
        protocol="h2",
    )


def by_subject(given: Measurements) -> dict[str, Finding]:
    """The findings; each subject has one."""
    found = findings(given)
    assert len({each.subject for each in found}) == len(found)
    return {each.subject: each for each in found}


def faults(given: Measurements) -> set[str]:
    """The subjects of the faults."""
    return {each.subject for each in findings(given) if each.level is Level.FAULT}


def expected(proxy: Proxy) -> set[str]:
    """The faults that a proxy has, by what the test knows of it."""
    if proxy.hold:
        wrong = {"first byte", "buffering"}
        late_cut = proxy.idle < 2 * BEAT
    else:
        wrong = {"buffering"} if proxy.bunches and proxy.idle >= BEAT else set()
        wrong |= {"buffering"} if 0.01 + proxy.distance - 0.01 > PROMPT else set()
        late_cut = proxy.idle < 2 * BEAT
        wrong |= {"event latency"} if proxy.delay > DELAY else set()
        wrong |= {"streams at once"} if proxy.places < 100 else set()
        wrong |= {"Last-Event-ID"} if proxy.drops_cursor else set()
    wrong |= {"idle time"} if late_cut else set()
    wrong |= {"a client that left"} if proxy.notice is None or proxy.notice > GRACE else set()
    wrong |= {"while one drains"} if proxy.fails else set()
    return wrong


proxies = st.builds(
    Proxy,
    distance=st.sampled_from([0.0, 0.05, 0.3, 3.0]),
    delay=st.sampled_from([0.0, 0.05, 0.2, 5.0]),
    hold=st.booleans(),
    bunches=st.booleans(),
    idle=st.sampled_from([1.0, 10.0, 20.0, 29.0, 31.0, 60.0]),
    notice=st.sampled_from([0.0, 5.0, 11.0, 28.0, 70.0, None]),
    places=st.sampled_from([0, 5, 99, 100, 150]),
    fails=st.sampled_from([0, 1, 40]),
    drops_cursor=st.booleans(),
)


@given(proxies)
def test_the_faults_are_those_of_the_proxy(proxy: Proxy) -> None:
    """No more and no less, in every combination. A fault says what to do about it."""
    measured = measure(proxy)
    if proxy.hold:  # a stream that was not seen says nothing of its events
        measured = replace(measured, direct=stream(Proxy(), quiet=True))
    found = by_subject(measured)

    assert found.keys() == SUBJECTS
    assert faults(measured) == expected(proxy)
    assert status_of(list(found.values()), measured) == (1 if expected(proxy) else 0)
    assert all(each.advice for each in found.values() if each.level is Level.FAULT)


def test_a_proxy_that_does_nothing() -> None:
    """All is well but what nobody has tried: a drain."""
    found = by_subject(measure(Proxy()))

    assert {each.subject for each in found.values() if each.level is not Level.WELL} == {"while one drains"}
    assert summary_of(list(found.values())) == "no fault was found, 1 not known"
    assert found["event latency"].text == "5 events took 0 ms longer than without the proxy, at most 0 ms"
    assert found["first byte"].figures == {"through": 0.01, "direct": 0.01}


@given(st.floats(0, 3), st.floats(0, 3))
def test_the_distance_of_a_proxy_is_not_its_delay(distance: float, delay: float) -> None:
    """An event may take as much longer as the connection itself."""
    late = by_subject(measure(Proxy(distance=distance, delay=delay)))["event latency"]

    assert (late.level is Level.FAULT) == (late.figures["median"] > DELAY + distance)
    assert late.figures["median"] == pytest.approx(distance + delay)


@pytest.mark.parametrize(
    ("puts", "text"),
    [
        ("", "no key of the prefix changed"),
        ("done", "--put changed no key of the prefix"),
        ("status 127: not found", "--put failed: status 127: not found"),
    ],
)
def test_without_events_their_latency_is_not_known(puts: str, text: str) -> None:
    """The finding says what is needed."""
    found = by_subject(replace(measure(Proxy(), writes=False), puts=puts))["event latency"]

    assert (found.level, found.text) == (Level.UNKNOWN, text)
    assert "--put" in found.advice


def test_events_that_only_arrive_without_the_proxy() -> None:
    """They were made for the check, so they must arrive."""
    measured = replace(measure(Proxy(hold=True)), puts="done")

    assert faults(measured) == {"first byte", "buffering", "event latency"}


def test_without_a_direct_url() -> None:
    """What needs it is not known. The rest is."""
    measured = replace(measure(Proxy()), direct=None, no_direct="http://x: refused")
    found = by_subject(measured)

    assert found["event latency"].text == "needs a stream without the proxy: http://x: refused"
    assert found["event latency"].level is Level.UNKNOWN
    assert found["first byte"].text == "after 10 ms"
    assert "--url" in found["transformation"].text
    assert status_of(findings(measured), measured) == 0


def test_nothing_through_and_nothing_without() -> None:
    """Then the proxy cannot be told from a gateway that is away."""
    measured = replace(measure(Proxy(hold=True)), direct=None, no_direct="refused")

    assert status_of(findings(measured), measured) == 2


@pytest.mark.parametrize(
    ("status", "direct", "level", "word"),
    [
        (401, 200, Level.FAULT, "does not pass Authorization"),
        (404, 200, Level.FAULT, "the gateway answers with a stream"),
        (503, 503, Level.UNKNOWN, "there is no stream either"),
    ],
)
def test_an_answer_that_is_not_a_stream(status: int, direct: int, level: Level, word: str) -> None:
    """Whose refusal it is decides."""
    refused = Followed(began=0.0, until=0.1, answered=0.1, status=status)
    straight = stream(Proxy()) if direct == 200 else replace(refused, status=direct)
    measured = replace(measure(Proxy()), sse=refused, ndjson=refused, quiet=refused, resumed=None, direct=straight)
    found = by_subject(measured)

    assert (found["first byte"].level, word in found["first byte"].text) == (level, True)
    assert {found[name].level for name in ("buffering", "idle time", "transformation", "Last-Event-ID")} == {
        Level.UNKNOWN
    }


# What a client gets that the gateway itself refuses: a problem, or, with SSE, a stream that is held and then closed.
PROBLEM = Followed(began=0.0, until=0.1, answered=0.1, status=429, problem="429 address-streams: too many")
HELD = Followed(
    began=0.0,
    until=4.0,
    answered=0.1,
    status=200,
    headers=HEADERS,
    arrivals=(Arrival(4.0, Line("close", reason="overloaded")),),
    ended="the connection was closed",
)


@pytest.mark.parametrize(
    ("changed", "unknown"),
    [
        ({"sse": HELD, "resumed": None}, {"event latency", "Last-Event-ID"}),
        ({"sse": HELD, "ndjson": PROBLEM, "quiet": HELD, "resumed": HELD},
         {"buffering", "event latency", "idle time", "Last-Event-ID"}),
        ({"sse": PROBLEM, "resumed": None}, {"first byte", "event latency", "Last-Event-ID", "streams at once"}),
        ({"ndjson": PROBLEM}, set()),
        ({"quiet": HELD}, {"idle time"}),
        ({"resumed": HELD}, {"Last-Event-ID"}),
        ({"direct": HELD}, {"event latency", "buffering"}),
        ({"direct": HELD, "sse": PROBLEM, "resumed": None},
         {"first byte", "event latency", "buffering", "Last-Event-ID", "streams at once"}),
    ],
)  # fmt: skip
def test_what_the_gateway_itself_refuses(changed: dict[str, Any], unknown: set[str]) -> None:
    """That is no fault of the proxy, and proves nothing about it."""
    measured = replace(measure(Proxy()), puts="done", **changed)
    found = by_subject(measured)

    assert faults(measured) == set()
    assert {name for name, each in found.items() if each.level is Level.UNKNOWN} == {"while one drains"} | unknown
    assert "first byte" not in unknown or "429 address-streams: too many" in found["first byte"].text


def test_streams_at_once_that_the_gateway_itself_refuses() -> None:
    """They say nothing of how many the proxy lets through."""
    measured = measure(Proxy(places=10))
    departed = replace(measured.departed, refusal="429 address-streams: too many", own=True)
    found = by_subject(replace(measured, departed=departed))["streams at once"]

    assert faults(measured) == {"streams at once"}
    assert (found.level, "429 address-streams" in found.text, bool(found.advice)) == (Level.UNKNOWN, True, True)


@pytest.mark.parametrize(
    ("headers", "level", "word"),
    [
        ({"content-encoding": "gzip"}, Level.NOTE, "compresses (gzip)"),
        ({"age": "7"}, Level.FAULT, "a cache answers"),
        ({"content-type": "text/plain"}, Level.FAULT, "gives up for good"),
        ({"cache-control": "private"}, Level.NOTE, "without no-transform"),
        ({}, Level.WELL, "none"),
    ],
)
def test_what_a_proxy_changes(headers: dict[str, str], level: Level, word: str) -> None:
    """Each change is compared with the gateway's own answer."""
    measured = measure(Proxy())
    found = by_subject(replace(measured, sse=replace(measured.sse, headers={**HEADERS, **headers})))["transformation"]

    assert (found.level, word in found.text) == (level, True)


def test_a_gateway_that_compresses_by_itself() -> None:
    """That is not the proxy's doing."""
    measured = measure(Proxy())
    both = {**HEADERS, "content-encoding": "gzip"}
    measured = replace(measured, sse=replace(measured.sse, headers=both), direct=replace(stream(Proxy()), headers=both))

    assert by_subject(measured)["transformation"].level is Level.WELL


def test_a_compression_that_does_not_arrive() -> None:
    """It costs bytes, and nothing else."""
    measured = measure(Proxy())
    packed = replace(stream(Proxy()), headers={**HEADERS, "content-encoding": "gzip"})
    found = by_subject(replace(measured, direct=packed))["transformation"]

    assert (found.level, found.text.startswith("the gateway's gzip does not arrive")) == (Level.NOTE, True)


def test_a_body_that_is_changed() -> None:
    """The finding quotes what came."""
    measured = measure(Proxy())
    found = by_subject(replace(measured, ndjson=replace(measured.ndjson, unreadable="a line is neither: b'<html>'")))

    assert found["transformation"].level is Level.FAULT
    assert "b'<html>'" in found["transformation"].text


def test_a_drain_is_seen_by_its_close() -> None:
    """Then no failed request proves something. The stream that was closed proves nothing about the idle time."""
    measured = measure(Proxy())
    closed = replace(
        measured.quiet,
        ended="the connection was closed",
        arrivals=(
            *measured.quiet.arrivals,
            Arrival(31.0, Line("bookmark")),
            Arrival(31.0, Line("close", reason="drain")),
        ),
    )
    found = by_subject(replace(measured, quiet=closed))

    assert found["while one drains"].level is Level.WELL
    assert found["idle time"].level is Level.UNKNOWN
    assert found["buffering"].level is Level.WELL


def test_a_machine_that_stood_still_is_not_a_proxy_that_buffers() -> None:
    """Without the proxy, the heartbeats arrived together as well."""
    measured = replace(measure(Proxy(bunches=True)), direct=stream(Proxy(bunches=True)))

    assert by_subject(measured)["buffering"].level is Level.WELL


@pytest.mark.parametrize(
    ("idle", "words"),
    [(120.0, "45.0 s of silence were not cut"), (40.0, "the proxy's own limit is 40.0 s of silence")],
)
def test_the_limit_of_silence(idle: float, words: str) -> None:
    """A limit between two and three heartbeats is well, and named."""
    found = by_subject(measure(Proxy(idle=idle)))["idle time"]

    assert found.level is Level.WELL
    assert words in found.text


def test_a_silence_that_was_not_measured() -> None:
    """The stream itself was; the limit is not known."""
    measured = replace(measure(Proxy()), silence=Silence(45.0, trouble="no ETag"))

    assert by_subject(measured)["idle time"].text.endswith("the proxy's own limit is not known: no ETag")


def test_without_the_right_to_read_the_feeds() -> None:
    """The finding says which right is needed."""
    measured = measure(Proxy())
    found = by_subject(replace(measured, departed=replace(measured.departed, trouble="403 forbidden")))

    assert found["a client that left"].level is Level.UNKNOWN
    assert "operator" in found["a client that left"].advice


@pytest.mark.parametrize(
    ("secure", "protocol", "level"),
    [(True, "h2", Level.WELL), (True, "http/1.1", Level.NOTE), (True, "", Level.NOTE), (False, "", Level.NOTE)],
)
def test_the_version_of_http(secure: bool, protocol: str, level: Level) -> None:
    """HTTP/1.1 works, with six streams to a browser."""
    found = by_subject(replace(measure(Proxy()), secure=secure, protocol=protocol))["HTTP version"]

    assert found.level is level


@pytest.mark.parametrize("seen", ["10.0.0.9", "10.0.0.5"])
def test_the_address_that_the_gateway_sees(seen: str) -> None:
    """The proxy's address instead of the client's is worth a word, and may be right."""
    measured = measure(Proxy())
    departed = replace(measured.departed, own_address="10.0.0.5", addresses=frozenset({seen}))
    found = by_subject(replace(measured, departed=departed))

    assert ("client address" in found) == (seen == "10.0.0.9")


def test_a_cursor_that_the_gateway_cannot_resume() -> None:
    """The header arrived: the reason is another one."""
    measured = measure(Proxy())
    lagged = replace(measured.sse, arrivals=(Arrival(1.0, Line("reset", "e-0", reason="lagged")),))

    assert by_subject(replace(measured, resumed=lagged))["Last-Event-ID"].level is Level.UNKNOWN
