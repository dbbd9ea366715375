"""Says what the measurements of ``check --through`` mean: what is well, what is wrong and what to do, what is not known
and what is needed to know it. Pure functions: ``Measurements`` in, ``Finding`` values out.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from .measurements import Followed, Measurements
from .verdict import GRACE, counted

# Seconds that a proxy may add to the first event, beside the network.
PROMPT = 2.0
# Seconds that a proxy may add to a later event. HAProxy adds 0.2 s without http-no-delay.
DELAY = 0.1
MAKE_ROOM = "the gateway is at a limit or a quota, or has no etcd: make room for the check, or run it later"
RECIPES = "docs/how-to/proxies.md has a tested configuration for each proxy"


class Level(Enum):
    """How good a finding is. The values are what is printed."""

    WELL = "well"
    NOTE = "note"
    UNKNOWN = "unknown"
    FAULT = "FAULT"


@dataclass(frozen=True, slots=True)
class Finding:
    """One subject, what was found, and what to do. *figures* are in seconds, or are counts."""

    subject: str
    level: Level
    text: str
    advice: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


def findings(measured: Measurements) -> list[Finding]:
    """Return a finding for each subject, always in the same order."""
    return [
        *_first_byte(measured),
        *_buffering(measured),
        *_latency(measured),
        *_idle(measured),
        *_departure(measured),
        *_refusals(measured),
        *_transform(measured),
        *_resume(measured),
        *_version(measured),
        *_address(measured),
    ]


def status_of(found: Sequence[Finding], measured: Measurements) -> int:
    """Return the exit status: 0 no fault, 1 a fault, 2 nothing came through the proxy and nothing without it."""
    if measured.direct is None and not measured.sse.served and not measured.ndjson.served:
        return 2
    return 1 if any(each.level is Level.FAULT for each in found) else 0


def summary_of(found: Sequence[Finding]) -> str:
    """Return the last line of the report."""
    counts = {level: sum(each.level is level for each in found) for level in Level}
    text = counted(counts[Level.FAULT], "fault") if counts[Level.FAULT] else "no fault was found"
    return f"{text}, {counts[Level.UNKNOWN]} not known" if counts[Level.UNKNOWN] else text


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _no_stream(subject: str, measured: Measurements) -> Finding:
    refused = next((each.refused for each in (measured.sse, measured.ndjson, measured.quiet) if each.refused), "")
    why = f": the gateway itself refuses it, {refused}" if refused else ""
    return Finding(subject, Level.UNKNOWN, f"there is no stream through the proxy{why}", MAKE_ROOM if refused else "")


# --- the answer -------------------------------------------------------------------------------------------------------


def _first_byte(measured: Measurements) -> Iterator[Finding]:
    subject, sse, direct = "first byte", measured.sse, measured.direct
    if sse.answered is None:
        why = sse.ended or f"not a byte in {_ms(sse.until - sse.began)}"
        yield Finding(subject, Level.FAULT, f"the proxy sends no answer: {why}", f"switch buffering off; {RECIPES}")
    elif sse.problem:
        yield Finding(subject, Level.UNKNOWN, f"the gateway itself refuses the stream: {sse.problem}", MAKE_ROOM)
    elif not sse.served:
        refused = f"the proxy's answer is {sse.status}"
        if direct is None or not direct.served:
            yield Finding(subject, Level.UNKNOWN, f"{refused}, and without it there is no stream either")
        elif sse.status == 401:
            text = f"{refused}, but without the proxy the token is good: the proxy does not pass Authorization"
            yield Finding(subject, Level.FAULT, text, "let the proxy pass the header Authorization")
        else:
            text = f"{refused}, but the gateway answers with a stream"
            yield Finding(subject, Level.FAULT, text, "see the proxy's log, and its route to /v1/watch")
    else:
        took = sse.answered - sse.began
        figures = {"through": took}
        text = f"after {_ms(took)}"
        if direct is not None and direct.answered is not None:
            figures["direct"] = direct.answered - direct.began
            text += f", without the proxy after {_ms(figures['direct'])}"
        yield Finding(subject, Level.WELL, text, figures=figures)


def _buffering(measured: Measurements) -> Iterator[Finding]:
    subject = "buffering"
    advice = f"switch off the buffering of answers, and do not hide X-Accel-Buffering from nginx; {RECIPES}"
    served = [
        (name, each)
        for name, each in (("SSE", measured.sse), ("NDJSON", measured.ndjson), ("quiet", measured.quiet))
        if (each.served or each.answered is None) and not each.refused
    ]
    straight = measured.direct
    direct = straight.first_event if straight is not None and not straight.refused else None
    if direct is None and straight is not None:
        why = straight.refused or "see the gateway's /readyz"
        yield Finding(subject, Level.UNKNOWN, f"without the proxy no event came either: {why}")
        return
    if not served:
        yield _no_stream(subject, measured)
        return
    # Then this machine, or the gateway, was stopped for a heartbeat.
    was_held_up = measured.direct is not None and _bunched(measured.direct, measured.heartbeat)
    late = []
    for name, each in served:
        first = each.first_event
        if first is None:
            late.append(f"{name}: no event in {_ms(each.until - each.began)}")
        elif first - (direct or 0.0) > PROMPT:
            late.append(f"{name}: the first event after {_ms(first)}")
        elif name == "quiet" and _bunched(each, measured.heartbeat) and not was_held_up:
            late.append(f"{name}: heartbeats arrive several at a time")
    if late:
        yield Finding(subject, Level.FAULT, f"the proxy keeps what it should pass on; {'; '.join(late)}", advice)
    else:
        text = f"none: the first event after {_ms(served[0][1].first_event or 0.0)}, each heartbeat at its time"
        yield Finding(subject, Level.WELL, text)


def _bunched(stream: Followed, heartbeat: float) -> bool:
    """Whether two heartbeats arrived together. The gateway sends them a heartbeat apart, and a last one at a close."""
    beats = [each.at for each in stream.arrivals if each.event.type == "bookmark"]
    if stream.closed:
        beats = beats[:-1]
    return any(later - earlier < heartbeat / 50 for earlier, later in itertools.pairwise(beats))


def _latency(measured: Measurements) -> Iterator[Finding]:
    subject = "event latency"
    if measured.direct is None:
        text = f"needs a stream without the proxy: {measured.no_direct}"
        yield Finding(subject, Level.UNKNOWN, text, "name the gateway by --url")
        return
    if refused := measured.direct.refused or measured.sse.refused:
        yield Finding(subject, Level.UNKNOWN, f"the gateway itself refuses a stream: {refused}", MAKE_ROOM)
        return
    direct = measured.direct.times("put", "delete")
    extra = [at - direct[cursor] for cursor, at in measured.sse.times("put", "delete").items() if cursor in direct]
    if not extra:
        if measured.puts == "done" and direct:
            text = "the changes of --put arrived without the proxy, and not through it"
            yield Finding(subject, Level.FAULT, text, f"switch buffering off; {RECIPES}")
            return
        why = {"": "no key of the prefix changed", "done": "--put changed no key of the prefix"}
        yield Finding(
            subject,
            Level.UNKNOWN,
            why.get(measured.puts, f"--put failed: {measured.puts}"),
            "name a busy prefix, or give a command that changes a key of the prefix: "
            "--put 'etcdctl put /svc/nobody/probe 1'",
        )
        return
    middle = statistics.median(extra)
    figures = {"median": middle, "most": max(extra), "events": float(len(extra))}
    text = f"{counted(len(extra), 'event')} took {_ms(max(0.0, middle))} longer than without the proxy, at most "
    text += _ms(max(0.0, figures["most"]))
    if middle > DELAY + measured.sse.connecting:
        advice = f"HAProxy: option http-no-delay; nginx: no gzip of streams; {RECIPES}"
        yield Finding(subject, Level.FAULT, text, advice, figures)
    else:
        yield Finding(subject, Level.WELL, text, figures=figures)


# --- time -------------------------------------------------------------------------------------------------------------


def _idle(measured: Measurements) -> Iterator[Finding]:
    subject, quiet, silence, beat = "idle time", measured.quiet, measured.silence, measured.heartbeat
    advice = (
        f"set the proxy's read and idle timeouts above the heartbeat of {beat:g} s ({4 * beat:g} s are four "
        "heartbeats), and switch off its limit of the whole answer (Envoy: timeout: 0s)"
    )
    figures = {"heartbeat": beat, "silence": silence.waited}
    cut = silence.status not in (200, 304, 404) and not silence.trouble
    if quiet.served and quiet.ended and not quiet.closed:
        text = (
            f"a stream without changes was cut after {_ms(quiet.until - quiet.began)}, "
            f"{_ms(quiet.until - quiet.last_byte)} after its last byte"
        )
        yield Finding(subject, Level.FAULT, text, advice, figures)
    elif cut and silence.waited < 2 * beat:
        what = f"with {silence.status}" if silence.status else "by a cut"
        text = f"a silent answer ended {what} after {_ms(silence.waited)}: a heartbeat that is late ends a stream"
        yield Finding(subject, Level.FAULT, text, advice, figures)
    elif not quiet.served:
        yield _no_stream(subject, measured)
    elif quiet.closed:
        text = f"the gateway closed the stream ({quiet.closed}) after {_ms(quiet.until - quiet.began)}; run it again"
        yield Finding(subject, Level.UNKNOWN, text)
    else:
        text = f"with heartbeats alone (every {beat:g} s) the stream stayed open for {_ms(quiet.until - quiet.began)}"
        if silence.trouble:
            text += f"; the proxy's own limit is not known: {silence.trouble}"
        elif cut:
            text += f"; the proxy's own limit is {_ms(silence.waited)} of silence"
        else:
            text += f"; {_ms(silence.waited)} of silence were not cut"
        yield Finding(subject, Level.WELL, text, figures=figures)


def _departure(measured: Measurements) -> Iterator[Finding]:
    subject, left = "a client that left", measured.departed
    figures = {"streams": float(left.shown)}
    if not measured.sse.served:
        yield _no_stream("streams at once", measured)
    elif left.opened < left.asked and left.own:
        text = f"the gateway itself refuses more than {left.opened} of {left.asked} streams: {left.refusal}"
        yield Finding("streams at once", Level.UNKNOWN, text, f"{MAKE_ROOM}; or ask for fewer --streams")
    elif left.opened < left.asked:
        text = f"of {left.asked} streams at once, {left.opened} were open: {left.refusal}"
        advice = "raise the proxy's limit of connections or workers, or --streams asks for more than the gateway allows"
        yield Finding("streams at once", Level.FAULT, text, advice, {"asked": left.asked, "opened": left.opened})
    else:
        yield Finding("streams at once", Level.WELL, f"{counted(left.opened, 'stream')} were open together")
    if left.trouble:
        advice = (
            "name the gateway's own URL: --admin-url, or --url; with access control the token needs the role operator"
        )
        yield Finding(subject, Level.UNKNOWN, left.trouble, advice)
    elif left.released is None or left.released > GRACE:
        after = f"after {_ms(left.released or left.waited)}" + ("" if left.released is not None else " not yet")
        text = f"{counted(left.shown, 'stream')} were released {after}; until then each holds its place and its watch"
        advice = f"let the proxy close its side at once (HAProxy: option abortonclose, in defaults); {RECIPES}"
        yield Finding(subject, Level.FAULT, text, advice, {**figures, "released": left.released or left.waited})
    else:
        text = f"the gateway had released {counted(left.shown, 'stream')} after {_ms(left.released)}"
        yield Finding(subject, Level.WELL, text, figures={**figures, "released": left.released})


def _refusals(measured: Measurements) -> Iterator[Finding]:
    subject, requests = "while one drains", measured.requests
    streams = (measured.sse, measured.ndjson, measured.quiet)
    drained = any(each.closed == "drain" for each in streams)
    figures = {"requests": float(requests.total), "failed": float(sum(requests.failed.values()))}
    asked = f"{counted(requests.total, 'request')} at {counted(len(requests.instances), 'gateway')}"
    if requests.failed:
        listed = ", ".join(f"{number} with {what}" for what, number in sorted(requests.failed.items()))
        text = f"of {asked} failed: {listed}"
        advice = f"let the proxy try the next gateway (retry), and remember no gateway as dead; {RECIPES}"
        yield Finding(subject, Level.FAULT, text, advice, figures)
    elif drained:
        yield Finding(subject, Level.WELL, f"a gateway drained, and none of {asked} failed", figures=figures)
    else:
        advice = "restart one gateway meanwhile: --for 5m, and `kubectl rollout restart`"
        yield Finding(subject, Level.UNKNOWN, f"no gateway drained; none of {asked} failed", advice, figures)


# --- what the proxy changes -------------------------------------------------------------------------------------------


def _transform(measured: Measurements) -> Iterator[Finding]:
    subject, sse, direct = "transformation", measured.sse, measured.direct
    streams = [each for each in (sse, measured.ndjson, measured.quiet) if each.served]
    if not streams:
        yield _no_stream(subject, measured)
        return
    broken = next((each.unreadable for each in streams if each.unreadable), "")
    encoding, media = sse.headers.get("content-encoding", ""), sse.headers.get("content-type", "")
    own = direct.headers.get("content-encoding", "") if direct is not None else encoding
    if broken:
        yield Finding(subject, Level.FAULT, f"the body is changed: {broken}", "let the proxy pass streams as they are")
    elif any("age" in each.headers for each in streams):
        text = "a cache answers: the answer has an Age"
        yield Finding(subject, Level.FAULT, text, "let the proxy not cache what has Cache-Control: no-store")
    elif sse.served and not media.startswith("text/event-stream"):
        text = f"Content-Type is {media or 'missing'}: an EventSource gives up for good"
        yield Finding(subject, Level.FAULT, text, "let the proxy pass Content-Type")
    elif own and not encoding:
        text = f"the gateway's {own} does not arrive: the proxy does not pass Accept-Encoding, or unpacks"
        yield Finding(subject, Level.NOTE, text, "let the proxy pass Accept-Encoding, to save bytes")
    elif encoding != own:
        text = f"the proxy compresses ({encoding}) although Cache-Control says no-transform"
        advice = "harmless while events are not late; to save CPU, take text/event-stream out of the proxy's types"
        yield Finding(subject, Level.NOTE, text, advice)
    elif "no-transform" not in sse.headers.get("cache-control", "no-transform"):
        text = f"Cache-Control is {sse.headers['cache-control']}, without no-transform: a cache may change streams"
        yield Finding(subject, Level.NOTE, text, "let the proxy pass Cache-Control")
    elif direct is None:
        yield Finding(subject, Level.WELL, "none is seen; --url would allow to compare with the gateway's own answer")
    else:
        yield Finding(subject, Level.WELL, "none: encoding, type and lines are the gateway's")


def _resume(measured: Measurements) -> Iterator[Finding]:
    subject, resumed = "Last-Event-ID", measured.resumed
    if resumed is None or not resumed.arrivals:
        yield Finding(subject, Level.UNKNOWN, "there is no stream through the proxy with a cursor")
        return
    first = resumed.arrivals[0].event
    if resumed.refused:
        yield Finding(subject, Level.UNKNOWN, f"the gateway itself refuses the stream: {resumed.refused}", MAKE_ROOM)
    elif first.type != "reset":
        yield Finding(subject, Level.WELL, "is passed: a stream resumes")
    elif first.reason == "initial":
        text = "does not arrive: each reconnect gets the whole state again"
        yield Finding(subject, Level.FAULT, text, "let the proxy pass the header Last-Event-ID")
    else:
        yield Finding(subject, Level.UNKNOWN, f"the gateway could not resume ({first.reason}); run it again")


def _version(measured: Measurements) -> Iterator[Finding]:
    subject = "HTTP version"
    six = "HTTP/1.1: a browser opens six connections to an origin, for all its tabs, and the seventh stream waits"
    if measured.protocol == "h2":
        yield Finding(subject, Level.WELL, "HTTP/2")
    elif measured.secure:
        yield Finding(subject, Level.NOTE, six, "switch HTTP/2 on in the proxy")
    else:
        yield Finding(subject, Level.NOTE, six, "browsers use HTTP/2 with TLS only: give the proxy a certificate")


def _address(measured: Measurements) -> Iterator[Finding]:
    seen, own = measured.departed.addresses, measured.departed.own_address
    if seen and own not in seen:
        text = f"the gateway takes this client ({own}) for {', '.join(sorted(seen)[:3])}"
        advice = (
            "if that is the proxy, its clients share one quota and one name in the log: set GATEWAY_TRUSTED_PROXIES, "
            "and let the proxy send X-Forwarded-For"
        )
        yield Finding("client address", Level.NOTE, text, advice)
